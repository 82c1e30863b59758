//! Records in a file of SQLite: kept over restarts, and shared by processes of one machine.
//!
//! One thread writes, and commits in groups what has queued up meanwhile; a few read. An answer
//! goes out after its commit. No worker ever waits for the disk: it waits for a channel, and no
//! longer than the deadline.

mod fault;
mod reader;
mod row;
mod schema;
mod writer;

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::fault::Fault;
use self::reader::Readers;
pub use self::schema::OpenError;
use self::writer::Writer;
use super::owned::{OwnedChange, OwnedWant};
use super::{Answer, Created, Error, Page, Store, Want, over_at};
use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// The SQLite store.
#[derive(Debug)]
pub struct Sqlite {
    timeout: Duration,
    /// Before the writer: dropped first, so that the writer's is the last connection, which
    /// leaves one file behind.
    readers: Readers,
    writer: Writer,
}

impl Sqlite {
    /// Opens the file at `path`, or makes it: readable by its owner only, its directory too.
    /// Each call has `timeout` to answer.
    pub fn open(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        schema::make_file(path)?;
        // A lock that another process holds is to be told before the deadline.
        let patience = timeout / 2;
        let connection = schema::open(path, patience)?;
        let readers = Readers::open(path, patience)?;
        let writer = Writer::start(connection).map_err(|source| OpenError::Thread { source })?;
        Ok(Self { timeout, readers, writer })
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = self.readers.submit(query)?;
        match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(closed)) => Err(Error::Unavailable(closed.into())),
            Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let answer: oneshot::Receiver<Result<T, Fault>> = self.writer.submit(change)?;
        match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(closed)) => Err(Error::OutcomeUnknown(closed.into())),
            Err(elapsed) => Err(Error::OutcomeUnknown(elapsed.into())),
        }
    }
}

impl Store for Sqlite {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let want = OwnedWant::from(want);
        Box::pin(self.read(move |connection| row::load(connection, id, want.borrow())))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let entry = Entry::Live(record.clone());
        let over_at = over_at(&entry, policy);
        Box::pin(self.write(move |connection| {
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
        let change = OwnedChange::from(change);
        let want = OwnedWant::from(want);
        Box::pin(
            self.write(move |connection| patch(connection, id, change.borrow(), want.borrow())),
        )
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let policy = policy.clone();
        Box::pin(self.write(move |connection| {
            let mut entry = row::load(connection, id, Want::Meta)?;
            if let Some(meta) = entry.as_mut().and_then(|entry| used.apply_to(entry, &policy)) {
                row::write_use(connection, id, meta, policy.ends_at(meta))?;
            }
            Ok(entry)
        }))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(self.write(move |connection| {
            Ok(row::remove_session(connection, id)?.then_some(Replicated::NotAsked))
        }))
    }

    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let principal = principal.cloned();
        let after = cursor.and_then(Id::parse);
        Box::pin(
            self.read(move |connection| row::list(connection, principal.as_ref(), after, limit)),
        )
    }

    /// In small steps, so that changes get through between them.
    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut sessions = 0;
            loop {
                let swept = self.write(move |connection| row::sweep(connection, now)).await?;
                sessions += swept.sessions;
                if swept.is_last() {
                    return Ok(sessions);
                }
            }
        })
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(self.read(row::ping))
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
mod tests;
