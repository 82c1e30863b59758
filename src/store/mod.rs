//! Where records live: the contract of a store, and the stores.
//!
//! A store keeps entries under ids and changes each in one atomic step. It knows records and
//! patches; it does not know cookies, requests or HTTP. Every call has a deadline of its own.

pub mod cache;
pub mod config;
#[cfg(test)]
pub(crate) mod conformance;
mod encode;
mod fault;
pub mod file;
pub mod health;
pub mod memory;
mod owned;
pub mod redis;
pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values};
use crate::time::Timestamp;

/// What a store answers, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A store of sessions.
///
/// * An [`Error`] is never "no session": only `None` is.
/// * A store may hand out an entry whose time is over; [`Policy::is_alive`] decides. What it has
///   removed already it does not hand out.
/// * What was answered `Ok` is kept: a crash of this process loses none of it (the memory store
///   excepted, which ends with it).
/// * A dropped future leaves the store consistent; the change it carried may or may not be made.
pub trait Store: fmt::Debug + Send + Sync {
    /// Returns the entry under `id` as the store has it now, with those values that are wanted.
    /// Never from a cache.
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>>;

    /// Returns the entry under `id` if a cache holds it; the store is not asked.
    ///
    /// It may be older than the store's by as long as a change takes to invalidate it. So it can
    /// say that a token opens the session, and never that one does not, or that the session has
    /// ended: for that, [`load`](Self::load) it.
    fn cached(&self, _id: Id, _want: Want<'_>) -> Option<Entry> {
        None
    }

    /// Puts a new record under `id`, unless anything stands there already.
    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created>;

    /// Applies a change: [`Change::apply`], in one atomic step. With a record that lives on, the
    /// answer carries those values that are wanted.
    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>>;

    /// Writes a use down, and answers what stands there then, without values. A session that is
    /// not alive, and a marker, are left as they are.
    fn record_use<'a>(&'a self, id: Id, used: Use, policy: &'a Policy)
    -> Answer<'a, Option<Entry>>;

    /// Removes a session, whatever its state and whether or not it can be read; `None` if there was
    /// none. Markers stay.
    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>>;

    /// A page of sessions, of one principal or of all; without values, in no particular order.
    /// Some may be over, and one that changes meanwhile may come twice. At most `limit`, which is 1
    /// or more, but a page may hold fewer and still have a next one. A record that cannot be read
    /// breaks no list: it is among [`Page::unreadable`] if the store knows that it belongs there.
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page>;

    /// Removes what is over at `now`; answers how many sessions that were.
    fn sweep(&self, now: Timestamp) -> Answer<'_, u64>;

    /// Records which session keys this instance has, and returns what was recorded before. A key
    /// that it does not have is no longer recorded.
    fn exchange_keys<'a>(&'a self, own: &'a [Fingerprint], now: Timestamp)
    -> Answer<'a, KnownKeys>;

    /// What becomes of the mark of a new record that no browser has come back with.
    fn unproven(&self) -> Unproven;

    /// Whether the store can be read.
    fn ping(&self) -> Answer<'_, ()>;

    /// Whether the store can be written: changes what no list shows and no session is, and what a
    /// crash leaves of it is gone within seconds or with the next opening.
    fn probe(&self, now: Timestamp) -> Answer<'_, ()>;
}

/// What a store keeps of the session keys of its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownKeys {
    /// Nothing: it is not shared.
    NotKept,
    /// Nothing, because the server does not permit it, for this reason.
    Denied(String),
    /// These; empty on the first start.
    Known(Vec<KnownKey>),
}

/// A session key that every instance has that started since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownKey {
    /// Its public name.
    pub fingerprint: Fingerprint,
    /// Since when.
    pub since: Timestamp,
}

/// Which values an answer is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// None.
    Meta,
    /// This one.
    Value(&'a Key),
    /// Of a patch: this one as it was before, as [`Applied::before`]. Of a load: this one.
    Before(&'a Key),
    /// All.
    Values,
}

impl Want<'_> {
    /// The key whose value before a patch is wanted.
    pub fn before(&self) -> Option<&Key> {
        match self {
            Self::Before(key) => Some(key),
            _ => None,
        }
    }

    /// An entry with those of its values that are wanted.
    pub fn of(&self, entry: &Entry) -> Entry {
        match entry {
            Entry::Ended { until } => Entry::Ended { until: *until },
            Entry::Live(record) => {
                let values = match self {
                    Self::Meta => Values::new(),
                    _ => self.select(record.values.clone()),
                };
                Entry::Live(Record { meta: record.meta.clone(), values })
            }
        }
    }

    /// Leaves in an answer those values that are wanted.
    pub fn narrow(&self, applied: &mut Applied) {
        applied.record.values = self.select(std::mem::take(&mut applied.record.values));
        if let Some(Entry::Live(record)) = &mut applied.entry {
            record.values.clone_from(&applied.record.values);
        }
    }

    /// Those of `values` that are wanted.
    pub fn select(&self, values: Values) -> Values {
        match self {
            Self::Meta => Values::new(),
            Self::Values => values,
            Self::Value(key) | Self::Before(key) => {
                let one = |text: &Json| ((*key).clone(), text.clone());
                values.get(*key).map(one).into_iter().collect()
            }
        }
    }
}

/// The first instant at which an entry is over. A marker still stands at its `until`.
fn over_at(entry: &Entry, policy: &Policy) -> Timestamp {
    match entry {
        Entry::Live(record) => policy.ends_at(&record.meta),
        Entry::Ended { until } => *until + Duration::from_millis(1),
    }
}

/// What a store does with the mark of unproven records ([`Meta::unproven`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It keeps the mark, for the policy to use.
    Kept,
    /// It evicts such records if it is full.
    Evicted,
    /// It has no such records: a session is in it only while a request presents it.
    None,
}

/// What became of a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is there.
    Done,
    /// The id is taken: draw another. Nothing was overwritten.
    Exists,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The sessions.
    pub sessions: Vec<(Id, Meta)>,
    /// Records that cannot be read.
    pub unreadable: Vec<Id>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}

/// Why a store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be reached or did not answer in time, and nothing has changed.
    #[error("the store is not available")]
    Unavailable(#[source] Cause),
    /// A change was sent, and whether it was made is not known.
    #[error("the store did not say whether the change was made")]
    OutcomeUnknown(#[source] Cause),
    /// It has no room; nothing has changed.
    #[error("the store is full")]
    Full,
    /// What stands there is nothing that we wrote.
    #[error("the store holds what cannot be read")]
    Corrupt(#[source] Cause),
}

/// What lies beneath an [`Error`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;
