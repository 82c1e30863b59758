//! Records in this process, lost at exit: the plainest implementation of the contract.

mod state;

use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use self::state::{State, Stored};
use super::{
    Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want, over_at,
};
use crate::audit::{self, Audit, By};
use crate::metrics::Event;
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;
#[cfg(test)]
use crate::{metrics::Metrics, time::Clock};

/// The memory store.
///
/// If it is full, it evicts the records that no browser has come back with ([`Meta::unproven`]), the
/// oldest first; only if those are not enough does it refuse a change.
///
/// [`Meta::unproven`]: crate::session::record::Meta::unproven
#[derive(Debug)]
pub(crate) struct Memory {
    max_bytes: usize,
    audit: Audit,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    state: State,
    /// The time of the last log line about evictions, and the evictions since.
    warned_at: Option<Instant>,
    evicted: u64,
}

/// Minimum interval of log lines about evictions.
const WARN_EVERY: Duration = Duration::from_mins(1);

impl Memory {
    /// Default bound of the records' memory.
    pub(crate) const DEFAULT_MAX_BYTES: usize = 512 * 1024 * 1024;

    /// Creates an empty store whose records take at most `max_bytes` of memory; above it, [`Error::Full`]. Its
    /// memory is a metric, and evictions are recorded.
    pub(crate) fn new(max_bytes: usize, audit: Audit) -> Self {
        Self { max_bytes, audit, held: Mutex::default() }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(max_bytes: usize) -> Self {
        Self::new(max_bytes, Audit::for_tests(&Metrics::new(), &Clock::System))
    }

    /// No method panics in the middle of a change, so a poisoned lock still guards a consistent state.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, held: &mut Held, id: Id, stored: Option<Stored>) -> Result<(), Error> {
        let evicted = held.state.replace(id, stored, self.max_bytes)?;
        self.audit.metrics().memory_store_bytes(held.state.bytes());
        if !evicted.is_empty() {
            held.warn_of(evicted.len() as u64);
        }
        for (session, principal) in evicted {
            let entry = audit::Entry::new(Event::Evicted, By::Store);
            self.audit.record(entry.of(session, principal.as_ref()));
        }
        Ok(())
    }
}

impl Held {
    fn warn_of(&mut self, evicted: u64) {
        self.evicted += evicted;
        if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned_at = Some(Instant::now());
            let evicted = std::mem::take(&mut self.evicted);
            warn!(
                evicted,
                "memory store is full: evicted the oldest sessions whose cookie never came back; \
                 set session.unproven_timeout or limits.new_sessions_per_address"
            );
        }
    }
}

impl Backend for Memory {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let entry = self.held().state.get(id).map(|stored| stored.entry(want));
        Box::pin(ready(Ok(entry)))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let mut held = self.held();
        let created = if held.state.get(id).is_some() {
            Ok(Created::Exists)
        } else {
            let stored = stored(Entry::Live(record.clone()), policy);
            self.replace(&mut held, id, Some(stored)).map(|()| Created::Done)
        };
        Box::pin(ready(created))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let mut held = self.held();
        let before = held.state.get(id).map(|stored| stored.entry(Want::Values));
        let patched = match change.apply(before, want.before()) {
            Err(refusal) => Ok(Err(refusal)),
            Ok(mut applied) => {
                let after = applied.entry.clone().map(|entry| stored(entry, change.policy));
                self.replace(&mut held, id, after).map(|()| {
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
        let state = &mut self.held().state;
        // Taken out, since a use may change its places in the indexes and its size.
        let entry = state.take(id).map(|mut stored| {
            let mut entry = stored.entry(Want::Meta);
            if let Some(meta) = used.apply_to(&mut entry, policy) {
                stored.over_at = policy.ends_at(meta);
                stored.set_meta(meta.clone());
            }
            state.put(id, stored);
            entry
        });
        self.audit.metrics().memory_store_bytes(state.bytes());
        Box::pin(ready(Ok(entry)))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        let mut held = self.held();
        let live = held.state.get(id).is_some_and(|stored| stored.meta().is_some());
        let removed = if live { self.replace(&mut held, id, None) } else { Ok(()) };
        Box::pin(ready(removed.map(|()| live.then_some(Replicated::NotAsked))))
    }

    fn unproven(&self) -> Unproven {
        Unproven::Evicted
    }
}

impl Store for Memory {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let held = self.held();
        let mut sessions = held.state.sessions(principal, cursor.and_then(Id::parse));
        let page = sessions.by_ref().take(limit).map(|(id, meta)| (id, meta.clone()));
        let page: Vec<_> = page.collect();
        let next = sessions.next().and_then(|_| page.last().map(|(id, _)| id.to_string()));
        Box::pin(ready(Ok(Page { sessions: page, unreadable: Vec::new(), next })))
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, u64> {
        let expired = self.held().state.over(now).len();
        Box::pin(ready(Ok(expired as u64)))
    }

    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept> {
        let state = &mut self.held().state;
        let mut swept = Swept::default();
        for stored in state.over(now).into_iter().filter_map(|id| state.take(id)) {
            match stored.meta() {
                Some(meta) => swept.session(policy.expired(meta)),
                None => swept.tombstone(),
            }
        }
        self.audit.metrics().memory_store_bytes(state.bytes());
        Box::pin(ready(Ok(swept)))
    }

    fn exchange_keys<'a>(
        &'a self,
        _own: &'a [Fingerprint],
        _now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(ready(Ok(KnownKeys::NotKept)))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}

fn stored(entry: Entry, policy: &Policy) -> Stored {
    let over_at = over_at(&entry, policy);
    Stored::new(entry, over_at)
}

#[cfg(test)]
mod tests;
