//! The index of all session files, by id, principal and expiry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use tracing::warn;

use super::directory::{Directory, OpenError};
use super::format::Stored;
use crate::session::id::Id;
use crate::session::record::{Entry, Principal};
use crate::time::Timestamp;

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Id, Known>,
    by_principal: HashMap<Principal, BTreeSet<Id>>,
    by_expiry: BTreeSet<(Timestamp, Id)>,
}

#[derive(Debug)]
struct Known {
    over_at: Timestamp,
    principal: Option<Principal>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Session,
    Marker,
}

impl Index {
    /// Builds the index from all files. Unreadable ones are logged and left in place.
    pub(super) fn of(directory: &Directory) -> Result<Self, OpenError> {
        let mut index = Self::default();
        for id in directory.ids()? {
            match directory.read(id) {
                Ok(Some(stored)) => index.put(id, &stored),
                Ok(None) => {}
                Err(fault) => warn!(session = %id, ?fault, "failed to read a session file"),
            }
        }
        Ok(index)
    }

    pub(super) fn put(&mut self, id: Id, stored: &Stored) {
        // Its principal or its expiry may have changed, and so its places.
        self.remove(id);
        let (principal, kind) = match &stored.entry {
            Entry::Live(record) => (record.meta.principal.clone(), Kind::Session),
            Entry::Ended { .. } => (None, Kind::Marker),
        };
        if let Some(principal) = &principal {
            self.by_principal.entry(principal.clone()).or_default().insert(id);
        }
        self.by_expiry.insert((stored.over_at, id));
        self.entries.insert(id, Known { over_at: stored.over_at, principal, kind });
    }

    pub(super) fn remove(&mut self, id: Id) {
        let Some(known) = self.entries.remove(&id) else { return };
        self.by_expiry.remove(&(known.over_at, id));
        if let Some(principal) = known.principal
            && let Some(ids) = self.by_principal.get_mut(&principal)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_principal.remove(&principal);
            }
        }
    }

    /// Returns at most `limit` sessions and, if there are more, the last of them as the cursor.
    pub(super) fn page(
        &self,
        principal: Option<&Principal>,
        after: Option<Id>,
        limit: usize,
    ) -> (Vec<Id>, Option<Id>) {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let none = BTreeSet::new();
        // One more than requested shows whether there is a next page.
        let mut ids: Vec<Id> = if let Some(principal) = principal {
            let theirs = self.by_principal.get(principal).unwrap_or(&none);
            theirs.range(range).copied().take(limit.saturating_add(1)).collect()
        } else {
            let sessions = self.entries.range(range).filter(|(_, known)| known.is_session());
            sessions.map(|(id, _)| *id).take(limit.saturating_add(1)).collect()
        };
        let more = ids.len() > limit;
        ids.truncate(limit);
        let next = if more { ids.last().copied() } else { None };
        (ids, next)
    }

    /// Returns the entries that have expired at `now`, the earliest first.
    pub(super) fn expired(&self, now: Timestamp) -> impl Iterator<Item = Id> {
        let expired = self.by_expiry.iter().take_while(move |(over_at, _)| *over_at <= now);
        expired.map(|(_, id)| *id)
    }

    pub(super) fn is_expired(&self, id: Id, now: Timestamp) -> bool {
        self.entries.get(&id).is_some_and(|known| known.over_at <= now)
    }
}

impl Known {
    fn is_session(&self) -> bool {
        self.kind == Kind::Session
    }
}
