//! Worker threads of the stores on disk: they run blocking calls, and callers wait for a channel.
//!
//! Each group of threads has one bounded queue of [`Job`]s. A thread takes what is queued as a batch,
//! so that several changes can share one commit. Of the threads that wait, the first is woken, so that one
//! thread does most of the work, with warm caches, and the others stand by. A thread ends, after the
//! jobs that are still queued, when its [`WorkerThreads`] is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Error;
use super::fault::{Fault, Kind};

/// Jobs that one queue holds; a submission beyond them fails at once.
const QUEUE: usize = 1024;

/// What a job does, which decides what a missing answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoKind {
    Read,
    Write,
}

#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error("the queue is full")]
    Full,
    #[error("the store's thread has ended")]
    Ended,
    #[error("the call panicked")]
    Panicked,
    #[error("the call was not made")]
    NotRun,
}

/// A job that could not be queued, and why.
#[derive(Debug)]
pub(super) struct Refused<J> {
    pub(super) job: J,
    pub(super) fault: Fault,
}

impl<J> From<Refused<J>> for Error {
    fn from(refused: Refused<J>) -> Self {
        refused.fault.into()
    }
}

/// Threads that take jobs of type `J` from one queue.
pub(super) struct WorkerThreads<J> {
    queue: Arc<Queue<J>>,
    threads: Vec<JoinHandle<()>>,
}

/// The jobs for a group of threads.
struct Queue<J>(Mutex<State<J>>);

struct State<J> {
    jobs: VecDeque<J>,
    /// The threads that wait for a job, by their numbers.
    idle: BTreeMap<usize, Thread>,
    /// The number of threads that have not ended.
    threads: usize,
    is_closed: bool,
}

/// A thread's part in a queue; dropped when the thread ends, also by a panic.
struct Member<J> {
    number: usize,
    queue: Arc<Queue<J>>,
}

impl<J: Send + 'static> WorkerThreads<J> {
    /// Starts one thread per handler. A handler gets batches of 1 to `max_batch` jobs.
    pub(super) fn start<H>(
        name: &str,
        max_batch: usize,
        handlers: impl IntoIterator<Item = H>,
    ) -> io::Result<Self>
    where
        H: FnMut(Vec<J>) + Send + 'static,
    {
        // If a later thread does not start, dropping this ends the earlier ones.
        let mut workers = Self { queue: Arc::default(), threads: Vec::new() };
        for mut handle in handlers {
            let member = Member::of(&workers.queue);
            let run = move || {
                while let Some(batch) = member.next_batch(max_batch) {
                    handle(batch);
                }
            };
            workers.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        }
        Ok(workers)
    }

    /// Queues a job; fails if the queue is full.
    pub(super) fn submit(&self, job: J) -> Result<(), Refused<J>> {
        self.queue.push(job).map_err(|(job, error)| {
            let fault = Fault::new(Kind::Unavailable, error);
            Refused { job, fault }
        })
    }
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        let state =
            State { jobs: VecDeque::new(), idle: BTreeMap::new(), threads: 0, is_closed: false };
        Self(Mutex::new(state))
    }
}

impl<J> Queue<J> {
    /// Locks the state. Neither jobs nor calls of a caller's code run under the lock.
    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job and wakes a thread for it, if one waits.
    fn push(&self, job: J) -> Result<(), (J, QueueError)> {
        let mut state = self.state();
        if state.threads == 0 {
            return Err((job, QueueError::Ended));
        }
        if state.jobs.len() >= QUEUE {
            return Err((job, QueueError::Full));
        }
        state.jobs.push_back(job);
        let idle = state.idle.pop_first();
        drop(state);
        if let Some((_, thread)) = idle {
            thread.unpark();
        }
        Ok(())
    }

    fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        for thread in idle.into_values() {
            thread.unpark();
        }
    }
}

impl<J> Member<J> {
    fn of(queue: &Arc<Queue<J>>) -> Self {
        let mut state = queue.state();
        let number = state.threads;
        state.threads += 1;
        Self { number, queue: Arc::clone(queue) }
    }

    /// Waits for a job, and takes others that are queued already; `None` once the queue is closed and empty.
    fn next_batch(&self, max_batch: usize) -> Option<Vec<J>> {
        loop {
            let mut state = self.queue.state();
            // It is still there if it was not woken for a job.
            state.idle.remove(&self.number);
            if !state.jobs.is_empty() {
                let length = state.jobs.len().min(max_batch);
                return Some(state.jobs.drain(..length).collect());
            }
            if state.is_closed {
                return None;
            }
            state.idle.insert(self.number, thread::current());
            drop(state);
            thread::park();
        }
    }
}

impl<J> Drop for Member<J> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.threads -= 1;
        // No thread would take them: their callers need not wait for the deadline.
        let abandoned =
            if state.threads == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        drop(state);
        drop(abandoned);
    }
}

