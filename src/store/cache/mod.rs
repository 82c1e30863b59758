//! A store with a cache before it: hot sessions are read without asking the store, by callers that
//! can do with a record that may be a moment old ([`Backend::cached`]).
//!
//! Every change goes to the store, and what the cache holds of the session goes with it, before and
//! after. What others change is told from elsewhere: for Redis by its invalidation connection
//! (`redis/tracking.rs`), which holds the cache's lease.

mod hot;
mod lease;

use std::fmt::Debug;
use std::sync::Arc;

pub use self::hot::Hot;
pub use self::lease::{Coherence, Lease};
use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Unproven, Want};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// A store with a cache before it.
#[derive(Debug)]
pub struct Cached {
    store: Arc<dyn Store>,
    hot: Arc<Hot>,
}

/// A change that is being made: the session is forgotten when it is over, however it ends.
struct Changing<'a> {
    hot: &'a Hot,
    id: Id,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Known,
    /// Nobody waited for the answer, or none came.
    Unknown,
}

impl Cached {
    /// `store`, with `hot` before it. Stores of one deployment in one process share one `hot`.
    pub fn new(store: Arc<dyn Store>, hot: Arc<Hot>) -> Self {
        Self { store, hot }
    }

    async fn load_entry(&self, id: Id, want: Want<'_>) -> Result<Option<Entry>, Error> {
        let Some(ticket) = self.hot.ticket(id) else {
            return self.store.load(id, want).await;
        };
        let entry = self.store.load(id, Want::Values).await?;
        if let Some(entry) = &entry {
            self.hot.put(id, entry, ticket);
        }
        Ok(entry.map(|entry| want.of(&entry)))
    }

    /// Begins a change, of a session that is forgotten before and after; also where nobody waits
    /// for the answer.
    fn changing<'a, T: 'a>(
        &'a self,
        id: Id,
        begin: impl FnOnce() -> Answer<'a, T>,
    ) -> Answer<'a, T> {
        self.hot.forget(id);
        let mut changing = Changing { hot: &self.hot, id, outcome: Outcome::Unknown };
        let answer = begin();
        Box::pin(async move {
            let answer = answer.await;
            if !matches!(answer, Err(Error::OutcomeUnknown(_))) {
                changing.ends();
            }
            answer
        })
    }
}

impl Changing<'_> {
    /// The answer has come.
    fn ends(&mut self) {
        self.outcome = Outcome::Known;
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        match self.outcome {
            Outcome::Known => self.hot.forget(self.id),
            Outcome::Unknown => self.hot.doubt(self.id),
        }
    }
}

impl Backend for Cached {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        Box::pin(self.load_entry(id, want))
    }

    fn cached(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        self.hot.get(id, want)
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        self.changing(id, || self.store.create(id, record, policy))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        self.changing(id, || self.store.patch(id, change, want))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        self.changing(id, || self.store.record_use(id, used, policy))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        self.changing(id, || self.store.remove(id))
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

    /// What it removes is over, and nobody takes it for alive.
    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        self.store.sweep(now)
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
}

#[cfg(test)]
mod tests;
