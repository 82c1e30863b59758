//! The records, their indexes, and the memory that they take.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::session::id::{Id, PublicId};
use crate::session::json::Json;
use crate::session::record::{Client, Entry, Key, Meta, Principal, Record, Values};
use crate::store::{Error, Want};
use crate::time::Timestamp;

/// The content of the store.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Boxed, so that the free slots of the tree's nodes are small.
    entries: BTreeMap<Id, Box<Stored>>,
    by_principal: BTreeSet<(Principal, Id)>,
    /// Unproven records, by their creation.
    unproven: BTreeSet<(Timestamp, Id)>,
    unproven_bytes: usize,
    bytes: usize,
}

/// The id of an evicted session, and its principal.
pub(super) type Evicted = (PublicId, Option<Principal>);

/// A stored entry.
#[derive(Debug)]
pub(super) struct Stored {
    kept: Kept,
    /// The first time at which it has expired.
    pub(super) over_at: Timestamp,
    /// Its memory in bytes, with its places in the indexes.
    bytes: usize,
}

#[derive(Debug)]
enum Kept {
    /// The values in the order of their keys. A slice takes less memory than a small tree.
    Live {
        meta: Meta,
        values: Box<[(Key, Json)]>,
    },
    Ended {
        until: Timestamp,
    },
}

impl State {
    /// The memory of all records in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, id: Id) -> Option<&Stored> {
        self.entries.get(&id).map(|stored| &**stored)
    }

    /// Replaces the entry of `id` by `stored`. If that exceeds `max_bytes`, unproven records are evicted, the oldest
    /// first; returns their ids and principals.
    ///
    /// # Errors
    /// [`Error::Full`] if that is not enough. Then nothing has changed.
    pub(super) fn replace(
        &mut self,
        id: Id,
        stored: Option<Stored>,
        max_bytes: usize,
    ) -> Result<Vec<Evicted>, Error> {
        let before = self.get(id);
        let freed = before.map_or(0, |stored| stored.bytes);
        let spared = before.filter(|stored| stored.unproven_since().is_some()).map_or(0, |_| freed);
        let needed = stored.as_ref().map_or(0, |stored| stored.bytes);
        let mut evicted = Vec::new();
        // A change that takes no more memory is made even above the bound.
        if needed > freed {
            let excess = (self.bytes - freed + needed).saturating_sub(max_bytes);
            if excess > self.unproven_bytes - spared {
                return Err(Error::Full(
                    format!("records take {} of {max_bytes} bytes", self.bytes).into(),
                ));
            }
            evicted = self.evict(excess, id);
        }
        self.take(id);
        if let Some(stored) = stored {
            self.put(id, Box::new(stored));
        }
        Ok(evicted)
    }

    fn evict(&mut self, excess: usize, spared: Id) -> Vec<Evicted> {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while freed < excess {
            let Some(id) = self.unproven.iter().map(|(_, id)| *id).find(|id| *id != spared) else {
                break;
            };
            let Some(stored) = self.take(id) else { break };
            freed += stored.bytes;
            if let Some(meta) = stored.meta() {
                evicted.push((meta.public_id(id), meta.principal.clone()));
            }
        }
        evicted
    }

    /// Removes the entry of `id`, also from the indexes and the count.
    pub(super) fn take(&mut self, id: Id) -> Option<Box<Stored>> {
        let stored = self.entries.remove(&id)?;
        self.bytes -= stored.bytes;
        if let Some(principal) = stored.principal() {
            self.by_principal.remove(&(principal.clone(), id));
        }
        if let Some(since) = stored.unproven_since() {
            self.unproven.remove(&(since, id));
            self.unproven_bytes -= stored.bytes;
        }
        Some(stored)
    }

    /// Inserts an entry under a free id.
    pub(super) fn put(&mut self, id: Id, stored: Box<Stored>) {
        self.bytes += stored.bytes;
        if let Some(principal) = stored.principal() {
            self.by_principal.insert((principal.clone(), id));
        }
        if let Some(since) = stored.unproven_since() {
            self.unproven.insert((since, id));
            self.unproven_bytes += stored.bytes;
        }
        self.entries.insert(id, stored);
    }

    /// Lists sessions by id after `last`, of one principal or of all.
    pub(super) fn sessions<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        last: Option<Id>,
    ) -> Box<dyn Iterator<Item = (Id, &'a Meta)> + 'a> {
        let meta = |stored: &'a Stored| match &stored.kept {
            Kept::Live { meta, .. } => Some(meta),
            Kept::Ended { .. } => None,
        };
        if let Some(principal) = principal {
            let first = (principal.clone(), last.unwrap_or(Id::from_bytes([0; Id::BYTES])));
            let ids = self.by_principal.range(first..).map(|(name, id)| (name, *id));
            let theirs = ids.take_while(move |(name, _)| *name == principal);
            let after = theirs.filter(move |(_, id)| Some(*id) != last);
            Box::new(after.filter_map(move |(_, id)| Some((id, meta(self.get(id)?)?))))
        } else {
            let start = last.map_or(Bound::Unbounded, Bound::Excluded);
            let all = self.entries.range((start, Bound::Unbounded));
            Box::new(all.filter_map(move |(id, stored)| Some((*id, meta(stored)?))))
        }
    }

    /// Lists what has expired at `now`.
    pub(super) fn over(&self, now: Timestamp) -> Vec<Id> {
        let over = self.entries.iter().filter(|(_, stored)| stored.over_at <= now);
        over.map(|(id, _)| *id).collect()
    }
}

