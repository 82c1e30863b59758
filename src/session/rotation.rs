//! Rotation: the validity of a token of one generation for a record of another.

use std::time::Duration;

use super::policy::Policy;
use super::record::{Meta, Principal};
use crate::time::Timestamp;

/// The maximum difference between the clocks of two instances that share a store. A token counts as
/// replayed only this long after the grace period.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// The validity of a well-signed token for its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// A generation that was never issued, or one below the floor after the grace period. A token
    /// from before a log-in or a requested rotation proves nothing.
    Unknown,
    /// Replaced longer ago than the grace period: the browser was restored from a backup, or a thief
    /// has rotated first.
    Replayed,
    /// Replaced a moment ago: another response has just given the browser a newer token.
    Stale,
    /// The previous generation within its grace period: the request was sent before the new cookie
    /// arrived.
    Previous,
    /// The current generation of the record.
    Current,
    /// The next generation: the client has proved that its cookie arrived.
    Next,
}

impl Verdict {
    /// Returns the validity of a token of `generation` at `now`.
    pub(crate) fn of(generation: u32, meta: &Meta, policy: &Policy, now: Timestamp) -> Self {
        let current = meta.generation;
        if generation == current {
            Self::Current
        } else if current.checked_add(1) == Some(generation) {
            Self::Next
        } else if generation > current {
            Self::Unknown
        } else if generation.checked_add(1) == Some(current)
            && meta.previous_until.is_some_and(|until| now <= until)
        {
            Self::Previous
        } else if now <= meta.generation_since + policy.rotation_grace + CLOCK_SKEW {
            Self::Stale
        } else if meta.rotated_away(generation) {
            Self::Unknown
        } else {
            Self::Replayed
        }
    }

    /// Returns whether the token opens the session.
    ///
    /// A record that may be older than the store's can only give a valid verdict. Only the proxy
    /// signs, so a generation above the next one proves that the record is old; for one below, the
    /// record may have changed since.
    pub(crate) fn is_valid(self) -> bool {
        matches!(self, Self::Current | Self::Next | Self::Previous)
    }
}

impl Meta {
    /// Moves to `generation` if it is the next one: its token has reached the client.
    pub(crate) fn promote(&mut self, generation: u32, grace: Duration, now: Timestamp) {
        if self.generation.checked_add(1) == Some(generation) {
            self.generation = generation;
            self.generation_since = now;
            self.cookie_set_at = now;
            self.previous_until = Some(now + grace);
            self.unproven = false;
        }
    }

    /// Rotates at the request of an upstream: all tokens issued before, including the next
    /// generation's, are invalid once this is stored.
    pub(crate) fn rotate(&mut self, now: Timestamp) {
        self.generation = self.generation.saturating_add(2);
        self.floor = self.generation;
        self.generation_since = now;
        self.previous_until = None;
        self.login_at = None;
        self.withheld = false;
    }

    /// Logs `principal` in, after the rotation.
    pub(crate) fn log_in(&mut self, principal: &Principal) {
        if self.principal.as_ref() != Some(principal) {
            self.principal_since = self.generation;
        }
        self.principal = Some(principal.clone());
        self.former_principal = None;
        self.unproven = false;
    }

    /// Logs the principal out, if there is one.
    pub(crate) fn log_out(&mut self) {
        if let Some(principal) = self.principal.take() {
            self.former_principal = Some(Box::new(principal));
            self.login_at = None;
        }
    }

    /// Returns whether a request that was opened at `generation` has been rotated away since.
    pub(crate) fn rotated_away(&self, generation: u32) -> bool {
        self.floor > generation
    }

    /// Returns whether a token of this generation, which was rotated away, may end the log-in, so that no click on "log
    /// out" is refused. A token from before the log-in may not: an attacker may have planted it.
    pub(crate) fn may_be_logged_out_at(&self, generation: u32) -> bool {
        (1..=generation).contains(&self.principal_since)
    }

    /// Returns whether a cached record is enough for a request that was opened at `generation`: it may
    /// be as new as the request, and does not contradict it.
    pub(crate) fn suffices_for(&self, generation: u32) -> bool {
        !self.rotated_away(generation) && generation <= self.generation.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{at, meta};

    #[track_caller]
    fn check(meta: &Meta, now: u64, verdicts: &[(u32, Verdict)]) {
        for (generation, verdict) in verdicts {
            assert_eq!(
                Verdict::of(*generation, meta, &Policy::default(), at(now)),
                *verdict,
                "{generation}"
            );
        }
    }

    #[test]
    fn promotion_leaves_a_grace_period() {
        let mut meta = Meta { generation: 5, ..meta(at(0)) };
        meta.promote(6, Policy::default().rotation_grace, at(1000));
        check(
            &meta,
            1120,
            &[
                (3, Verdict::Stale),
                (5, Verdict::Previous),
                (6, Verdict::Current),
                (7, Verdict::Next),
                (8, Verdict::Unknown),
            ],
        );
        check(&meta, 1180, &[(3, Verdict::Stale), (5, Verdict::Stale), (6, Verdict::Current)]);
        check(
            &meta,
            1181,
            &[(3, Verdict::Replayed), (5, Verdict::Replayed), (6, Verdict::Current)],
        );
    }

    #[test]
    fn only_the_next_generation_promotes() {
        let before = Meta { generation: 5, ..meta(at(0)) };
        for generation in [4, 5, 7, u32::MAX] {
            let mut meta = before.clone();
            meta.promote(generation, Duration::from_mins(2), at(10));
            assert_eq!(meta, before);
        }
    }

    #[test]
    fn requested_rotation_invalidates_all_tokens() {
        let mut meta = Meta { generation: 5, ..meta(at(0)) };
        meta.rotate(at(1000));
        check(
            &meta,
            1000,
            &[(5, Verdict::Stale), (6, Verdict::Stale), (7, Verdict::Current), (8, Verdict::Next)],
        );
        check(&meta, 1181, &[(5, Verdict::Unknown), (6, Verdict::Unknown), (7, Verdict::Current)]);
        // A token rotated since is a replay; one from before the floor still proves nothing.
        meta.promote(8, Policy::default().rotation_grace, at(2000));
        check(&meta, 2181, &[(6, Verdict::Unknown), (7, Verdict::Replayed), (8, Verdict::Current)]);
        assert!(meta.rotated_away(6));
        assert!(!meta.rotated_away(7));
    }

    #[test]
    fn only_generations_from_the_floor_touch() {
        let mut meta = Meta { generation: 5, ..meta(at(0)) };
        meta.rotate(at(10));
        meta.promote(8, Duration::from_mins(2), at(20));
        for (generation, prolonged) in [(5, false), (6, false), (7, true), (8, true)] {
            let mut meta = meta.clone();
            let used = crate::session::patch::Use {
                generation,
                touches: true,
                sets_cookie: false,
                proves: crate::session::patch::Proof::None,
                now: at(30),
            };
            used.apply(&mut meta, Duration::from_mins(2));
            assert_eq!(meta.last_seen_at == at(30), prolonged, "{generation}");
        }
    }
}
