//! The cached records, and the stamps that keep stale ones out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::lease::{Coherence, Lease};
use crate::session::id::Id;
use crate::session::record::{Entry, Record, size_of};
use crate::store::Want;

/// A cache of records, shared by all workers of this process.
///
/// A reader that wants to fill the cache takes a [`Ticket`] before it asks the store. A change of any
/// record of the same shard, by this process or another, voids the ticket. So a record that was read
/// before a change is never cached after it.
#[derive(Debug)]
pub struct RecordCache {
    shards: Vec<Mutex<Shard>>,
    coherence: Coherence,
    /// Limits for how long records are served. Not used if the cache owns the records.
    pub(crate) lease: Lease,
}

struct Shard {
    slots: Cache<Id, Slot, ByBytes>,
    /// Incremented by every change.
    stamp: u64,
    /// Records that must not be cached until then, because a change of them may still be made.
    uncertain: HashMap<Id, Instant>,
    /// The same for all records of the shard.
    all_uncertain_until: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Slot {
    Record(Arc<Entry>),
    /// The record exceeds [`MAX_RECORD`]. Remembered, so that reads of a few values do not load all
    /// of it each time.
    TooLarge,
}

#[derive(Clone, Debug)]
struct ByBytes;

/// Permission to cache a record that is read from the store after this was issued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket(u64);

/// Maximum size of a cached record, in bytes of values.
const MAX_RECORD: usize = 64 * 1024;

/// Approximate size of a record without its values, in bytes.
const OVERHEAD: usize = 512;

const SHARDS: usize = 64;

/// How long a change with an unknown outcome may take to be made, if nothing reports it.
const UNCERTAIN_FOR: Duration = Duration::from_mins(10);

/// Maximum number of uncertain records of a shard; beyond it, all of the shard is uncertain.
const MAX_UNCERTAIN: usize = 1024;

impl RecordCache {
    /// Creates a cache for records of about `max_bytes` in total.
    pub fn new(max_bytes: usize, coherence: Coherence) -> Self {
        let room = max_bytes / SHARDS;
        let shard = |_| {
            Mutex::new(Shard {
                slots: Cache::with_weighter(room / 2048 + 1, room as u64, ByBytes),
                stamp: 0,
                uncertain: HashMap::new(),
                all_uncertain_until: None,
            })
        };
        Self { shards: (0..SHARDS).map(shard).collect(), coherence, lease: Lease::default() }
    }

    pub(super) fn get(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        if !self.is_served() {
            return None;
        }
        let slot = self.shard(id).slots.get(&id).cloned();
        match slot? {
            Slot::Record(entry) => Some(want.of(&entry)),
            Slot::TooLarge => None,
        }
    }

    /// Returns permission to cache the record of `id` that is read from the store next; `None` if it
    /// must not be cached.
    ///
    /// Drops a cached record, and voids other tickets: the caller asks the store because the record
    /// may be stale, and other readers may have read the same version.
    pub(super) fn ticket(&self, id: Id) -> Option<Ticket> {
        if !self.is_served() {
            return None;
        }
        let mut shard = self.shard(id);
        match shard.slots.get(&id) {
            Some(Slot::TooLarge) => return None,
            Some(Slot::Record(_)) => {
                shard.stamp += 1;
                shard.slots.remove(&id);
            }
            None => {}
        }
        Some(Ticket(shard.stamp))
    }

    /// Caches a record that was read with `ticket`, unless a change voided it.
    pub(super) fn put(&self, id: Id, entry: &Entry, ticket: Ticket) {
        let slot = match entry {
            Entry::Live(record) if bytes_of(record) > MAX_RECORD => Slot::TooLarge,
            Entry::Live(_) => Slot::Record(Arc::new(entry.clone())),
            // That a session has ended is read from the store only.
            Entry::Ended { .. } => return,
        };
        let mut shard = self.shard(id);
        if shard.stamp == ticket.0 && !shard.is_uncertain(id) {
            shard.slots.insert(id, slot);
        }
    }

    /// Drops a record that has changed or is about to.
    pub(crate) fn invalidate(&self, id: Id) {
        let mut shard = self.shard(id);
        shard.stamp += 1;
        shard.slots.remove(&id);
    }

    /// Drops a record that may still change at an unknown time, and keeps it out of the cache.
    pub(super) fn mark_uncertain(&self, id: Id) {
        self.invalidate(id);
        if self.coherence == Coherence::Leased {
            // The holder of the lease receives an invalidation when the change is made.
            return;
        }
        let now = Instant::now();
        let mut shard = self.shard(id);
        shard.uncertain.retain(|_, until| *until > now);
        if shard.uncertain.len() < MAX_UNCERTAIN {
            shard.uncertain.insert(id, now + UNCERTAIN_FOR);
        } else {
            shard.all_uncertain_until = Some(now + UNCERTAIN_FOR);
        }
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.stamp += 1;
            shard.slots.clear();
        }
    }

    /// Returns true if cached records may be served now.
    pub(crate) fn is_served(&self) -> bool {
        match self.coherence {
            Coherence::Owned => true,
            Coherence::Leased => self.lease.runs(),
        }
    }

    /// Returns the approximate size of all records, in bytes.
    #[cfg(test)]
    pub(crate) fn weight(&self) -> u64 {
        let weight = |shard: &Mutex<Shard>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).slots.weight()
        };
        self.shards.iter().map(weight).sum()
    }

    fn shard(&self, id: Id) -> MutexGuard<'_, Shard> {
        // Ids are random in every byte.
        let [first, ..] = id.as_bytes();
        let number = usize::from(*first) % SHARDS;
        let shard = self.shards.get(number).expect("a remainder is below the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn is_uncertain(&self, id: Id) -> bool {
        let now = Instant::now();
        let holds = |until: &Instant| *until > now;
        self.all_uncertain_until.as_ref().is_some_and(holds)
            || self.uncertain.get(&id).is_some_and(holds)
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shard({} records)", self.slots.len())
    }
}

/// Returns the size of the values and of the held cookies, which are kept as text and parsed.
fn bytes_of(record: &Record) -> usize {
    size_of(&record.values) + 2 * record.meta.held_size()
}

impl Weighter<Id, Slot> for ByBytes {
    fn weight(&self, _: &Id, slot: &Slot) -> u64 {
        let bytes = match slot {
            Slot::Record(entry) => match &**entry {
                Entry::Live(record) => bytes_of(record) + record.values.len() * 64,
                Entry::Ended { .. } => 0,
            },
            Slot::TooLarge => 0,
        };
        (OVERHEAD + bytes) as u64
    }
}
