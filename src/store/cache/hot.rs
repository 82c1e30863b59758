//! The records themselves, and what keeps an old one from being put there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::lease::{Coherence, Lease};
use crate::session::id::Id;
use crate::session::record::{Entry, size_of};
use crate::store::Want;

/// Records in this process, for all its workers.
///
/// Whoever reads a record to put it here takes a [`Ticket`] first; a change of any record of the
/// same shard, ours or another's, makes the ticket worthless. So what was read before a change is
/// never put here after it.
#[derive(Debug)]
pub struct Hot {
    shards: Vec<Mutex<Shard>>,
    coherence: Coherence,
    /// For how long; always, where the cache owns the records.
    pub lease: Lease,
}

struct Shard {
    held: Cache<Id, Held, Bytes>,
    /// Moved by every change.
    stamp: u64,
    /// Until when a record is not put here, because a change of it may still be made unseen.
    doubts: HashMap<Id, Instant>,
    /// The same, for all of them.
    doubtful_until: Option<Instant>,
}

/// What is held of a session.
#[derive(Clone, Debug)]
enum Held {
    Record(Arc<Entry>),
    /// It is too large; reading all of it again would be for nothing.
    TooLarge,
}

#[derive(Clone, Debug)]
struct Bytes;

/// The right to put what is read from now on into the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket(u64);

/// A record that is larger is not held.
const MAX_RECORD: usize = 64 * 1024;

/// What a record costs beside its values, about.
const OVERHEAD: usize = 512;

const SHARDS: usize = 64;

/// How long an unknown outcome may take to come about, where nobody tells us of it.
const DOUBT: Duration = Duration::from_mins(10);

/// How many sessions of a shard are doubtful one by one.
const MAX_DOUBTS: usize = 1024;

impl Hot {
    /// Room for records of `max_bytes` together.
    pub fn new(max_bytes: usize, coherence: Coherence) -> Self {
        let room = max_bytes / SHARDS;
        let shard = |_| {
            Mutex::new(Shard {
                held: Cache::with_weighter(room / 2048 + 1, room as u64, Bytes),
                stamp: 0,
                doubts: HashMap::new(),
                doubtful_until: None,
            })
        };
        Self { shards: (0..SHARDS).map(shard).collect(), coherence, lease: Lease::default() }
    }

    pub(super) fn get(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        if !self.is_served() {
            return None;
        }
        let held = self.shard(id).held.get(&id).cloned();
        match held? {
            Held::Record(entry) => Some(want.of(&entry)),
            Held::TooLarge => None,
        }
    }

    /// Returns the right to put the record of `id` here that is read from the store now; `None` if
    /// it is not to be kept.
    ///
    /// A record that is held is dropped: the store is asked because it may be too old. Tickets of
    /// readers that may have read the same old record become worthless with it.
    pub(super) fn ticket(&self, id: Id) -> Option<Ticket> {
        if !self.is_served() {
            return None;
        }
        let mut shard = self.shard(id);
        match shard.held.get(&id) {
            Some(Held::TooLarge) => return None,
            Some(Held::Record(_)) => {
                shard.stamp += 1;
                shard.held.remove(&id);
            }
            None => {}
        }
        Some(Ticket(shard.stamp))
    }

    /// Puts what was read with a ticket here, unless something has changed since.
    pub(super) fn put(&self, id: Id, entry: &Entry, ticket: Ticket) {
        let held = match entry {
            Entry::Live(record) if size_of(&record.values) > MAX_RECORD => Held::TooLarge,
            Entry::Live(_) => Held::Record(Arc::new(entry.clone())),
            Entry::Ended { .. } => return,
        };
        let mut shard = self.shard(id);
        if shard.stamp == ticket.0 && !shard.is_doubtful(id) {
            shard.held.insert(id, held);
        }
    }

    /// Forgets a session that has changed, or is about to.
    pub fn forget(&self, id: Id) {
        let mut shard = self.shard(id);
        shard.stamp += 1;
        shard.held.remove(&id);
    }

    /// Forgets a session of which nobody knows whether, or when, it changes.
    pub(super) fn doubt(&self, id: Id) {
        self.forget(id);
        if self.coherence == Coherence::Leased {
            // Whoever holds the lease is told when it does.
            return;
        }
        let now = Instant::now();
        let mut shard = self.shard(id);
        shard.doubts.retain(|_, until| *until > now);
        if shard.doubts.len() < MAX_DOUBTS {
            shard.doubts.insert(id, now + DOUBT);
        } else {
            shard.doubtful_until = Some(now + DOUBT);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.stamp += 1;
            shard.held.clear();
        }
    }

    /// Whether what is held may be told.
    pub fn is_served(&self) -> bool {
        match self.coherence {
            Coherence::Owned => true,
            Coherence::Leased => self.lease.runs(),
        }
    }

    /// How many bytes it holds, about.
    pub fn weight(&self) -> u64 {
        let weight = |shard: &Mutex<Shard>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).held.weight()
        };
        self.shards.iter().map(weight).sum()
    }

    fn shard(&self, id: Id) -> MutexGuard<'_, Shard> {
        // Ids are random, each byte of them.
        let [first, ..] = id.as_bytes();
        let number = usize::from(*first) % SHARDS;
        let shard = self.shards.get(number).expect("a remainder is below the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn is_doubtful(&self, id: Id) -> bool {
        let now = Instant::now();
        let holds = |until: &Instant| *until > now;
        self.doubtful_until.as_ref().is_some_and(holds) || self.doubts.get(&id).is_some_and(holds)
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shard({} records)", self.held.len())
    }
}

impl Weighter<Id, Held> for Bytes {
    fn weight(&self, _: &Id, held: &Held) -> u64 {
        let bytes = match held {
            Held::Record(entry) => match &**entry {
                Entry::Live(record) => size_of(&record.values) + record.values.len() * 64,
                Entry::Ended { .. } => 0,
            },
            Held::TooLarge => 0,
        };
        (OVERHEAD + bytes) as u64
    }
}
