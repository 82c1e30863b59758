//! The thread that writes: takes what is queued, makes it one transaction, and answers after its
//! commit.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::database::Database;
use super::fault::{Fault, Kind, Trouble};
use super::reserve::Reserve;

const QUEUE: usize = 1024;
/// How many changes share one commit at most.
const GROUP: usize = 256;

/// What a change needs of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Room for what it adds.
    Room,
    /// Nothing: it only removes. It is made on a full disk too.
    Nothing,
}

/// A change and the caller that waits for it.
struct Job<T, F> {
    need: Need,
    change: F,
    asker: oneshot::Sender<Result<T, Fault>>,
    made: Option<Result<T, Fault>>,
}

/// A [`Job`] of any type.
trait Work: Send {
    fn need(&self) -> Need;

    /// Whether the caller still waits.
    fn is_wanted(&self) -> bool;

    /// Makes the change, once more if the transaction that had it was rolled back.
    fn make(&mut self, connection: &Connection);

    /// Its own fault, if it could not be made.
    fn fault(&self) -> Option<&Fault>;

    /// Answers the caller once it is known what became of the transaction.
    fn report(self: Box<Self>, committed: Result<(), Fault>);
}

type Group = Vec<Box<dyn Work>>;

impl<T, F> Work for Job<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T, Fault> + Send,
{
    fn need(&self) -> Need {
        self.need
    }

    fn is_wanted(&self) -> bool {
        !self.asker.is_closed()
    }

    fn make(&mut self, connection: &Connection) {
        self.made = Some((self.change)(connection));
    }

    fn fault(&self) -> Option<&Fault> {
        self.made.as_ref()?.as_ref().err()
    }

    fn report(self: Box<Self>, committed: Result<(), Fault>) {
        // Its own fault says more than the group's.
        let answer = match (self.made, committed) {
            (Some(Err(own)), _) => Err(own),
            (_, Err(fault)) => Err(fault),
            (Some(Ok(answer)), Ok(())) => Ok(answer),
            (None, Ok(())) => Err(Fault::unavailable(Trouble::RolledBack)),
        };
        // If the caller has gone, no one misses the answer.
        let _ = self.asker.send(answer);
    }
}

/// The one writer. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Box<dyn Work>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        path: &Path,
        database: Arc<Database>,
    ) -> io::Result<Self> {
        let (queue, work) = sync_channel(QUEUE);
        let reserve = Reserve::of(path);
        let committer = Committer { connection, database, reserve };
        let thread = thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || committer.run(&work))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a change. It writes by its last statement alone, so that it is made wholly or not
    /// at all, and it may be made again after a rollback. One whose caller has gone before its
    /// turn is not made.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        need: Need,
        change: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
        let (asker, answer) = oneshot::channel();
        let work: Box<dyn Work> = Box::new(Job { need, change, asker, made: None });
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

/// What the thread has.
struct Committer {
    connection: Connection,
    database: Arc<Database>,
    reserve: Reserve,
}

impl Committer {
    fn run(mut self, queue: &Receiver<Box<dyn Work>>) {
        while let Ok(first) = queue.recv() {
            let group = std::iter::once(first).chain(queue.try_iter().take(GROUP - 1));
            let group = group.filter(|work| work.is_wanted()).collect();
            self.settle(group);
        }
        if self.database.in_place(Kind::Unavailable).is_err() {
            // Another process may have opened what is there now. SQLite itself works the log in
            // at the close, unless that is so.
            return;
        }
        // What is in the log is safe there too; this spares the next start the reading of it.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Commits a group, and answers it. On a full disk what only removes still goes through.
    fn settle(&mut self, mut group: Group) {
        if !self.reserve.is_kept() {
            group = refuse(group, &Fault::full());
        }
        let mut committed = self.commit(&mut group);
        if is_full(&committed) {
            self.work_log_in();
            committed = self.commit(&mut group);
        }
        if let Err(full) = &committed
            && is_full(&committed)
        {
            group = refuse(group, full);
            committed = self.commit(&mut group);
            if is_full(&committed) && self.reserve.give_up() {
                self.work_log_in();
                committed = self.commit(&mut group);
            }
        }
        report(group, &committed);
    }

    /// Makes the group's changes in one transaction. After [`Kind::Full`] all of it was rolled
    /// back, and may be tried again.
    fn commit(&self, group: &mut Group) -> Result<(), Fault> {
        if group.is_empty() {
            return Ok(());
        }
        self.database.sound()?;
        self.database.in_place(Kind::Unavailable)?;
        let committed = self.transact(group).inspect_err(|fault| self.database.note(fault));
        if !self.connection.is_autocommit() {
            // The fault has been noted; there is no more to say.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        committed?;
        // A commit to a file that is gone from its path is lost at the next start.
        self.database.in_place(Kind::OutcomeUnknown)
    }

    fn transact(&self, group: &mut Group) -> Result<(), Fault> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for work in group {
            work.make(&self.connection);
            if let Some(fault) = work.fault()
                && matches!(fault.kind(), Kind::Full | Kind::Damaged)
            {
                return Err(fault.clone());
            }
            // Some errors make SQLite roll back the whole of it, what others did included.
            if self.connection.is_autocommit() {
                return Err(Fault::unavailable(Trouble::RolledBack));
            }
        }
        self.connection.execute_batch("COMMIT").map_err(Fault::of_commit)
    }

    /// Works the log into the database as far as readers allow. If that was all of it, the next
    /// commit begins the log again and needs no room for it.
    fn work_log_in(&self) {
        // What cannot be done now shows in the commit that follows.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
    }
}

fn is_full(committed: &Result<(), Fault>) -> bool {
    committed.as_ref().is_err_and(|fault| fault.kind() == Kind::Full)
}

/// Answers those that need room; returns the others.
fn refuse(group: Group, fault: &Fault) -> Group {
    let (refused, kept) = group.into_iter().partition(|work| work.need() == Need::Room);
    report(refused, &Err(fault.clone()));
    kept
}

fn report(group: Group, committed: &Result<(), Fault>) {
    for work in group {
        work.report(committed.clone());
    }
}
