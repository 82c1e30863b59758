//! Records in files of a directory, one for each session: kept over restarts, for one process.
//!
//! A few threads write: all changes of a session are one thread's, which so makes each of them in
//! one step, and several share one `fsync` of the directory. A few others read. No worker waits for
//! the disk: it waits for a channel, and no longer than the deadline.
//!
//! An index in memory knows which sessions there are, whose, and when each is over: about 200
//! bytes for each. It is made at the opening, by reading every file once.

mod directory;
mod format;
mod index;
mod lane;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

pub use self::directory::OpenError;
use self::directory::{Directory, Fault, Kind};
use self::format::Stored;
use self::index::{Index, Over};
use self::lane::{Duty, Lane};
use super::owned::{OwnedChange, OwnedWant};
use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Unproven, Want, over_at};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// The threads that read, and those that write.
const LANES: usize = 4;

/// How many files a sweep removes at once, between which other changes get their turn.
const SWEEP_AT_ONCE: usize = 256;

/// The store of files.
#[derive(Debug)]
pub struct Files {
    timeout: Duration,
    shared: Arc<Shared>,
    readers: Vec<Lane>,
    writers: Vec<Lane>,
}

#[derive(Debug)]
struct Shared {
    directory: Directory,
    index: Mutex<Index>,
}

impl Files {
    /// Opens the directory, or makes it: for its owner alone, and for one process at a time. Reads
    /// every file in it. Each call has `timeout` to answer.
    pub fn open(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        let directory = Directory::open(path)?;
        let index = Index::of(&directory)?;
        let shared = Arc::new(Shared { directory, index: Mutex::new(index) });
        let lanes = |duty| -> Result<Vec<Lane>, OpenError> {
            (0..LANES).map(|_| Lane::start(duty, &shared).map_err(OpenError::Thread)).collect()
        };
        let (readers, writers) = (lanes(Duty::Reads)?, lanes(Duty::Writes)?);
        Ok(Self { timeout, shared, readers, writers })
    }

    async fn read<T: Send + 'static>(
        &self,
        id: Id,
        query: impl FnOnce(&Shared) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = lane(&self.readers, id)?.submit(query)?;
        self.answered(answer).await?.map_err(Error::Unavailable)
    }

    async fn write<T: Send + 'static>(
        &self,
        id: Id,
        change: impl FnOnce(&Shared) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let answer = lane(&self.writers, id)?.submit(change)?;
        self.answered(answer).await?.map_err(Error::OutcomeUnknown)
    }

    /// The answer; within it, why there is none.
    async fn answered<T>(
        &self,
        answer: oneshot::Receiver<Result<T, Fault>>,
    ) -> Result<Result<T, super::Cause>, Error> {
        match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(Ok(answer?)),
            Ok(Err(closed)) => Ok(Err(closed.into())),
            Err(elapsed) => Ok(Err(elapsed.into())),
        }
    }
}

