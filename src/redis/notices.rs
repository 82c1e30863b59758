//! Log lines about a deployment: one when a server becomes unreachable or refuses changes, and one when that ends,
//! however many workers notice it.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::unusable::Unusable;

/// Changes are accepted again after this time without a refusal: while memory is almost full, or one node of
/// several refuses, both alternate.
const QUIET: Duration = Duration::from_secs(5);

/// What has been logged about a deployment.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// Servers that cannot be used.
    unusable: Mutex<HashSet<(String, Logged)>>,
    /// Whether `refused` has a time.
    refuses: AtomicBool,
    /// The time of the last refusal.
    refused: Mutex<Option<Instant>>,
}

/// What has been logged about a server that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Logged {
    Unreachable,
    Replica,
}

impl Notices {
    /// Logs why a server cannot be used, unless it is known.
    pub(crate) fn unusable(&self, server: impl Display, unusable: &Unusable) {
        let Unusable::Replica { server: replica, primary } = unusable else {
            return self.unreachable(server, unusable.cause());
        };
        if self.is_news(server.to_string(), Logged::Replica) {
            warn!(server = replica, primary, "Redis server is a read-only replica");
        }
    }

    /// Logs that a server is unreachable, unless it is known.
    pub(crate) fn unreachable(&self, server: impl Display, cause: impl Display) {
        let server = server.to_string();
        if self.is_news(server.clone(), Logged::Unreachable) {
            warn!(server, %cause, "Redis unreachable");
        }
    }

    fn is_news(&self, server: String, logged: Logged) -> bool {
        lock(&self.unusable).insert((server, logged))
    }

    /// Logs that a server can be used again, if it was logged that it cannot.
    pub(crate) fn reachable(&self, server: impl Display) {
        let server = server.to_string();
        if self.remove(&server) {
            info!(server, "Redis reconnected");
        }
    }

    /// Forgets a server that no longer belongs to the deployment.
    pub(crate) fn forget(&self, server: impl Display) {
        self.remove(&server.to_string());
    }

    /// Returns whether anything was logged about the server.
    fn remove(&self, server: &str) -> bool {
        let mut unusable = lock(&self.unusable);
        let before = unusable.len();
        unusable.retain(|(logged, _)| logged != server);
        unusable.len() < before
    }

    /// Logs that changes are refused, unless it is known.
    pub(crate) fn refused(&self, cause: impl Display) {
        let mut refused = lock(&self.refused);
        if refused.replace(Instant::now()).is_none() {
            self.refuses.store(true, Ordering::Relaxed);
            warn!(%cause, "Redis refuses changes");
        }
    }

    /// Logs that changes are accepted again, if they were refused, and not just now.
    pub(crate) fn taken(&self) {
        if !self.refuses.load(Ordering::Relaxed) {
            return;
        }
        let mut refused = lock(&self.refused);
        if refused.is_some_and(|last| last.elapsed() >= QUIET) {
            *refused = None;
            self.refuses.store(false, Ordering::Relaxed);
            info!("Redis takes changes again");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn alternating_refusals_are_logged_once() {
        let notices = Notices::default();
        notices.taken();
        assert_eq!(*lock(&notices.refused), None);
        for _ in 0..10 {
            notices.refused("OOM");
            tokio::time::advance(QUIET / 2).await;
            notices.taken();
            assert!(notices.refuses.load(Ordering::Relaxed));
        }
        tokio::time::advance(QUIET / 2).await;
        notices.taken();
        assert!(!notices.refuses.load(Ordering::Relaxed));
        assert_eq!(*lock(&notices.refused), None);
    }

    #[test]
    fn unreachable_server_is_logged_once() {
        let notices = Notices::default();
        for _ in 0..2 {
            notices.unreachable("one", "closed");
            notices.unreachable("other", "closed");
        }
        assert_eq!(lock(&notices.unusable).len(), 2);
        notices.unusable("one", &Unusable::Replica { server: "one".to_owned(), primary: None });
        assert_eq!(lock(&notices.unusable).len(), 3, "another cause");
        notices.reachable("one");
        notices.reachable("one");
        notices.forget("other");
        assert!(lock(&notices.unusable).is_empty());
    }
}
