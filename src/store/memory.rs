//! Records in this process: gone at exit, and the plainest reading of the contract.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::ready;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Answer, Created, Error, Page, Store, Want, over_at};
use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record, size_of};
use crate::time::Timestamp;

/// The memory store.
#[derive(Debug)]
pub struct Memory {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Id, Stored>,
    by_principal: HashMap<Principal, BTreeSet<Id>>,
    bytes: usize,
}

#[derive(Debug)]
struct Stored {
    entry: Entry,
    over_at: Timestamp,
}

impl Memory {
    /// How much the store holds where nobody says otherwise.
    pub const DEFAULT_MAX_BYTES: usize = 512 * 1024 * 1024;

    /// An empty store of at most `max_bytes`; beyond, [`Error::Full`].
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// No method panics while it holds the lock half way through a change, so a poisoned lock
    /// still guards a consistent state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let entry = self.state().entries.get(&id).map(|stored| want.of(&stored.entry));
        Box::pin(ready(Ok(entry)))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let mut state = self.state();
        let created = if state.entries.contains_key(&id) {
            Ok(Created::Exists)
        } else {
            let stored = Stored::live(record.clone(), policy);
            state.replace(id, Some(stored), self.max_bytes).map(|()| Created::Done)
        };
        Box::pin(ready(created))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let mut state = self.state();
        let before = state.entries.get(&id).map(|stored| stored.entry.clone());
        let patched = match change.apply(before, want.before()) {
            Err(refusal) => Ok(Err(refusal)),
            Ok(mut applied) => {
                let stored = applied.entry.clone().map(|entry| Stored::new(entry, change.policy));
                state.replace(id, stored, self.max_bytes).map(|()| {
                    want.narrow(&mut applied);
                    Ok(applied)
                })
            }
        };
        Box::pin(ready(patched))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let mut state = self.state();
        let entry = state.entries.get_mut(&id).map(|stored| {
            if let Some(meta) = used.apply_to(&mut stored.entry, policy) {
                stored.over_at = policy.ends_at(meta);
            }
            Want::Meta.of(&stored.entry)
        });
        Box::pin(ready(Ok(entry)))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        let mut state = self.state();
        let live = state.entries.get(&id).is_some_and(Stored::is_session);
        let removed = if live { state.replace(id, None, self.max_bytes) } else { Ok(()) };
        Box::pin(ready(removed.map(|()| live.then_some(Replicated::NotAsked))))
    }

    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let state = self.state();
        let start = match cursor.and_then(Id::parse) {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let range = (start, Bound::Unbounded);
        let none = BTreeSet::new();
        let page = match principal {
            Some(name) => {
                let ids = state.by_principal.get(name).unwrap_or(&none);
                let stored = ids.range(range).filter_map(|id| Some((id, state.entries.get(id)?)));
                page(stored, limit)
            }
            None => page(state.entries.range(range), limit),
        };
        Box::pin(ready(Ok(page)))
    }

    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        let mut state = self.state();
        let over = |(id, stored): (&Id, &Stored)| (stored.over_at <= now).then_some(*id);
        let ids: Vec<Id> = state.entries.iter().filter_map(over).collect();
        let mut removed = 0;
        for id in ids {
            removed += u64::from(state.entries.get(&id).is_some_and(Stored::is_session));
            // Removing makes room; it is never refused.
            let _ = state.replace(id, None, self.max_bytes);
        }
        Box::pin(ready(Ok(removed)))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}

fn page<'a>(stored: impl Iterator<Item = (&'a Id, &'a Stored)>, limit: usize) -> Page {
    let mut sessions = stored.filter_map(|(id, stored)| match &stored.entry {
        Entry::Live(record) => Some((*id, record.meta.clone())),
        Entry::Ended { .. } => None,
    });
    let page: Vec<_> = sessions.by_ref().take(limit).collect();
    let next = sessions.next().and_then(|_| page.last().map(|(id, _)| id.to_string()));
    Page { sessions: page, next }
}

impl State {
    /// Puts `stored` in the place of what stands under `id`, the index and the count with it.
    fn replace(&mut self, id: Id, stored: Option<Stored>, max_bytes: usize) -> Result<(), Error> {
        let freed = self.entries.get(&id).map_or(0, Stored::bytes);
        let needed = stored.as_ref().map_or(0, Stored::bytes);
        let bytes = self.bytes - freed + needed;
        if needed > freed && bytes > max_bytes {
            return Err(Error::Full);
        }
        self.bytes = bytes;
        if let Some(principal) =
            self.entries.remove(&id).and_then(|stored| stored.principal().cloned())
            && let Some(ids) = self.by_principal.get_mut(&principal)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_principal.remove(&principal);
            }
        }
        if let Some(stored) = stored {
            if let Some(principal) = stored.principal() {
                self.by_principal.entry(principal.clone()).or_default().insert(id);
            }
            self.entries.insert(id, stored);
        }
        Ok(())
    }
}

impl Stored {
    /// What a record costs beside its values, about.
    const OVERHEAD: usize = 512;

    fn live(record: Record, policy: &Policy) -> Self {
        Self::new(Entry::Live(record), policy)
    }

    fn new(entry: Entry, policy: &Policy) -> Self {
        let over_at = over_at(&entry, policy);
        Self { entry, over_at }
    }

    fn is_session(&self) -> bool {
        matches!(self.entry, Entry::Live(_))
    }

    fn principal(&self) -> Option<&Principal> {
        match &self.entry {
            Entry::Live(record) => record.meta.principal.as_ref(),
            Entry::Ended { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        Self::OVERHEAD
            + match &self.entry {
                Entry::Live(record) => size_of(&record.values) + record.values.len() * 64,
                Entry::Ended { .. } => 0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{Fresh, suite};

    suite!(|| Fresh::new(Memory::new(Memory::DEFAULT_MAX_BYTES), ()));
}
