//! The session files and their index: each operation of the store, on the calling thread.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::directory::{Directory, Fault, Kind, OpenError};
use super::format::Stored;
use super::index::Index;
use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Use};
use crate::session::policy::{Expired, Policy};
use crate::session::record::{Entry, Principal, Record};
use crate::store::{Created, Page, Swept, Want, over_at};
use crate::time::Timestamp;

/// A directory of sessions and the index of it.
///
/// Changes of one session must come from one thread: each reads a file and then replaces it.
#[derive(Debug)]
pub(super) struct SessionFiles {
    directory: Directory,
    index: Mutex<Index>,
}

impl SessionFiles {
    /// Opens the directory, and reads every file in it for the index.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let directory = Directory::open(path)?;
        let index = Index::of(&directory)?;
        Ok(Self { directory, index: Mutex::new(index) })
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Counts the expired entries.
    pub(super) fn count_expired(&self, now: Timestamp) -> u64 {
        self.index().expired(now).count() as u64
    }

    /// Returns the first `limit` expired entries, the earliest first.
    pub(super) fn expired(&self, now: Timestamp, limit: usize) -> Vec<Id> {
        self.index().expired(now).take(limit).collect()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn load(&self, id: Id) -> Result<Option<Entry>, Fault> {
        Ok(self.directory.read(id)?.map(|stored| stored.entry))
    }

    pub(super) fn create(
        &self,
        id: Id,
        record: &Record,
        policy: &Policy,
    ) -> Result<Created, Fault> {
        if self.directory.has(id)? {
            return Ok(Created::Exists);
        }
        let entry = Entry::Live(record.clone());
        self.put(id, &entry, over_at(&entry, policy))?;
        Ok(Created::Done)
    }

    fn put(&self, id: Id, entry: &Entry, over_at: Timestamp) -> Result<(), Fault> {
        let stored = Stored { entry: entry.clone(), over_at };
        // The file first: if that fails, the index still describes the old one.
        self.directory.write(id, &stored)?;
        self.index().put(id, &stored);
        Ok(())
    }

    fn delete(&self, id: Id) -> Result<(), Fault> {
        self.directory.remove(id)?;
        self.index().remove(id);
        Ok(())
    }

    pub(super) fn patch(
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
            // A log-out must work on a full disk: deleting the file needs no room, its marker would.
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

    pub(super) fn record_use(
        &self,
        id: Id,
        used: Use,
        policy: &Policy,
    ) -> Result<Option<Entry>, Fault> {
        let mut entry = self.load(id)?;
        if let Some(entry) = &mut entry
            && let Some(ends_at) = used.apply_to(entry, policy).map(|meta| policy.ends_at(meta))
        {
            self.put(id, entry, ends_at)?;
        }
        Ok(entry.map(|entry| Want::Meta.of(&entry)))
    }

    /// Removes an entry if it is still expired: it may have been used since it was found.
    pub(super) fn sweep(&self, id: Id, now: Timestamp, policy: &Policy) -> Result<Swept, Fault> {
        let mut swept = Swept::default();
        if !self.index().is_expired(id, now) {
            return Ok(swept);
        }
        match self.load(id) {
            Ok(Some(Entry::Live(record))) => swept.session(policy.expired(&record.meta)),
            Ok(Some(Entry::Ended { .. }) | None) => swept.tombstone(),
            // A file that cannot be read expires like any other.
            Err(fault) if fault.kind() == Kind::Corrupt => swept.session(Expired::Idle),
            Err(fault) => return Err(fault),
        }
        self.delete(id)?;
        Ok(swept)
    }

    /// Returns a page of sessions, without those whose file was removed in the meantime.
    pub(super) fn list(
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

    /// Removes a session, even if it cannot be read; leaves markers. Returns true if there was one.
    pub(super) fn remove(&self, id: Id) -> Result<bool, Fault> {
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
