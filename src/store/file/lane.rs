//! A thread, and the queue of what it does.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::Shared;
use super::directory::Fault;

const QUEUE: usize = 1024;

/// How many changes share one `fsync` of the directory at most.
const GROUP: usize = 64;

type Work = Box<dyn FnOnce(&Shared) -> Report + Send>;

/// What tells the asker, once what was renamed or removed is on disk.
type Report = Box<dyn FnOnce(Result<(), Fault>)>;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    Reads,
    Writes,
}

/// One thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Lane {
    queue: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    pub(super) fn start(duty: Duty, shared: &Arc<Shared>) -> io::Result<Self> {
        let (queue, work) = sync_channel(QUEUE);
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new();
        let thread = match duty {
            Duty::Reads => {
                thread.name("file-reader".to_owned()).spawn(move || read(&shared, &work))
            }
            Duty::Writes => {
                thread.name("file-writer".to_owned()).spawn(move || write(&shared, &work))
            }
        }?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands work over. Where its asker has gone before its turn it is not done.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Fault> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
        let (asker, answer) = oneshot::channel();
        let work: Work = Box::new(move |shared| {
            if asker.is_closed() {
                return Box::new(|_| {});
            }
            let done = work(shared);
            Box::new(move |synced| {
                // Where the asker has gone, nobody misses the answer.
                let _ = asker.send(done.and_then(|answer| synced.map(|()| answer)));
            })
        });
        match self.queue.as_ref().ok_or_else(Fault::ended)?.try_send(work) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(Fault::busy()),
            Err(TrySendError::Disconnected(_)) => Err(Fault::ended()),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has been reported by the panic.
            let _ = thread.join();
        }
    }
}

fn read(shared: &Shared, queue: &Receiver<Work>) {
    while let Ok(work) = queue.recv() {
        work(shared)(Ok(()));
    }
}

fn write(shared: &Shared, queue: &Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let group = std::iter::once(first).chain(queue.try_iter().take(GROUP - 1));
        let changes = shared.directory.changes();
        let reports: Vec<Report> = group.map(|work| work(shared)).collect();
        // Another thread's change may be synced along; none of ours is left out.
        let synced =
            if changes == shared.directory.changes() { Ok(()) } else { shared.directory.sync() };
        for report in reports {
            report(synced.clone());
        }
    }
}
