//! Spawned tasks: each is tracked, its panic is logged, and the drain waits for it.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of panics in tasks of this process.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The tasks of the process, and the signals of their shutdown. A clone is the same set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    announcement: CancellationToken,
    drain: CancellationToken,
    phase: Arc<AtomicU8>,
    /// Whether unfinished work was aborted at the drain's deadline.
    aborted: Arc<AtomicBool>,
}

/// The phase of the shutdown.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Phase {
    Announced = 1,
    Draining = 2,
}

/// Handle to a running task. Dropping it does not stop the task.
#[derive(Debug)]
#[must_use = "call `.detach()` if the task is not awaited"]
pub struct TaskHandle<T>(JoinHandle<Result<T, TaskFailed>>);

/// Error of a task without a result: it panicked, was aborted, or its runtime shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task failed")]
pub struct TaskFailed;

impl Tasks {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task of the current runtime. A panic is logged and ends only this task.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub fn run<F>(&self, future: F) -> TaskHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        TaskHandle(self.tracker.spawn(catch(future)))
    }

    /// Announces that the drain will begin soon, so that clients and load balancers can move elsewhere.
    pub(crate) fn announce_shutdown(&self) {
        self.enter(Phase::Announced);
        self.announcement.cancel();
    }

    /// Returns whether the drain was announced or has begun.
    pub(crate) fn is_shutdown_announced(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= Phase::Announced as u8
    }

    /// Begins the drain: [`Self::draining`] completes for all clones.
    pub fn drain(&self) {
        // Before the signal, which wakes those who read it.
        self.enter(Phase::Draining);
        self.announcement.cancel();
        self.drain.cancel();
    }

    /// Returns whether the drain has begun.
    pub(crate) fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= Phase::Draining as u8
    }

    fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// Completes when the drain begins.
    pub async fn draining(&self) {
        let mut signal = pin!(self.drain.cancelled());
        let mut registered: Option<Waker> = None;
        poll_fn(|cx| {
            // A connection polls this whenever it is woken, and the signal has locks: once is enough.
            let is_registered = registered.as_ref().is_some_and(|own| own.will_wake(cx.waker()));
            if is_registered && !self.is_draining() {
                return Poll::Pending;
            }
            registered = Some(cx.waker().clone());
            signal.as_mut().poll(cx)
        })
        .await;
    }

    /// Records that unfinished work was aborted at the drain's deadline.
    pub(crate) fn record_aborted(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// Begins the drain and waits, at most for `deadline`, until no task runs. Returns whether all finished, and none was
    /// aborted.
    pub async fn drained(&self, deadline: Duration) -> bool {
        self.drain();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        ended && !self.aborted.load(Ordering::Relaxed)
    }

    /// Returns the same set with signals of its own, which follow these. A signal has a lock, taken by each wait for it:
    /// workers with signals of their own do not contend for it.
    #[must_use]
    pub(crate) fn sibling(&self) -> Self {
        let (announcement, drain) = (self.announcement.child_token(), self.drain.child_token());
        let (phase, aborted) = (Arc::clone(&self.phase), Arc::clone(&self.aborted));
        Self { tracker: self.tracker.clone(), announcement, drain, phase, aborted }
    }
}

impl<T> TaskHandle<T> {
    /// Drops the handle; the task runs on.
    pub fn detach(self) {
        drop(self);
    }

    /// Returns a handle that aborts the task: its future is dropped.
    pub(crate) fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|joined| joined.unwrap_or(Err(TaskFailed)))
    }
}

/// Runs the tasks that hyper spawns for HTTP/2 streams.
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.run(future).detach();
    }
}

/// Completes as `future` does, or with [`TaskFailed`] if it panics. The panic is logged.
///
/// An `async fn` would store the future twice: as it is passed, and as it is polled.
pub(crate) fn catch<F: Future>(future: F) -> impl Future<Output = Result<F::Output, TaskFailed>> {
    // Unwind-safe, since a future that has panicked is only dropped.
    AssertUnwindSafe(future).catch_unwind().map(|caught| caught.map_err(failed))
}

/// Returns what `call` returns, or [`TaskFailed`] if it panics. The panic is logged. What `call` has changed must not be
/// used after a panic.
pub(crate) fn catch_call<T>(call: impl FnOnce() -> T) -> Result<T, TaskFailed> {
    catch_unwind(AssertUnwindSafe(call)).map_err(failed)
}

/// Logs and counts a panic.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is called with a panic that nothing else needs"
)]
fn failed(panic: Box<dyn Any + Send>) -> TaskFailed {
    PANICS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(panic = message(&*panic), "task panicked");
    TaskFailed
}

fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{TaskFailed, Tasks};

    #[tokio::test]
    async fn panic_ends_its_own_task_only() {
        let tasks = Tasks::new();
        assert_eq!(
            tasks.run(async { panic!("expected by the test") }).await,
            Err::<(), _>(TaskFailed)
        );
        assert_eq!(tasks.run(async { 1 }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_waits_until_its_deadline() {
        let tasks = Tasks::new();
        let follower = tasks.clone();
        tasks.run(async move { follower.draining().await }).detach();
        assert!(tasks.drained(Duration::from_secs(1)).await);
        tasks.run(std::future::pending::<()>()).detach();
        assert!(!tasks.drained(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn drain_reports_aborted_work() {
        let tasks = Tasks::new();
        let follower = tasks.sibling();
        tasks
            .run(async move {
                follower.draining().await;
                follower.record_aborted();
            })
            .detach();
        assert!(!tasks.drained(Duration::from_secs(1)).await);
    }
}
