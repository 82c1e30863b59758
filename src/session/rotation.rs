//! Rotation by generation: what a token of one generation is worth to a record of another.

use std::time::Duration;

use super::policy::Policy;
use super::record::Meta;
use crate::time::Timestamp;

/// How far the clocks of two instances that share a store may be apart. What one of them has
/// rotated the other takes for a replay only after this much more than the grace.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// What a well-signed token is worth to the record that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// A generation that was never issued, or one below the floor after the grace: what is from
    /// before a log-in or an asked-for rotation proves nothing.
    Unknown,
    /// Replaced for longer than the grace: the jar was restored from a backup, or a thief rotated
    /// first.
    Replayed,
    /// Over since a moment ago: another response has just given the browser a newer token.
    Stale,
    /// The one before, within its grace: the request left before the new cookie arrived.
    Previous,
    /// The one that the record stands at.
    Current,
    /// The pending successor: the client has proved that it arrived.
    Next,
}

impl Verdict {
    /// What a token of `generation` is worth to a session at `now`.
    pub fn of(generation: u32, meta: &Meta, policy: &Policy, now: Timestamp) -> Self {
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

    /// Whether the token opens the session.
    ///
    /// No other verdict may be given by a record that may be older than the store's: only the
    /// proxy signs, so a generation above the pending successor's proves that the record is old,
    /// and time may have moved on for one below.
    pub fn is_valid(self) -> bool {
        matches!(self, Self::Current | Self::Next | Self::Previous)
    }
}

impl Meta {
    /// Moves to `generation` if it is the pending successor: its token has reached the client.
    pub fn promote(&mut self, generation: u32, grace: Duration, now: Timestamp) {
        if self.generation.checked_add(1) == Some(generation) {
            self.generation = generation;
            self.generation_since = now;
            self.cookie_set_at = now;
            self.previous_until = Some(now + grace);
            self.unproven = false;
        }
    }

    /// The rotation that an upstream asks for: every token issued before, a pending one included,
    /// is dead when this is stored.
    pub fn rotate(&mut self, now: Timestamp) {
        self.generation = self.generation.saturating_add(2);
        self.floor = self.generation;
        self.generation_since = now;
        self.previous_until = None;
        self.login_at = None;
        self.withheld = false;
    }

    /// Whether a request that was opened at `generation` has been rotated away since.
    pub fn rotated_away(&self, generation: u32) -> bool {
        self.floor > generation
    }

    /// Whether the record may be as new as a request that was opened at `generation`, and does not
    /// contradict it: if it comes from a cache, nobody needs to ask the store.
    pub fn serves(&self, generation: u32) -> bool {
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
    fn a_promotion_leaves_the_previous_generation_its_grace() {
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
    fn only_the_pending_successor_promotes() {
        let before = Meta { generation: 5, ..meta(at(0)) };
        for generation in [4, 5, 7, u32::MAX] {
            let mut meta = before.clone();
            meta.promote(generation, Duration::from_mins(2), at(10));
            assert_eq!(meta, before);
        }
    }

    #[test]
    fn an_asked_for_rotation_kills_every_token_before_it() {
        let mut meta = Meta { generation: 5, ..meta(at(0)) };
        meta.rotate(at(1000));
        check(
            &meta,
            1000,
            &[(5, Verdict::Stale), (6, Verdict::Stale), (7, Verdict::Current), (8, Verdict::Next)],
        );
        check(&meta, 1181, &[(5, Verdict::Unknown), (6, Verdict::Unknown), (7, Verdict::Current)]);
        // What was rotated since is a replay; what is from before the floor proves nothing still.
        meta.promote(8, Policy::default().rotation_grace, at(2000));
        check(&meta, 2181, &[(6, Verdict::Unknown), (7, Verdict::Replayed), (8, Verdict::Current)]);
        assert!(meta.rotated_away(6));
        assert!(!meta.rotated_away(7));
    }

    #[test]
    fn only_generations_at_the_floor_prolong() {
        let mut meta = Meta { generation: 5, ..meta(at(0)) };
        meta.rotate(at(10));
        meta.promote(8, Duration::from_mins(2), at(20));
        for (generation, prolonged) in [(5, false), (6, false), (7, true), (8, true)] {
            let mut meta = meta.clone();
            let used = crate::session::patch::Use {
                generation,
                touches: true,
                sets_cookie: false,
                proves: false,
                now: at(30),
            };
            used.apply(&mut meta, Duration::from_mins(2));
            assert_eq!(meta.last_seen_at == at(30), prolonged, "{generation}");
        }
    }
}
