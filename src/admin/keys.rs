//! The session keys of this instance, and what the store says about those of the others.

use std::sync::{Mutex, PoisonError};

use crate::session::key_ring::Fingerprint;
use crate::sessions::{ComparedKeys, KeyCheck, Shared, lack};
use crate::time::Timestamp;

/// The last comparison of session keys between instances.
#[derive(Debug, Default)]
pub(super) struct Comparison(Mutex<Option<Compared>>);

#[derive(Debug)]
struct Compared {
    keys: ComparedKeys,
    at: Timestamp,
    /// The keys that were recorded since, and when they were found.
    recorded: Option<(Vec<Fingerprint>, Timestamp)>,
}

/// Session keys by their fingerprints.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Those of this instance; the first one signs.
    pub(super) own: Vec<String>,
    /// Those that the other instances have recorded; `None` if the store keeps none.
    pub(super) others: Option<Vec<String>>,
    /// The first key if it was new to other instances, and when it was compared.
    pub(super) new: Option<(String, Timestamp)>,
    /// The first key if an instance has started or reloaded without it, and when this was found.
    pub(super) missing: Option<(String, Timestamp)>,
}

impl Comparison {
    /// Replaces the last comparison.
    pub(super) fn set(&self, keys: ComparedKeys, at: Timestamp) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Compared { keys, at, recorded: None });
    }

    /// Adds the keys that are recorded after the comparison.
    pub(super) fn set_recorded(&self, keys: Vec<Fingerprint>, at: Timestamp) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = &mut *last else { return };
        if last.recorded.as_ref().is_none_or(|(known, _)| *known != keys) {
            last.recorded = Some((keys, at));
        }
    }

    pub(super) fn keys(&self, shared: &Shared) -> Keys {
        let own: Vec<Fingerprint> = shared.ring.fingerprints().collect();
        let texts = |keys: &[Fingerprint]| keys.iter().map(ToString::to_string).collect();
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = last.as_ref().and_then(|last| last.recorded.as_ref());
        let others = last.as_ref().and_then(|last| last.others(&own)).map(texts);
        let missing = recorded
            .zip(own.first())
            .and_then(|((keys, at), first)| lack(keys, *first).then(|| (first.to_string(), *at)));
        let new = last.as_ref().and_then(|last| match last.keys.check {
            // A reload may have replaced the key, and the comparison takes a moment.
            KeyCheck::New(first) if own.first() == Some(&first) => {
                Some((first.to_string(), last.at))
            }
            _ => None,
        });
        Keys { own: texts(&own), others, new, missing }
    }
}

impl Compared {
    /// Returns the keys of the other instances, as far as is known. If the first key is new, the record then has the
    /// keys of this instance, until another one starts or reloads with different keys.
    fn others(&self, own: &[Fingerprint]) -> Option<&[Fingerprint]> {
        let compared = self.keys.others.as_deref();
        let Some((recorded, _)) = &self.recorded else { return compared };
        let is_own = recorded.len() == own.len() && own.iter().all(|key| recorded.contains(key));
        match self.keys.check {
            KeyCheck::New(_) if is_own => compared,
            _ => Some(recorded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::policy::Policy;
    use crate::time::Clock;

    #[test]
    fn a_new_first_key_is_kept_until_it_is_replaced() {
        let clock = Clock::manual(Timestamp::from_millis(1_000));
        let shared = Shared::for_tests(&clock, Policy::default());
        let comparison = Comparison::default();
        let keys = comparison.keys(&shared);
        assert_eq!((keys.own.len(), keys.others, keys.new), (1, None, None));
        let own = shared.ring.fingerprints().next().expect("a key");
        let other = Fingerprint::parse("0000000000000001").expect("a fingerprint");
        let compared =
            |first| ComparedKeys { check: KeyCheck::New(first), others: Some(vec![other]) };
        comparison.set(compared(own), clock.now());
        let keys = comparison.keys(&shared);
        assert_eq!(keys.new, Some((own.to_string(), clock.now())));
        assert_eq!(keys.others, Some(vec![other.to_string()]));
        let third = Fingerprint::parse("0000000000000002").expect("a fingerprint");
        for (recorded, others) in [(vec![own], other), (vec![third], third)] {
            comparison.set_recorded(recorded, clock.now());
            assert_eq!(comparison.keys(&shared).others, Some(vec![others.to_string()]));
        }
        comparison.set(compared(other), clock.now());
        assert_eq!(comparison.keys(&shared).new, None);
    }

    #[test]
    fn instances_without_the_first_key_are_noticed() {
        let clock = Clock::manual(Timestamp::from_millis(1_000));
        let shared = Shared::for_tests(&clock, Policy::default());
        let own = shared.ring.fingerprints().next().expect("a key");
        let other = Fingerprint::parse("0000000000000001").expect("a fingerprint");
        let comparison = Comparison::default();
        comparison.set_recorded(vec![other], clock.now());
        assert_eq!(comparison.keys(&shared).missing, None, "not compared yet");
        comparison.set(ComparedKeys { check: KeyCheck::Known, others: None }, clock.now());
        for (recorded, missing) in
            [(vec![], false), (vec![other, own], false), (vec![other], true), (vec![other], true)]
        {
            comparison.set_recorded(recorded, clock.now());
            let expected = missing.then(|| (own.to_string(), Timestamp::from_millis(1_000)));
            assert_eq!(comparison.keys(&shared).missing, expected);
            if missing {
                clock.advance(std::time::Duration::from_secs(1));
            }
        }
    }
}
