//! Log lines about a deployment: one when a server becomes unreachable or refuses changes, and one when that ends,
//! however many workers notice it. Workers learn from it that a server was reached.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::unusable::Unusable;

/// Changes are accepted again after this time without a refusal: while memory is almost full, or one node of
/// several refuses, both alternate.
const QUIET: Duration = Duration::from_secs(5);

/// What has been logged about a deployment.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// Servers that cannot be used, and when that was logged.
    unusable: Mutex<HashMap<(String, Logged), Instant>>,
    /// The last server that could be used again.
    reached: watch::Sender<String>,
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
        match lock(&self.unusable).entry((server, logged)) {
            Entry::Vacant(entry) => {
                entry.insert(Instant::now());
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Returns when it was first logged that a server cannot be used which this cause of a failure names.
    pub(crate) fn since(&self, cause: &str) -> Option<Instant> {
        // The port of another server may begin with that of this one.
        let is_named = |server: &str| {
            let is_end = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_digit());
            cause.split(server).skip(1).any(is_end)
        };
        let unusable = lock(&self.unusable);
        let named = unusable.iter().filter(|((server, _), _)| is_named(server));
        named.map(|(_, since)| *since).min()
    }

    /// Logs that a server can be used again, if it was logged that it cannot.
    pub(crate) fn reachable(&self, server: impl Display) {
        let server = server.to_string();
        if self.remove(&server) {
            info!(server, "Redis reconnected");
            self.reached.send_replace(server);
        }
    }

    /// Completes when a server can be used again, by the first connection to it that is opened from now on.
    pub(crate) fn reached<D: Display>(&self, server: D) -> impl Future<Output = ()> + use<D> {
        let (server, mut reached) = (server.to_string(), self.reached.subscribe());
        async move {
            // The sender lives as long as the connections.
            while reached.changed().await.is_ok() {
                if *reached.borrow_and_update() == server {
                    return;
                }
            }
            std::future::pending::<()>().await;
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
        unusable.retain(|(logged, _), _| logged != server);
        unusable.len() < before
    }

    /// Logs that a server refuses changes, unless it is known that one does.
    pub(crate) fn refused(&self, server: impl Display, cause: impl Display) {
        let mut refused = lock(&self.refused);
        if refused.replace(Instant::now()).is_none() {
            self.refuses.store(true, Ordering::Relaxed);
            warn!(server = server.to_string(), %cause, "Redis refuses changes");
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
            notices.refused("one", "OOM");
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
        let since = |cause| notices.since(cause).is_some();
        assert_eq!(["one: closed", "one1: closed", "a one-way"].map(since), [true, false, true]);
        notices.reachable("one");
        notices.reachable("one");
        assert!(!since("one: closed"));
        notices.forget("other");
        assert!(lock(&notices.unusable).is_empty());
    }
}
