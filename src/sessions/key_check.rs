//! The comparison of session keys between instances.

use std::time::Duration;

use crate::session::key_ring::Fingerprint;
use crate::store::{KnownKey, KnownKeys};
use crate::time::Timestamp;

/// The result of comparing this instance's first key with the keys of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyCheck {
    /// The others verify the first key, or there is no other known instance.
    Known,
    /// The others may not verify it: they have not all known it for `rotation_grace`.
    New(Fingerprint),
    /// The store keeps no keys.
    NotKept,
    /// The store denies this process its record of keys, for this reason.
    Denied(String),
}

/// A comparison of session keys between instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ComparedKeys {
    pub(crate) check: KeyCheck,
    /// The keys that the other instances had; `None` if the store keeps none.
    pub(crate) others: Option<Vec<Fingerprint>>,
}

impl ComparedKeys {
    pub(super) const NOT_KEPT: Self = Self { check: KeyCheck::NotKept, others: None };

    /// Checks the first of this instance's keys against the keys that the store knew.
    pub(super) fn of(
        own: &[Fingerprint],
        known: KnownKeys,
        grace: Duration,
        now: Timestamp,
    ) -> Self {
        let others = match &known {
            KnownKeys::Known(keys) => Some(keys.iter().map(|key| key.fingerprint).collect()),
            KnownKeys::NotKept | KnownKeys::Denied(_) => None,
        };
        Self { check: KeyCheck::of(own, known, grace, now), others }
    }
}

impl KeyCheck {
    fn of(own: &[Fingerprint], known: KnownKeys, grace: Duration, now: Timestamp) -> Self {
        match (known, own.first()) {
            (KnownKeys::Known(known), Some(first)) => Self::of_first(*first, &known, grace, now),
            (KnownKeys::Denied(cause), _) => Self::Denied(cause),
            (KnownKeys::NotKept | KnownKeys::Known(_), _) => Self::NotKept,
        }
    }

    fn of_first(first: Fingerprint, known: &[KnownKey], grace: Duration, now: Timestamp) -> Self {
        let is_known = |key: &KnownKey| key.fingerprint == first && key.since + grace <= now;
        if known.is_empty() || known.iter().any(is_known) { Self::Known } else { Self::New(first) }
    }
}

/// Returns whether the recorded keys of instances, if there are any, lack this one.
pub(crate) fn lack(recorded: &[Fingerprint], first: Fingerprint) -> bool {
    !recorded.is_empty() && !recorded.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::at;

    #[test]
    fn first_key_is_known_after_the_grace_period() {
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
            assert_eq!(KeyCheck::of_first(one, &known, grace, at(100)), expected, "{known:?}");
        }
    }
}
