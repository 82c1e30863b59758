//! The streams of HTTP/2 connections: each a task, that ends where its client takes nothing of its
//! response for too long.
//!
//! hyper asks a body for more only where the client has room for it, and keeps no clock; a client that
//! never makes room, but answers pings, would hold a response and its upstream for ever (CVE-2019-9517
//! and its kin).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::tasks::Tasks;

/// Runs what hyper makes of each stream.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    tasks: Tasks,
    patience: Duration,
}

impl Streams {
    /// A client may take nothing for as long as `patience`.
    pub(super) fn new(tasks: Tasks, patience: Duration) -> Self {
        Self { tasks, patience }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let (stall, patience) = (Arc::new(Stall::new()), self.patience);
        let waits = Arc::clone(&stall);
        let stream = async move {
            tokio::select! {
                biased;
                _ = future => {}
                () = waits.lasts(patience) => tracing::debug!("a client took nothing of its response"),
            }
        };
        self.tasks.run(STALL.scope(stall, stream)).detach();
    }
}

tokio::task_local! {
    /// That of the stream whose task this is.
    static STALL: Arc<Stall>;
}

/// Since when a client has had a piece of its response and has not made room for the next.
#[derive(Debug)]
pub(super) struct Stall {
    start: Instant,
    /// Milliseconds after the start, or [`NEVER`].
    since: AtomicU64,
}

/// Nothing waits for the client.
const NEVER: u64 = u64::MAX;

impl Stall {
    fn new() -> Self {
        Self { start: Instant::now(), since: AtomicU64::new(NEVER) }
    }

    /// That of the stream that runs now; `None` in HTTP/1, where the socket has a clock.
    pub(super) fn of_stream() -> Option<Arc<Self>> {
        STALL.try_with(Arc::clone).ok()
    }

    /// It is the client's turn.
    pub(super) fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1);
        self.since.store(now, Ordering::Relaxed);
    }

    /// It is not.
    pub(super) fn end(&self) {
        self.since.store(NEVER, Ordering::Relaxed);
    }

    /// Completes when it has been the client's turn for as long as `patience`.
    async fn lasts(&self, patience: Duration) {
        loop {
            let left = match self.since.load(Ordering::Relaxed) {
                NEVER => patience,
                since => {
                    let waited = self.start.elapsed().saturating_sub(Duration::from_millis(since));
                    patience.saturating_sub(waited)
                }
            };
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_over_as_soon_as_the_client_takes_something() {
        let stall = Stall::new();
        let patience = Duration::from_secs(10);
        let begins = async {
            for _ in 0..3 {
                stall.begin();
                sleep(Duration::from_secs(9)).await;
                stall.end();
                sleep(Duration::from_secs(30)).await;
            }
            stall.begin();
        };
        let start = Instant::now();
        tokio::join!(begins, stall.lasts(patience));
        assert_eq!(start.elapsed().as_secs(), 3 * 39 + 10);
    }
}
