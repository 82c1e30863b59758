//! Sessions without I/O: ids and tokens, the key ring, records and patches, policy, rotation, cookies.
//!
//! No code here performs I/O, reads a clock, awaits or draws random numbers: `now` and randomness are
//! arguments.

pub mod cookie;
pub(crate) mod held;
pub mod id;
pub(crate) mod json;
pub mod key_ring;
pub(crate) mod navigation;
pub mod patch;
pub(crate) mod peer;
pub mod policy;
pub mod record;
pub(crate) mod rotation;
pub mod sealed;
pub mod token;

#[cfg(test)]
pub(crate) mod tests {
    //! Helpers for tests.

    use super::record::Meta;
    use crate::time::Timestamp;

    /// Returns a time, in seconds since the epoch.
    pub(crate) fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(i64::try_from(seconds).expect("a test's time") * 1000)
    }

    /// Returns a session that was created at `now`.
    pub(crate) fn meta(now: Timestamp) -> Meta {
        Meta::new(100, now)
    }
}
