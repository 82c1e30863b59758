//! The SQLite store: one database file, shared by the processes of a machine; survives restarts.
//!
//! One thread writes. It commits what is queued as one transaction (group commit), and answers after
//! the commit. A few threads read, each on a connection of its own, what a worker asks for in one turn of its
//! event loop. No async task waits for the disk: it waits for a channel, up to the deadline.

mod database;
mod fault;
mod reads;
mod reserve;
mod row;
mod schema;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::timeout;

use self::database::{Check, Database, Identity};
use self::fault::{Fault, Trouble};
use self::reads::Reads;
pub(crate) use self::schema::OpenError;
use self::writer::{Committer, Need, QueuedChange};
use super::owned::{OwnedChange, OwnedWant};
use super::worker_thread::{IoKind, Job, WorkerThreads};
use super::{
    Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want, over_at,
};
use crate::random;
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::tasks::Tasks;
use crate::time::Timestamp;

/// Maximum number of changes in one transaction.
const MAX_BATCH: usize = 256;

/// The SQLite store.
#[derive(Debug)]
pub(crate) struct Sqlite {
    timeout: Duration,
    check: Check,
    /// Declared, and so dropped, before the writer: the writer's connection must be the last to close,
    /// so that it can truncate the log and leave one file.
    reads: Reads,
    writer: WorkerThreads<QueuedChange>,
}

impl Sqlite {
    /// Opens the file at `path`, or creates it: readable by its owner only, its directory too.
    /// Each call has `timeout` to answer.
    ///
    /// If the file is deleted or replaced while it is open, or damage is found in it, every call
    /// fails, and nothing that was acknowledged is lost by that.
    pub(crate) fn open(path: &Path, timeout: Duration, tasks: Tasks) -> Result<Self, OpenError> {
        schema::make_file(path)?;
        let unknown = |source| OpenError::File { path: path.to_owned(), source };
        let identity = Identity::of(path).map_err(unknown)?;
        // A lock that another process holds is to be reported before the deadline.
        let patience = timeout / 2;
        let connection = schema::open(path, patience)?;
        let readers = reads::connect(path, patience)?;
        let database = Arc::new(Database::of(path, identity).map_err(unknown)?);
        let check = Check::start(path, patience, Arc::clone(&database))?;
        let reads = Reads::start(readers, &database, timeout, tasks)?;
        let mut committer = Committer::new(connection, path, Arc::clone(&database));
        let commit = move |changes| committer.commit_batch(changes);
        let writer = WorkerThreads::start("sqlite-writer", MAX_BATCH, [commit])
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { timeout, check, reads, writer })
    }

    /// Queues a change. It must write by its last statement alone: then it is made completely or not
    /// at all, and can be made again after a rollback.
    async fn write<T: Send + 'static>(
        &self,
        need: Need,
        change: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, answer) = Job::new(IoKind::Write, change);
        self.writer.submit(QueuedChange { need, job })?;
        answer.within(self.timeout).await
    }
}

impl Backend for Sqlite {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let want = OwnedWant::from(want);
        Box::pin(self.reads.gather(move |connection| row::load(connection, id, want.borrow())))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let entry = Entry::Live(record.clone());
        let over_at = over_at(&entry, policy);
        Box::pin(self.write(Need::Room, move |connection| {
            Ok(if row::insert(connection, id, &entry, over_at)? {
                Created::Done
            } else {
                Created::Exists
            })
        }))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let need = if change.patch.only_destroys() { Need::Nothing } else { Need::Room };
        let change = OwnedChange::from(change);
        let want = OwnedWant::from(want);
        Box::pin(
            self.write(need, move |connection| {
                patch(connection, id, change.borrow(), want.borrow())
            }),
        )
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let policy = policy.clone();
        Box::pin(self.write(Need::Room, move |connection| {
            let mut entry = row::load(connection, id, Want::Meta)?;
            if let Some(meta) = entry.as_mut().and_then(|entry| used.apply_to(entry, &policy)) {
                row::write_use(connection, id, meta, policy.ends_at(meta))?;
            }
            Ok(entry)
        }))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(self.write(Need::Nothing, move |connection| {
            Ok(row::remove_session(connection, id)?.then_some(Replicated::NotAsked))
        }))
    }

    fn unproven(&self) -> Unproven {
        Unproven::Kept
    }
}

impl Store for Sqlite {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let principal = principal.cloned();
        let after = cursor.and_then(Id::parse);
        let query =
            move |connection: &Connection| row::list(connection, principal.as_ref(), after, limit);
        Box::pin(self.reads.make(query))
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, u64> {
        Box::pin(self.reads.make(move |connection: &Connection| row::expired(connection, now)))
    }

    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept> {
        let policy = policy.clone();
        let sweep = move |connection: &Connection| row::sweep(connection, now, &policy);
        Box::pin(self.write(Need::Nothing, sweep))
    }

    fn exchange_keys<'a>(
        &'a self,
        _own: &'a [Fingerprint],
        _now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(std::future::ready(Ok(KnownKeys::NotKept)))
    }

    /// The answer waits for the check for damage that follows an opening.
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async {
            if timeout(self.timeout, self.check.done()).await.is_err() {
                return Err(Fault::unavailable(Trouble::BeingChecked).into());
            }
            self.reads.make(row::ping).await
        })
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        let id = Id::from_bytes(random::bytes());
        Box::pin(self.write(Need::Room, move |connection| row::probe(connection, id)))
    }
}

/// Everything is decided before the one statement that writes, so a change that is refused or
/// fails leaves nothing of itself in the transaction that it shares with others.
fn patch(
    connection: &Connection,
    id: Id,
    change: Change<'_>,
    want: Want<'_>,
) -> Result<Result<Applied, Refusal>, Fault> {
    let found = row::load(connection, id, Want::Values)?;
    let mut applied = match change.apply(found, want.before()) {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(applied) => applied,
    };
    match &applied.entry {
        Some(entry) => row::put(connection, id, entry, over_at(entry, change.policy))?,
        None => row::delete(connection, id)?,
    }
    want.narrow(&mut applied);
    Ok(Ok(applied))
}

#[cfg(test)]
pub(super) mod tests;
