//! For how long what the cache holds may be told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A lease: what the cache holds is served until it ends, and nothing else ends it but time.
///
/// Somebody who knows that nothing was missed prolongs it again and again, from a moment at which
/// that was known. (Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for
/// distributed file cache consistency", 1989.)
#[derive(Debug)]
pub struct Lease {
    base: Instant,
    /// Nanoseconds after `base`.
    until: AtomicU64,
    /// Whether somebody has looked since that was asked.
    looked: AtomicBool,
    wanted: Notify,
}

/// Whether the cache may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// Whatever changes the records passes this cache.
    Owned,
    /// Others change them too; who tells us of it holds the lease.
    Leased,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            until: AtomicU64::new(0),
            looked: AtomicBool::new(false),
            wanted: Notify::new(),
        }
    }
}

impl Lease {
    /// Whether it runs now. Asking says that somebody wants it.
    pub(super) fn runs(&self) -> bool {
        let runs = self.nanos(Instant::now()) < self.until.load(Ordering::Acquire);
        if !self.looked.load(Ordering::Relaxed) {
            self.looked.store(true, Ordering::Relaxed);
            if !runs {
                self.wanted.notify_one();
            }
        }
        runs
    }

    /// Lets it run until `duration` after `known_at`.
    pub fn prolong(&self, known_at: Instant, duration: Duration) {
        let until = self.nanos(known_at + duration);
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    /// Ends it now.
    pub fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Whether anybody has looked since the last time that this was asked.
    pub fn was_wanted(&self) -> bool {
        self.looked.swap(false, Ordering::Relaxed)
    }

    /// Completes when somebody looks who finds that it does not run.
    pub async fn wanted(&self) {
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
    fn a_lease_runs_from_when_it_was_known_and_not_from_when_that_was_told() {
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
