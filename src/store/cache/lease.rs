//! The lease of a cache: limits for how long cached records may be served.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A lease on the cached records: they are served until it expires.
///
/// The connection that receives invalidations extends it repeatedly, from an instant at which it knew
/// that none was missed. If that connection fails, time alone ends the lease. (Gray and Cheriton,
/// "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency", 1989.)
#[derive(Debug)]
pub(crate) struct Lease {
    base: Instant,
    /// Nanoseconds after `base`.
    until: AtomicU64,
    /// True if the lease was checked since the last [`Lease::was_wanted`].
    checked: AtomicBool,
    wanted: Notify,
}

/// The origin of changes to the cached records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// All changes go through this cache.
    Owned,
    /// Other processes change the records too; their invalidations arrive while the lease holds.
    Leased,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            until: AtomicU64::new(0),
            checked: AtomicBool::new(false),
            wanted: Notify::new(),
        }
    }
}

impl Lease {
    /// Returns true while the lease holds. Records that it is wanted.
    pub(super) fn runs(&self) -> bool {
        let runs = self.nanos(Instant::now()) < self.until.load(Ordering::Acquire);
        // Stored only if it changes: each store would take the cache line from the other workers.
        if !self.checked.load(Ordering::Relaxed) {
            self.checked.store(true, Ordering::Relaxed);
            if !runs {
                self.wanted.notify_one();
            }
        }
        runs
    }

    /// Extends the lease to `duration` after `known_at`; never shortens it.
    pub(crate) fn prolong(&self, known_at: Instant, duration: Duration) {
        let until = self.nanos(known_at + duration);
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    pub(crate) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Whether anybody has checked since the last time that this was asked.
    pub(crate) fn was_wanted(&self) -> bool {
        self.checked.swap(false, Ordering::Relaxed)
    }

    /// Completes when a check finds that the lease does not hold.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_counts_from_the_instant_of_knowledge() {
        let lease = Lease::default();
        assert!(!lease.runs());
        let now = Instant::now();
        lease.prolong(now, Duration::from_hours(1));
        assert!(lease.runs());
        lease.end();
        assert!(!lease.runs());
        lease.prolong(now, Duration::from_nanos(1));
        assert!(!lease.runs());
        assert!(lease.was_wanted());
        assert!(!lease.was_wanted());
    }
}