impl Stored {
    pub(super) fn new(entry: Entry, over_at: Timestamp) -> Self {
        let kept = match entry {
            Entry::Live(Record { meta, values }) => {
                Kept::Live { meta, values: values.into_iter().collect() }
            }
            Entry::Ended { until } => Kept::Ended { until },
        };
        let mut stored = Self { kept, over_at, bytes: 0 };
        stored.bytes = stored.reckon();
        stored
    }

    /// Returns the entry with the requested values.
    pub(super) fn entry(&self, want: Want<'_>) -> Entry {
        let (meta, values) = match &self.kept {
            Kept::Ended { until } => return Entry::Ended { until: *until },
            Kept::Live { meta, values } => (meta.clone(), values),
        };
        let values = match want {
            Want::Meta => Values::new(),
            Want::Values => values.iter().cloned().collect(),
            Want::Value(key) | Want::Before(key) => {
                let found = values.binary_search_by(|(name, _)| name.cmp(key));
                found.ok().and_then(|at| values.get(at).cloned()).into_iter().collect()
            }
        };
        Entry::Live(Record { meta, values })
    }

    /// Replaces the meta of the same session.
    pub(super) fn set_meta(&mut self, meta: Meta) {
        if let Kept::Live { meta: stands, .. } = &mut self.kept {
            *stands = meta;
            self.bytes = self.reckon();
        }
    }

    pub(super) fn meta(&self) -> Option<&Meta> {
        match &self.kept {
            Kept::Live { meta, .. } => Some(meta),
            Kept::Ended { .. } => None,
        }
    }

    fn principal(&self) -> Option<&Principal> {
        self.meta()?.principal.as_ref()
    }

    fn unproven_since(&self) -> Option<Timestamp> {
        let meta = self.meta()?;
        meta.unproven.then_some(meta.created_at)
    }

    fn reckon(&self) -> usize {
        let own = SLOT + allocated(size_of::<Self>());
        let Kept::Live { meta, values } = &self.kept else { return own };
        let texts = values.iter().map(|(key, text)| {
            allocated(COUNTS + key.as_str().len()) + allocated(text.as_str().len())
        });
        let principal = meta
            .principal
            .as_ref()
            .map_or(0, |name| PRINCIPAL_SLOT + allocated(COUNTS + name.as_str().len()));
        let former = meta.former_principal.as_ref().map_or(0, |name| {
            allocated(size_of::<Principal>()) + allocated(COUNTS + name.as_str().len())
        });
        let client = meta.client.as_ref().map_or(0, |client| {
            allocated(size_of::<Client>()) + allocated(client.user_agent.len())
        });
        let held = meta.held.as_ref().map_or(0, |held| {
            // Its text, and the cookies that were parsed from it.
            allocated(COUNTS + size_of_val(&**held)) + 2 * allocated(held.as_str().len())
        });
        let unproven = if meta.unproven { UNPROVEN_SLOT } else { 0 };
        let values = allocated(size_of_val(&**values)) + texts.sum::<usize>();
        own + values + principal + former + held + client + unproven
    }
}

/// Size of the two counts of an `Arc`, in front of its text.
const COUNTS: usize = size_of::<Arc<[usize]>>();

/// Memory of a slot of a tree: a node has 11, of which about 7.6 are used if keys are inserted in random order,
/// and 6 in ascending order; one node in eight has twelve more pointers.
const SLOT: usize = 45;
const PRINCIPAL_SLOT: usize = 59;
const UNPROVEN_SLOT: usize = 59;

/// Memory that an allocator takes for a number of bytes: glibc's has a header of 8, steps of 16, and a minimum of
/// 32; others are similar.
fn allocated(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16).max(32),
    }
}
