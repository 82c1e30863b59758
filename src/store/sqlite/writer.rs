//! The thread that writes: takes what is queued, makes it one transaction, and answers after its
//! commit.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::fault::{Fault, Trouble};

const QUEUE: usize = 1024;
/// How many changes share one commit at most.
const GROUP: usize = 256;

/// A change. Given the connection, it is made; given a fault, it only has that to report.
type Work = Box<dyn FnOnce(Result<&Connection, Fault>) -> Option<Report> + Send>;

/// What tells the asker, once it is known what became of the transaction.
type Report = Box<dyn FnOnce(Result<(), Fault>)>;

/// The one writer. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (queue, work) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || run(&connection, &work))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands a change over. It writes by its last statement alone, so that it is made wholly or
    /// not at all. One whose asker has gone before its turn is not made.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
        let (asker, answer) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            if asker.is_closed() {
                return None;
            }
            let made = connection.and_then(change);
            Some(Box::new(move |committed| {
                // Its own fault says more than the group's. Where the asker has gone, nobody
                // misses the answer.
                let _ = asker.send(made.and_then(|answer| committed.map(|()| answer)));
            }))
        });
        let ended = Fault::unavailable(Trouble::ThreadEnded);
        match self.queue.as_ref().ok_or(ended)?.try_send(work) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(Fault::unavailable(Trouble::QueueFull)),
            Err(TrySendError::Disconnected(_)) => Err(Fault::unavailable(Trouble::ThreadEnded)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has been reported by the panic.
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, queue: &Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let group = std::iter::once(first).chain(queue.try_iter().take(GROUP - 1));
        let mut reports = Vec::new();
        let committed = commit(connection, group, &mut reports);
        for report in reports {
            report(committed.clone());
        }
    }
    // What is in the log is safe there too; this spares the next start the reading of it.
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
}

/// Makes the group's changes in one transaction.
fn commit(
    connection: &Connection,
    group: impl Iterator<Item = Work>,
    reports: &mut Vec<Report>,
) -> Result<(), Fault> {
    let mut state = connection.execute_batch("BEGIN IMMEDIATE").map_err(Fault::from);
    for work in group {
        reports.extend(work(state.clone().map(|()| connection)));
        // A full disk makes SQLite roll back the whole of it, what others did included.
        if state.is_ok() && connection.is_autocommit() {
            state = Err(Fault::unavailable(Trouble::RolledBack));
        }
    }
    let committed =
        state.and_then(|()| connection.execute_batch("COMMIT").map_err(Fault::of_commit));
    if !connection.is_autocommit() {
        // The commit has failed and has been reported; there is no more to say.
        let _ = connection.execute_batch("ROLLBACK");
    }
    committed
}