impl<J> fmt::Debug for WorkerThreads<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WorkerThreads").field(&self.threads.len()).finish()
    }
}

impl<J> Drop for WorkerThreads<J> {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            // The panic hook has reported a thread that panicked.
            let _ = thread.join();
        }
    }
}

/// A call that runs on a worker thread, with access to a `C`, and reports to its caller.
pub(super) struct Job<C>(Box<dyn AnyCall<C>>);

impl<C> Job<C> {
    /// Returns the job and the future of its answer. `function` runs again after a rollback.
    pub(super) fn new<T: Send + 'static>(
        kind: IoKind,
        function: impl FnMut(&C) -> Result<T, Fault> + Send + 'static,
    ) -> (Self, Pending<T>) {
        let (caller, answer) = oneshot::channel();
        let call = Call { kind, function, caller, outcome: None };
        (Self(Box::new(call)), Pending { kind, answer })
    }

    /// Returns false once the caller has stopped waiting: then the job need not run.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.is_wanted()
    }

    /// Runs the call. If it panics, that is its outcome.
    pub(super) fn run(&mut self, context: &C) {
        self.0.run(context);
    }

    /// Returns the fault with which the call failed.
    pub(super) fn fault(&self) -> Option<&Fault> {
        self.0.fault()
    }

    /// Replaces the outcome of the call.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.0.fail(fault);
    }

    /// Sends the outcome to the caller. `durable` is the outcome of the batch's commit or sync.
    pub(super) fn report(self, durable: Result<(), Fault>) {
        self.0.report(durable);
    }
}

impl<C> fmt::Debug for Job<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// A [`Call`] of any type of answer.
trait AnyCall<C>: Send {
    fn is_wanted(&self) -> bool;
    fn run(&mut self, context: &C);
    fn fault(&self) -> Option<&Fault>;
    fn fail(&mut self, fault: Fault);
    fn report(self: Box<Self>, durable: Result<(), Fault>);
}

struct Call<T, F> {
    kind: IoKind,
    function: F,
    caller: oneshot::Sender<Result<T, Fault>>,
    outcome: Option<Result<T, Fault>>,
}

impl<C, T, F> AnyCall<C> for Call<T, F>
where
    T: Send,
    F: FnMut(&C) -> Result<T, Fault> + Send,
{
    fn is_wanted(&self) -> bool {
        !self.caller.is_closed()
    }

    fn run(&mut self, context: &C) {
        // What the stores share between calls is consistent after any of their statements: a panic
        // leaves no invariant broken, and the other sessions of this thread must be served.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.function)(context)));
        let panicked = |_| Err(Fault::new(self.kind.unanswered(), QueueError::Panicked));
        self.outcome = Some(outcome.unwrap_or_else(panicked));
    }

    fn fault(&self) -> Option<&Fault> {
        self.outcome.as_ref()?.as_ref().err()
    }

    fn fail(&mut self, fault: Fault) {
        self.outcome = Some(Err(fault));
    }

    fn report(self: Box<Self>, durable: Result<(), Fault>) {
        // The call's own fault says more than that of its batch.
        let answer = match (self.outcome, durable) {
            (Some(Err(own)), _) => Err(own),
            (_, Err(fault)) => Err(fault),
            (Some(Ok(answer)), Ok(())) => Ok(answer),
            (None, Ok(())) => Err(Fault::new(Kind::Unavailable, QueueError::NotRun)),
        };
        // The caller may have stopped waiting.
        let _ = self.caller.send(answer);
    }
}

/// The answer to a [`Job`] that is queued or running.
pub(super) struct Pending<T> {
    kind: IoKind,
    answer: oneshot::Receiver<Result<T, Fault>>,
}

impl<T> Pending<T> {
    /// Waits for the answer, up to `deadline`.
    pub(super) async fn within(self, deadline: Duration) -> Result<T, Error> {
        let fault = match timeout(deadline, self.answer).await {
            Ok(Ok(answer)) => return Ok(answer?),
            Ok(Err(closed)) => Fault::new(self.kind.unanswered(), closed),
            Err(elapsed) => Fault::new(self.kind.unanswered(), elapsed),
        };
        Err(fault.into())
    }
}

