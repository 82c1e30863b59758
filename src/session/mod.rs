//! What a session is: ids and tokens, the key ring, record and patch, policy, rotation, cookies.
//!
//! Pure: no I/O, no clock, no await. `now` is an argument, and so is everything random.

pub mod cookie;
pub mod id;
pub mod json;
pub mod key_ring;
pub mod navigation;
pub mod patch;
pub mod peer;
pub mod policy;
pub mod record;
pub mod rotation;
pub mod sealed;
pub mod token;

#[cfg(test)]
pub(crate) mod tests {
    //! What the tests of this floor share.

    use super::record::Meta;
    use crate::time::Timestamp;

    /// A point in time, in seconds.
    pub(crate) fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(i64::try_from(seconds).expect("a test's time") * 1000)
    }

    /// A session that was made at `now`.
    pub(crate) fn meta(now: Timestamp) -> Meta {
        Meta::new(100, now)
    }
}
