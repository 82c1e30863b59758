//! The one home of spawned tasks: each is tracked, a panic in it is logged, and the drain waits for it.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks of this process have ended with a panic.
pub(crate) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// The tasks of the process. A clone is the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    leave: CancellationToken,
    drain: CancellationToken,
    /// Whether the drain has cut what had not come to its end.
    cut: Arc<AtomicBool>,
}

/// A task that runs, whether this is awaited or dropped.
#[derive(Debug)]
#[must_use = "drop it with `.detach()` where nobody waits for the task"]
pub struct TaskHandle<T>(JoinHandle<Result<T, TaskFailed>>);

/// A task ended without a result: it panicked, was aborted, or its runtime ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task ended without a result")]
pub struct TaskFailed;

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` as a task of the current runtime. A panic in it is logged and ends it alone.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn run<F>(&self, future: F) -> TaskHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        TaskHandle(self.tracker.spawn(catch(future)))
    }

    /// Says that the drain will begin soon: whoever can go elsewhere should.
    pub fn announce_shutdown(&self) {
        self.leave.cancel();
    }

    /// Whether the drain will begin soon, or has begun.
    pub fn is_shutdown_announced(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Begins the drain: [`Self::draining`] completes, everywhere.
    pub fn drain(&self) {
        self.leave.cancel();
        self.drain.cancel();
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Completes when the drain begins.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Says that the drain's time was over for a task before that had come to its end.
    pub fn record_aborted(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Begins the drain and waits, no longer than `deadline`, until no task runs. Whether all came to their
    /// end: none runs, and none was cut.
    pub async fn drained(&self, deadline: Duration) -> bool {
        self.drain();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        ended && !self.cut.load(Ordering::Relaxed)
    }

    /// The same tasks, with a drain signal of their own that follows this one's. A signal has a lock, which
    /// each poll of a wait for it takes: each worker has its own, so that they do not meet there.
    #[must_use]
    pub fn sibling(&self) -> Self {
        let (leave, drain) = (self.leave.child_token(), self.drain.child_token());
        Self { tracker: self.tracker.clone(), leave, drain, cut: Arc::clone(&self.cut) }
    }
}

impl<T> TaskHandle<T> {
    /// Lets the task run on its own.
    pub fn detach(self) {
        drop(self);
    }

    /// What ends the task before its time: its future is dropped.
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

/// For the tasks that hyper spawns for the streams of an HTTP/2 connection.
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.run(future).detach();
    }
}

/// Completes as `future` does, or with [`TaskFailed`] where it panics; the panic is logged.
///
/// Nothing of a future that panicked is used again but its destructor.
pub(crate) async fn catch<F: Future>(future: F) -> Result<F::Output, TaskFailed> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => {
            PANICS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(panic = message(&*panic), "a task panicked");
            Poll::Ready(Err(TaskFailed))
        }
    })
    .await
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
    async fn a_panic_ends_its_own_task_only() {
        let tasks = Tasks::new();
        assert_eq!(
            tasks.run(async { panic!("expected by the test") }).await,
            Err::<(), _>(TaskFailed)
        );
        assert_eq!(tasks.run(async { 1 }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_waits_for_tasks_but_not_for_ever() {
        let tasks = Tasks::new();
        let follower = tasks.clone();
        tasks.run(async move { follower.draining().await }).detach();
        assert!(tasks.drained(Duration::from_secs(1)).await);
        tasks.run(std::future::pending::<()>()).detach();
        assert!(!tasks.drained(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_cut_did_not_come_to_its_end() {
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
