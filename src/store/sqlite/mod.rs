//! Records in a file of SQLite: kept over restarts, and shared by processes of one machine.
//!
//! One thread writes, and commits in groups what has queued up meanwhile; a few read. An answer
//! goes out after its commit. No worker ever waits for the disk: it waits for a channel, and no
//! longer than the deadline.

mod database;
mod fault;
mod reader;
mod reserve;
mod row;
mod schema;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::database::{Check, Database, Identity};
use self::fault::{Fault, Trouble};
use self::reader::Readers;
pub use self::schema::OpenError;
use self::writer::{Need, Writer};
use super::owned::{OwnedChange, OwnedWant};
use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Unproven, Want, over_at};
use crate::random;
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// The SQLite store.
#[derive(Debug)]
pub struct Sqlite {
    timeout: Duration,
    database: Arc<Database>,
    check: Check,
    /// Before the writer: dropped first, so that the writer's is the last connection, which
    /// leaves one file behind.
    readers: Readers,
    writer: Writer,
}

impl Sqlite {
    /// Opens the file at `path`, or creates it: readable by its owner only, its directory too.
    /// Each call has `timeout` to answer.
    ///
    /// If the file is deleted or replaced while it is open, or damage is found in it, every call
    /// fails, and nothing that was acknowledged is lost by that.
    pub fn open(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        schema::make_file(path)?;
        let unknown = |source| OpenError::File { path: path.to_owned(), source };
        let identity = Identity::of(path).map_err(unknown)?;
        // A lock that another process holds is to be reported before the deadline.
        let patience = timeout / 2;
        let connection = schema::open(path, patience)?;
        let readers = Readers::open(path, patience)?;
        let database = Arc::new(Database::of(path, identity).map_err(unknown)?);
        let check = Check::start(path, patience, Arc::clone(&database))?;
        let writer = Writer::start(connection, path, Arc::clone(&database))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { timeout, database, check, readers, writer })
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let database = Arc::clone(&self.database);
        let answer = self.readers.submit(move |connection| database.query(|| query(connection)))?;
        match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(closed)) => Err(Error::Unavailable(closed.into())),
            Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        need: Need,
        change: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let answer: oneshot::Receiver<Result<T, Fault>> = self.writer.submit(need, change)?;
        match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(closed)) => Err(Error::OutcomeUnknown(closed.into())),
            Err(elapsed) => Err(Error::OutcomeUnknown(elapsed.into())),
        }
    }
}

impl Backend for Sqlite {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let want = OwnedWant::from(want);
        Box::pin(self.read(move |connection| row::load(connection, id, want.borrow())))
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
        Box::pin(
            self.read(move |connection| row::list(connection, principal.as_ref(), after, limit)),
        )
    }

    /// In small steps, so that changes get through between them.
    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut sessions = 0;
            loop {
                let swept =
                    self.write(Need::Nothing, move |connection| row::sweep(connection, now));
                let swept = swept.await?;
                sessions += swept.sessions;
                if swept.is_last() {
                    return Ok(sessions);
                }
            }
        })
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
            self.read(row::ping).await
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
