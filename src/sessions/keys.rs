//! The session keys of several instances: whether the others verify what this one signs.

use std::time::Duration;

use super::{Home, Sessions};
use crate::metrics::StoreOperation;
use crate::session::key_ring::Fingerprint;
use crate::store::{Error as StoreError, KnownKey, KnownKeys};
use crate::time::Timestamp;

/// Whether the other instances are known to verify the first key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCheck {
    /// They are, or there is no other instance that is known of.
    Known,
    /// They are not: the first key has not been known to all of them for `rotation_grace`.
    New(Fingerprint),
    /// The store keeps nothing of keys.
    NotKept,
    /// The store does not permit this process to keep anything of keys, for this reason.
    Denied(String),
}

impl Sessions {
    /// Tells the other instances which keys this one has, and checks that they know the first.
    ///
    /// # Errors
    /// The store did not answer; ask again later.
    pub async fn check_keys(&self) -> Result<KeyCheck, StoreError> {
        let Home::Store(store) = &self.home else { return Ok(KeyCheck::NotKept) };
        let (ring, policy) = (&self.shared.ring, &self.shared.policy);
        let now = self.shared.clock.now();
        let own: Vec<Fingerprint> = ring.fingerprints().collect();
        let known = self.timed(StoreOperation::Keys, store.exchange_keys(&own, now)).await?;
        Ok(match (known, own.first()) {
            (KnownKeys::Known(known), Some(first)) => {
                check(*first, &known, policy.rotation_grace, now)
            }
            (KnownKeys::Denied(cause), _) => KeyCheck::Denied(cause),
            (KnownKeys::NotKept | KnownKeys::Known(_), _) => KeyCheck::NotKept,
        })
    }
}

fn check(first: Fingerprint, known: &[KnownKey], grace: Duration, now: Timestamp) -> KeyCheck {
    let is_known = |key: &KnownKey| key.fingerprint == first && key.since + grace <= now;
    if known.is_empty() || known.iter().any(is_known) {
        KeyCheck::Known
    } else {
        KeyCheck::New(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::at;

    #[test]
    fn first_key_is_known_after_the_grace() {
        let parse = |text| Fingerprint::parse(text).expect("a fingerprint");
        let (one, other) = (parse("0000000000000001"), parse("0000000000000002"));
        let known = |fingerprint, since| KnownKey { fingerprint, since: at(since) };
        let grace = Duration::from_secs(10);
        for (known, expected) in [
            (vec![], KeyCheck::Known),
            (vec![known(one, 90)], KeyCheck::Known),
            (vec![known(other, 0), known(one, 90)], KeyCheck::Known),
            (vec![known(one, 91)], KeyCheck::New(one)),
            (vec![known(other, 0)], KeyCheck::New(one)),
        ] {
            assert_eq!(check(one, &known, grace, at(100)), expected, "{known:?}");
        }
    }
}
