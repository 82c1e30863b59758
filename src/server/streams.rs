//! HTTP/2 streams: each is a task that ends if its client does not read the response for too long.
//!
//! hyper polls a body only while the client's flow-control window has room, without a timeout. A client that never
//! opens its window, but answers pings, could hold a response and its upstream connection without limit (CVE-2019-9517).
//! A connection has up to a hundred streams, so the timeout shrinks as more of them stall.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::body::End;
use crate::metrics::ListenerMetrics;
use crate::tasks::Tasks;

// No value guards another, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

/// Interval at which a stalled stream checks its timeout, which depends on the other streams.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Timeout while three quarters of the allowed streams are stalled.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Count of the stalled streams of all connections, and how many are allowed. A clone is the same count.
#[derive(Clone, Debug)]
pub(super) struct Stalled {
    count: Arc<AtomicUsize>,
    max: usize,
}

impl Stalled {
    /// Allows `max` stalled streams at a time.
    pub(super) fn new(max: usize) -> Self {
        // `shrink` divides by it.
        Self { count: Arc::default(), max: max.max(1) }
    }

    /// Returns the timeout of each stalled stream: all of `timeout` until a quarter of the streams allowed are stalled,
    /// then less and less, [`SHORT_TIMEOUT`] at three quarters, and zero when all are.
    fn shrink(&self, timeout: Duration) -> Duration {
        let used = self.count.load(ORDERING).min(self.max).saturating_mul(100) / self.max;
        let used = u32::try_from(used).unwrap_or(100);
        let short = SHORT_TIMEOUT.min(timeout);
        match used {
            0..25 => timeout,
            25..75 => short + timeout.saturating_sub(short) * (75 - used) / 50,
            _ => short * (100 - used) / 25,
        }
    }
}

/// Executor that runs the streams of hyper as tasks. hyper keeps a clone in each stream.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tasks: Tasks,
    timeout: Duration,
    stalled: Stalled,
    metrics: ListenerMetrics,
}

impl Streams {
    /// Ends a stream after `timeout` without a read, or earlier if many streams are stalled.
    pub(super) fn new(
        tasks: Tasks,
        timeout: Duration,
        stalled: Stalled,
        metrics: ListenerMetrics,
    ) -> Self {
        Self(Arc::new(Shared { tasks, timeout, stalled, metrics }))
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let stall = Arc::new(Stall::new(Arc::clone(&self.0)));
        let watched = Arc::clone(&stall);
        // Boxed, since the futures around it would contain it more than once.
        let future = Box::pin(future);
        let stream = async move {
            tokio::select! {
                biased;
                _ = future => {}
                () = watched.timed_out() => tracing::debug!(reason = End::Stalled.reason().as_str(), "stream reset: client stopped reading the response"),
            }
        };
        self.0.tasks.run(STALL.scope(stall, stream)).detach();
    }
}

tokio::task_local! {
    /// Stall of the stream whose task is running.
    static STALL: Arc<Stall>;
}

/// Time since which a client has not read the piece of a response that it was sent.
#[derive(Debug)]
pub(super) struct Stall {
    start: Instant,
    /// Milliseconds after the start, or [`NEVER`].
    since: AtomicU64,
    timed_out: AtomicBool,
    streams: Arc<Shared>,
}

/// Instead of a time: nothing waits for the client.
const NEVER: u64 = u64::MAX;

impl Stall {
    fn new(streams: Arc<Shared>) -> Self {
        let (since, timed_out) = (AtomicU64::new(NEVER), AtomicBool::new(false));
        Self { start: Instant::now(), since, timed_out, streams }
    }

    /// Returns the stall of the stream whose task is running. `None` in HTTP/1, where the write timeout of the socket holds.
    pub(super) fn of_stream() -> Option<Arc<Self>> {
        STALL.try_with(Arc::clone).ok()
    }

    /// Records that the client has to read before more is sent. Only the stream's own task may call this.
    pub(super) fn begin(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1);
        if self.since.swap(now, ORDERING) == NEVER {
            self.streams.stalled.count.fetch_add(1, ORDERING);
            self.streams.metrics.stalled_streams().inc();
        }
    }

    /// Records that nothing waits for the client.
    pub(super) fn end(&self) {
        if self.since.swap(NEVER, ORDERING) != NEVER {
            self.streams.stalled.count.fetch_sub(1, ORDERING);
            self.streams.metrics.stalled_streams().dec();
        }
    }

    /// Returns whether the stream was ended because the client did not read.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out.load(ORDERING)
    }

    /// Completes when the client has not read for too long.
    ///
    /// The stream's task polls this after each poll of the stream, and only that begins or ends a stall. So there is no
    /// timer unless the stream is stalled.
    async fn timed_out(&self) {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| self.poll_timed_out(&mut timer, cx)).await;
    }

    fn poll_timed_out(
        &self,
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
            let left = self.streams.stalled.shrink(self.streams.timeout).saturating_sub(waited);
            if left.is_zero() {
                self.timed_out.store(true, ORDERING);
                return Poll::Ready(());
            }
            let timer = timer.get_or_insert_with(|| Box::pin(sleep(left.min(CHECK_INTERVAL))));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(Instant::now() + left.min(CHECK_INTERVAL));
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

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn stall(stalled: &Stalled, timeout: Duration) -> Stall {
        let streams =
            Streams::new(Tasks::new(), timeout, stalled.clone(), ListenerMetrics::default());
        Stall::new(streams.0)
    }

    #[tokio::test(start_paused = true)]
    async fn stall_ends_when_the_client_reads() {
        let stall = stall(&Stalled::new(100), Duration::from_secs(10));
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
        // One task polls both, as for a stream.
        let mut begins = std::pin::pin!(begins);
        let mut started = false;
        let mut timed_out = std::pin::pin!(stall.timed_out());
        poll_fn(|cx| {
            started = started || begins.as_mut().poll(cx).is_ready();
            timed_out.as_mut().poll(cx)
        })
        .await;
        assert_eq!(start.elapsed().as_secs(), 3 * 39 + 10);
    }

    #[test]
    fn timeout_shrinks_as_streams_stall() {
        let stalled = Stalled::new(1000);
        let mut last = Duration::MAX;
        for used in 0..=1000 {
            stalled.count.store(used, ORDERING);
            let now = stalled.shrink(TIMEOUT);
            assert!(now <= last, "{used}");
            last = now;
        }
        for (used, millis) in [(0, 30_000), (249, 30_000), (500, 15_500), (750, 1000), (1000, 0)] {
            stalled.count.store(used, ORDERING);
            assert_eq!(stalled.shrink(TIMEOUT), Duration::from_millis(millis), "{used}");
        }
        stalled.count.store(5000, ORDERING);
        assert_eq!(stalled.shrink(TIMEOUT), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn further_stalls_shorten_a_timeout() {
        let stalled = Stalled::new(4);
        let first = stall(&stalled, TIMEOUT);
        first.begin();
        let start = Instant::now();
        let mut timed_out = std::pin::pin!(first.timed_out());
        assert!(tokio::time::timeout(Duration::from_secs(5), timed_out.as_mut()).await.is_err());
        let others = [stall(&stalled, TIMEOUT), stall(&stalled, TIMEOUT)];
        others.iter().for_each(Stall::begin);
        timed_out.await;
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        drop(others);
        assert_eq!(stalled.count.load(ORDERING), 1);
        first.end();
        assert_eq!(stalled.count.load(ORDERING), 0);
    }
}
