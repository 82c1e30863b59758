//! What the log says of a deployment: one line when a server goes, or refuses changes, and one when
//! that is over, however many workers notice it.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

/// Changes are taken again when one is, and none was refused for so long: while memory is about full,
/// or one node of several refuses, both come by turns.
const QUIET: Duration = Duration::from_secs(5);

/// What has been logged of a deployment.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// What is unreachable: servers, by their places.
    unreachable: Mutex<HashSet<String>>,
    /// Whether `refused` holds an instant.
    refuses: AtomicBool,
    /// When a change was refused last.
    refused: Mutex<Option<Instant>>,
}

impl Notices {
    /// Logs that a server cannot be used, unless it did so already.
    pub(crate) fn unreachable(&self, server: impl Display, cause: impl Display) {
        let server = server.to_string();
        if lock(&self.unreachable).insert(server.clone()) {
            warn!(server, %cause, "Redis unreachable");
        }
    }

    /// Logs that a server can be used again, if it logged that it could not.
    pub(crate) fn reachable(&self, server: impl Display) {
        let server = server.to_string();
        if lock(&self.unreachable).remove(&server) {
            info!(server, "Redis reconnected");
        }
    }

    /// Forgets a server that does not belong to the deployment any more.
    pub(crate) fn forget(&self, server: impl Display) {
        lock(&self.unreachable).remove(&server.to_string());
    }

    /// Logs that changes are refused, unless it did so already.
    pub(crate) fn refused(&self, cause: impl Display) {
        let mut refused = lock(&self.refused);
        if refused.replace(Instant::now()).is_none() {
            self.refuses.store(true, Ordering::Relaxed);
            warn!(%cause, "Redis refuses changes");
        }
    }

    /// Logs that changes are taken again, if they were refused, and not a moment ago.
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
    async fn refusals_by_turns_are_one() {
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
    fn a_server_goes_once_and_comes_once() {
        let notices = Notices::default();
        for _ in 0..2 {
            notices.unreachable("one", "closed");
            notices.unreachable("other", "closed");
        }
        assert_eq!(lock(&notices.unreachable).len(), 2);
        notices.reachable("one");
        notices.reachable("one");
        notices.forget("other");
        assert!(lock(&notices.unreachable).is_empty());
    }
}