/// Ids are random, each byte of them.
fn lane(lanes: &[Lane], id: Id) -> Result<&Lane, Error> {
    let [first, ..] = id.as_bytes();
    let lane = lanes.get(usize::from(*first) % lanes.len().max(1));
    lane.ok_or_else(|| Error::Unavailable("the store has no thread".into()))
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, id: Id) -> Result<Option<Entry>, Fault> {
        Ok(self.directory.read(id)?.map(|stored| stored.entry))
    }

    fn put(&self, id: Id, entry: &Entry, over_at: Timestamp) -> Result<(), Fault> {
        let stored = Stored { entry: entry.clone(), over_at };
        self.directory.write(id, &stored)?;
        self.index().put(id, &stored);
        Ok(())
    }

    fn delete(&self, id: Id) -> Result<(), Fault> {
        self.directory.remove(id)?;
        self.index().remove(id);
        Ok(())
    }

    fn patch(
        &self,
        id: Id,
        change: Change<'_>,
        want: Want<'_>,
    ) -> Result<Result<Applied, Refusal>, Fault> {
        let mut applied = match change.apply(self.load(id)?, want.before()) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(applied) => applied,
        };
        let put = match &applied.entry {
            Some(entry) => self.put(id, entry, over_at(entry, change.policy)),
            None => self.delete(id),
        };
        match put {
            // On a full disk a log-out goes without its marker: deleting a file needs no room.
            Err(full)
                if full.kind() == Kind::Full
                    && matches!(applied.entry, Some(Entry::Ended { .. })) =>
            {
                self.delete(id)?;
                applied.entry = None;
            }
            put => put?,
        }
        want.narrow(&mut applied);
        Ok(Ok(applied))
    }

    fn record_use(&self, id: Id, used: Use, policy: &Policy) -> Result<Option<Entry>, Fault> {
        let mut entry = self.load(id)?;
        if let Some(entry) = &mut entry
            && let Some(ends_at) = used.apply_to(entry, policy).map(|meta| policy.ends_at(meta))
        {
            self.put(id, entry, ends_at)?;
        }
        Ok(entry.map(|entry| Want::Meta.of(&entry)))
    }

    /// Removes a session that is over; it may have been used since that was found.
    fn sweep(&self, id: Id, now: Timestamp) -> Result<bool, Fault> {
        let is_over = self.index().is_over(id, now);
        if is_over {
            self.delete(id)?;
        }
        Ok(is_over)
    }

    /// Returns a page of sessions; those whose file was removed in the meantime are left out.
    fn list(
        &self,
        principal: Option<&Principal>,
        after: Option<Id>,
        limit: usize,
    ) -> Result<Page, Fault> {
        let (ids, next) = self.index().page(principal, after, limit);
        let mut page = Page { next: next.map(|id| id.to_string()), ..Page::default() };
        for id in ids {
            match self.load(id) {
                Ok(Some(Entry::Live(record))) => page.sessions.push((id, record.meta)),
                Ok(Some(Entry::Ended { .. }) | None) => {}
                Err(fault) if fault.kind() == Kind::Corrupt => page.unreadable.push(id),
                Err(fault) => return Err(fault),
            }
        }
        Ok(page)
    }

    /// Removes a session, also one that cannot be read, and no marker. Returns whether it was
    /// there.
    fn remove(&self, id: Id) -> Result<bool, Fault> {
        let is_session = match self.load(id) {
            Ok(entry) => matches!(entry, Some(Entry::Live(_))),
            Err(fault) if fault.kind() == Kind::Corrupt => true,
            Err(fault) => return Err(fault),
        };
        if is_session {
            self.delete(id)?;
        }
        Ok(is_session)
    }
}

impl Backend for Files {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let want = OwnedWant::from(want);
        Box::pin(
            self.read(id, move |shared| Ok(shared.load(id)?.map(|entry| want.borrow().of(&entry)))),
        )
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let entry = Entry::Live(record.clone());
        let over_at = over_at(&entry, policy);
        Box::pin(self.write(id, move |shared| {
            if shared.directory.has(id)? {
                return Ok(Created::Exists);
            }
            shared.put(id, &entry, over_at)?;
            Ok(Created::Done)
        }))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let (change, want) = (OwnedChange::from(change), OwnedWant::from(want));
        Box::pin(self.write(id, move |shared| shared.patch(id, change.borrow(), want.borrow())))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let policy = policy.clone();
        Box::pin(self.write(id, move |shared| shared.record_use(id, used, &policy)))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(
            self.write(id, move |shared| Ok(shared.remove(id)?.then_some(Replicated::NotAsked))),
        )
    }

    fn unproven(&self) -> Unproven {
        Unproven::Kept
    }
}

impl Store for Files {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let principal = principal.cloned();
        let after = cursor.and_then(Id::parse);
        let any = after.unwrap_or(Id::from_bytes([0; Id::BYTES]));
        Box::pin(self.read(any, move |shared| shared.list(principal.as_ref(), after, limit)))
    }

    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut removed = 0;
            let mut after = None;
            loop {
                let group = self.shared.index().over(now, after, SWEEP_AT_ONCE);
                let Some(last) = group.last() else { return Ok(removed) };
                after = Some((last.ended_at, last.id));
                let mut answers = Vec::with_capacity(group.len());
                // Together, so that they share an `fsync`.
                for Over { id, is_session, .. } in group {
                    let sweep = move |shared: &Shared| shared.sweep(id, now);
                    answers.push((lane(&self.writers, id)?.submit(sweep)?, is_session));
                }
                for (answer, is_session) in answers {
                    let swept = self.answered(answer).await?.map_err(Error::OutcomeUnknown)?;
                    removed += u64::from(swept && is_session);
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

    fn ping(&self) -> Answer<'_, ()> {
        let any = Id::from_bytes([0; Id::BYTES]);
        Box::pin(self.read(any, |shared| shared.directory.check()))
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        let any = Id::from_bytes([0; Id::BYTES]);
        Box::pin(self.write(any, |shared| shared.directory.probe()))
    }
}

#[cfg(test)]
pub(super) mod tests;