impl IoKind {
    /// Returns what it means that a job has no answer: a write may have been made.
    fn unanswered(self) -> Kind {
        match self {
            Self::Read => Kind::Unavailable,
            Self::Write => Kind::OutcomeUnknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::store::conformance::runtime;

    const DEADLINE: Duration = Duration::from_secs(20);

    type Counter = Arc<AtomicUsize>;

    fn workers(counter: &Counter, max_batch: usize) -> WorkerThreads<Job<Counter>> {
        let counter = Arc::clone(counter);
        let handle = move |batch: Vec<Job<Counter>>| {
            assert!((1..=max_batch).contains(&batch.len()));
            for mut job in batch.into_iter().filter(Job::is_wanted) {
                job.run(&counter);
                job.report(Ok(()));
            }
        };
        WorkerThreads::start("test-worker", max_batch, [handle]).expect("a thread")
    }

    fn count(kind: IoKind) -> (Job<Counter>, Pending<usize>) {
        Job::new(kind, |counter: &Counter| Ok(counter.fetch_add(1, Ordering::Relaxed)))
    }

    /// Occupies the thread until the sender is dropped.
    fn block(workers: &WorkerThreads<Job<Counter>>) -> (mpsc::Sender<()>, Pending<()>) {
        let (release, released) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let (job, answer) = Job::new(IoKind::Read, move |_: &Counter| {
            begin.send(()).expect("the test waits");
            let _ = released.recv();
            Ok(())
        });
        workers.submit(job).expect("queued");
        begun.recv().expect("running");
        (release, answer)
    }

    #[test]
    fn panic_fails_its_call_only() {
        let workers = workers(&Counter::default(), 8);
        runtime().block_on(async {
            for (kind, is_expected) in [
                (IoKind::Read, (|error| matches!(error, Error::Unavailable(_))) as fn(&Error) -> _),
                (IoKind::Write, |error| matches!(error, Error::OutcomeUnknown(_))),
            ] {
                let (job, answer) =
                    Job::new(kind, |_| -> Result<(), Fault> { panic!("on purpose") });
                workers.submit(job).expect("queued");
                let error = answer.within(DEADLINE).await.expect_err("panicked");
                assert!(is_expected(&error), "{error:?}");
            }
            let (job, answer) = count(IoKind::Read);
            workers.submit(job).expect("queued");
            assert_eq!(answer.within(DEADLINE).await.expect("answered"), 0);
        });
    }

    #[test]
    fn full_queue_refuses_at_once() {
        let workers = workers(&Counter::default(), 1);
        let (release, _running) = block(&workers);
        let mut answers = Vec::new();
        for _ in 0..QUEUE {
            let (job, answer) = count(IoKind::Write);
            workers.submit(job).expect("queued");
            answers.push(answer);
        }
        let (job, _answer) = count(IoKind::Write);
        let fault = workers.submit(job).expect_err("full").fault;
        assert_eq!(
            (fault.kind(), fault.to_string()),
            (Kind::Unavailable, "the queue is full".into())
        );
        drop(release);
        runtime().block_on(async {
            for answer in answers {
                answer.within(DEADLINE).await.expect("answered");
            }
        });
    }

    #[test]
    fn deadline_ends_the_wait_and_skips_the_job() {
        let counter = Counter::default();
        let workers = workers(&counter, 8);
        let (release, _running) = block(&workers);
        runtime().block_on(async {
            let (job, answer) = count(IoKind::Write);
            workers.submit(job).expect("queued");
            let error = answer.within(Duration::ZERO).await.expect_err("elapsed");
            assert!(matches!(error, Error::OutcomeUnknown(_)), "{error:?}");
        });
        drop(release);
        drop(workers);
        assert_eq!(counter.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn drop_finishes_queued_jobs() {
        let counter = Counter::default();
        let workers = workers(&counter, 8);
        let (release, _running) = block(&workers);
        let answers: Vec<Pending<usize>> = (0..20)
            .map(|_| {
                let (job, answer) = count(IoKind::Write);
                workers.submit(job).expect("queued");
                answer
            })
            .collect();
        drop(release);
        drop(workers);
        assert_eq!(counter.load(Ordering::Relaxed), answers.len());
    }

    #[test]
    fn first_idle_thread_is_woken() {
        let (named, names) = mpsc::channel();
        let handlers = (0..3).map(|number| {
            let named = named.clone();
            move |_: Vec<()>| named.send(number).expect("the test waits")
        });
        let workers = WorkerThreads::start("test-worker", 1, handlers).expect("threads");
        for _ in 0..20 {
            while workers.queue.state().idle.len() < 3 {
                thread::yield_now();
            }
            workers.submit(()).expect("queued");
            assert_eq!(names.recv().expect("named"), 0);
        }
    }

    #[test]
    fn end_of_all_threads_is_reported_at_once() {
        let handle = |_: Vec<Job<Counter>>| panic!("on purpose");
        let workers = WorkerThreads::start("test-worker", 1, [handle]).expect("a thread");
        runtime().block_on(async {
            let (job, answer) = count(IoKind::Read);
            workers.submit(job).expect("queued");
            answer.within(DEADLINE).await.expect_err("dropped");
        });
        while workers.queue.state().threads > 0 {
            thread::yield_now();
        }
        let (job, _answer) = count(IoKind::Read);
        let fault = workers.submit(job).expect_err("ended").fault;
        assert_eq!(fault.to_string(), "the store's thread has ended");
    }
}
