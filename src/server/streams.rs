//! The streams of HTTP/2 connections: each a task that ends if its client takes nothing of its response for too long.
//!
//! hyper asks a body for more only if the client has room for it, and keeps no clock; a client that never makes room,
//! but answers pings, would hold a response and its upstream for any time (CVE-2019-9517 and its kin). Each connection
//! has as many as a hundred streams, so the time that a client has shrinks as more of them stall.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::metrics::ListenerMetrics;
use crate::tasks::Tasks;

// What is recorded and what is counted are read on their own, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

/// How often a stalled stream looks at how much time it still has.
const LOOK: Duration = Duration::from_millis(500);

/// Time that a client has to take more of a response while three quarters of the bound are used.
const SHORT: Duration = Duration::from_secs(1);

/// Stalled streams over all connections, and their bound. A clone counts the same.
#[derive(Clone, Debug)]
pub(super) struct Stalled {
    count: Arc<AtomicUsize>,
    bound: usize,
}

impl Stalled {
    /// Allows this many at a time.
    pub(super) fn new(bound: usize) -> Self {
        Self { count: Arc::default(), bound: bound.max(1) }
    }

    /// Returns the time that each client has: all of `patience` until a quarter of the bound is used, from there on
    /// less and less down to [`SHORT`] at three quarters, and none at the bound.
    fn patience(&self, patience: Duration) -> Duration {
        let used = self.count.load(ORDERING).min(self.bound).saturating_mul(100) / self.bound;
        let used = u32::try_from(used).unwrap_or(100);
        let short = SHORT.min(patience);
        match used {
            0..25 => patience,
            25..75 => short + patience.saturating_sub(short) * (75 - used) / 50,
            _ => short * (100 - used) / 25,
        }
    }
}

/// Runs what hyper makes of each stream. hyper keeps a clone in each.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tasks: Tasks,
    patience: Duration,
    stalled: Stalled,
    metrics: ListenerMetrics,
}

impl Streams {
    /// Allows a client to take nothing for as long as `patience`, or shorter if many streams are stalled.
    pub(super) fn new(
        tasks: Tasks,
        patience: Duration,
        stalled: Stalled,
        metrics: ListenerMetrics,
    ) -> Self {
        Self(Arc::new(Shared { tasks, patience, stalled, metrics }))
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let stall = Arc::new(Stall::new(Arc::clone(&self.0)));
        let (waits, patience) = (Arc::clone(&stall), self.0.patience);
        // The futures around it have room for it more than once.
        let future = Box::pin(future);
        let stream = async move {
            tokio::select! {
                biased;
                _ = future => {}
                () = waits.lasts(patience) => tracing::debug!("stream reset: client stopped reading the response"),
            }
        };
        self.0.tasks.run(STALL.scope(stall, stream)).detach();
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
    lasted: AtomicBool,
    among: Arc<Shared>,
}

/// Nothing waits for the client.
const NEVER: u64 = u64::MAX;

impl Stall {
    fn new(among: Arc<Shared>) -> Self {
        let (since, lasted) = (AtomicU64::new(NEVER), AtomicBool::new(false));
        Self { start: Instant::now(), since, lasted, among }
    }

    /// That of the stream that runs now; `None` in HTTP/1, where the socket has a clock.
    pub(super) fn of_stream() -> Option<Arc<Self>> {
        STALL.try_with(Arc::clone).ok()
    }

    /// It is the client's turn. To be called by the stream's own task.
    pub(super) fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1);
        if self.since.swap(now, ORDERING) == NEVER {
            self.among.stalled.count.fetch_add(1, ORDERING);
            self.among.metrics.stalled_streams().inc();
        }
    }

    /// It is not.
    pub(super) fn end(&self) {
        if self.since.swap(NEVER, ORDERING) != NEVER {
            self.among.stalled.count.fetch_sub(1, ORDERING);
            self.among.metrics.stalled_streams().dec();
        }
    }

    /// Returns whether the client's time was over.
    pub(super) fn has_lasted(&self) -> bool {
        self.lasted.load(ORDERING)
    }

    /// Completes when it has been the client's turn for as long as it may.
    ///
    /// The stream's task polls this after each poll of the stream, which alone begins or ends a stall: so no timer runs
    /// while there is none.
    async fn lasts(&self, patience: Duration) {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| self.poll_lasts(patience, &mut timer, cx)).await;
    }

    fn poll_lasts(
        &self,
        patience: Duration,
        timer: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let since = match self.since.load(ORDERING) {
                NEVER => {
                    *timer = None;
                    return Poll::Pending;
                }
                since => Duration::from_millis(since),
            };
            let waited = self.start.elapsed().saturating_sub(since);
            let left = self.among.stalled.patience(patience).saturating_sub(waited);
            if left.is_zero() {
                self.lasted.store(true, ORDERING);
                return Poll::Ready(());
            }
            let timer = timer.get_or_insert_with(|| Box::pin(sleep(left.min(LOOK))));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(Instant::now() + left.min(LOOK));
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn stall(stalled: &Stalled) -> Stall {
        let streams =
            Streams::new(Tasks::new(), PATIENCE, stalled.clone(), ListenerMetrics::default());
        Stall::new(streams.0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_over_as_soon_as_the_client_takes_something() {
        let stall = stall(&Stalled::new(100));
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
        // One task, as a stream is.
        let mut begins = std::pin::pin!(begins);
        let mut begun = false;
        let mut lasts = std::pin::pin!(stall.lasts(patience));
        poll_fn(|cx| {
            begun = begun || begins.as_mut().poll(cx).is_ready();
            lasts.as_mut().poll(cx)
        })
        .await;
        assert_eq!(start.elapsed().as_secs(), 3 * 39 + 10);
    }

    #[test]
    fn patience_shrinks_as_streams_stall() {
        let stalled = Stalled::new(1000);
        let mut last = Duration::MAX;
        for used in 0..=1000 {
            stalled.count.store(used, ORDERING);
            let now = stalled.patience(PATIENCE);
            assert!(now <= last, "{used}");
            last = now;
        }
        for (used, millis) in [(0, 30_000), (249, 30_000), (500, 15_500), (750, 1000), (1000, 0)] {
            stalled.count.store(used, ORDERING);
            assert_eq!(stalled.patience(PATIENCE), Duration::from_millis(millis), "{used}");
        }
        stalled.count.store(5000, ORDERING);
        assert_eq!(stalled.patience(PATIENCE), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn stalls_of_others_shorten_one_that_lasts() {
        let stalled = Stalled::new(4);
        let first = stall(&stalled);
        first.begin();
        let start = Instant::now();
        let mut lasts = std::pin::pin!(first.lasts(PATIENCE));
        assert!(tokio::time::timeout(Duration::from_secs(5), lasts.as_mut()).await.is_err());
        let others = [stall(&stalled), stall(&stalled)];
        others.iter().for_each(Stall::begin);
        lasts.await;
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        drop(others);
        assert_eq!(stalled.count.load(ORDERING), 1);
        first.end();
        assert_eq!(stalled.count.load(ORDERING), 0);
    }
}
