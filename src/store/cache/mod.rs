//! A store with a record cache in front of it. Callers that accept a slightly stale record read hot
//! sessions without a call to the store ([`Backend::cached`]).
//!
//! Every change goes to the store, and invalidates the cached record before and after. Changes by
//! others are reported from elsewhere: for Redis by its invalidation connection
//! (`redis/tracking.rs`), which holds the cache's lease.

mod lease;
mod records;

use std::fmt::Debug;
use std::sync::Arc;

pub use self::lease::Coherence;
pub use self::records::RecordCache;
use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// A store with a cache in front of it.
#[derive(Debug)]
pub struct Cached {
    store: Arc<dyn Store>,
    records: Arc<RecordCache>,
}

/// Invalidates the cached record when a change ends, also if its future is dropped.
struct Invalidation<'a> {
    records: &'a RecordCache,
    id: Id,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Known,
    /// The caller stopped waiting, or the store does not know.
    Unknown,
}

impl Cached {
    /// Puts `records` in front of `store`. The stores of one deployment in a process share one cache.
    pub fn new(store: Arc<dyn Store>, records: Arc<RecordCache>) -> Self {
        Self { store, records }
    }

    async fn load_entry(&self, id: Id, want: Want<'_>) -> Result<Option<Entry>, Error> {
        let Some(ticket) = self.records.ticket(id) else {
            return self.store.load(id, want).await;
        };
        let entry = self.store.load(id, Want::Values).await?;
        if let Some(entry) = &entry {
            self.records.put(id, entry, ticket);
        }
        Ok(entry.map(|entry| want.of(&entry)))
    }

    /// Makes a change, and invalidates the record before and after it.
    fn invalidating<'a, T: 'a>(
        &'a self,
        id: Id,
        change: impl FnOnce() -> Answer<'a, T>,
    ) -> Answer<'a, T> {
        self.records.invalidate(id);
        // Created before the future is first polled: the store may have begun the change already.
        let mut invalidation =
            Invalidation { records: &self.records, id, outcome: Outcome::Unknown };
        let answer = change();
        Box::pin(async move {
            let answer = answer.await;
            if !matches!(answer, Err(Error::OutcomeUnknown(_))) {
                invalidation.outcome = Outcome::Known;
            }
            drop(invalidation);
            answer
        })
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        match self.outcome {
            Outcome::Known => self.records.invalidate(self.id),
            Outcome::Unknown => self.records.mark_uncertain(self.id),
        }
    }
}

impl Backend for Cached {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        Box::pin(self.load_entry(id, want))
    }

    fn cached(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        self.records.get(id, want)
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        self.invalidating(id, || self.store.create(id, record, policy))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        self.invalidating(id, || self.store.patch(id, change, want))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        self.invalidating(id, || self.store.record_use(id, used, policy))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        self.invalidating(id, || self.store.remove(id))
    }

    fn unproven(&self) -> Unproven {
        self.store.unproven()
    }
}

impl Store for Cached {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        self.store.list(principal, cursor, limit)
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, u64> {
        self.store.expired(now)
    }

    /// Leaves the cache alone: the policy rejects expired records wherever they come from.
    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept> {
        self.store.sweep(now, policy)
    }

    fn exchange_keys<'a>(
        &'a self,
        own: &'a [Fingerprint],
        now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        self.store.exchange_keys(own, now)
    }

    fn ping(&self) -> Answer<'_, ()> {
        self.store.ping()
    }

    fn probe(&self, now: Timestamp) -> Answer<'_, ()> {
        self.store.probe(now)
    }

    fn server_time(&self) -> Answer<'_, Option<Timestamp>> {
        self.store.server_time()
    }
}

#[cfg(test)]
mod tests;
