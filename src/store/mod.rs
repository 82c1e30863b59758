//! The stores, and their contract.
//!
//! A store keeps entries under ids and changes each in one atomic step. It knows records and
//! patches; it does not know cookies, requests or HTTP. Every call has a deadline of its own.

pub mod cache;
pub mod config;
#[cfg(test)]
pub(crate) mod conformance;
mod encode;
mod fault;
pub(crate) mod file;
pub(crate) mod health;
pub(crate) mod memory;
mod owned;
pub mod redis;
pub(crate) mod sqlite;
pub(crate) mod url;
mod worker_thread;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::{Expired, Policy};
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values};
use crate::time::Timestamp;

/// The future result of a call.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The storage of a request's session: a [`Store`] of all sessions, or the request's own sealed cookie.
///
/// * An [`Error`] is never "no session": only `None` is.
/// * A backend may return an entry that has expired; [`Policy::is_alive`] decides. What it has
///   removed already it does not return.
/// * A dropped future leaves the backend consistent; its change may or may not be made.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Returns the current entry under `id` with the values in `want`. Never from a cache.
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>>;

    /// Returns the entry under `id` if a cache holds it, without a call to the store.
    ///
    /// It may be older than the store's by as long as a change takes to invalidate it. So it can
    /// show that a token opens the session, and never that a token does not, or that the session
    /// has ended: for that, [`load`](Self::load) it.
    fn cached(&self, _id: Id, _want: Want<'_>) -> Option<Entry> {
        None
    }

    /// Stores a new record under `id`, unless the id is taken.
    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created>;

    /// Applies a change ([`Change::apply`]) in one atomic step. With a record that lives on, the
    /// result has the values in `want`.
    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>>;

    /// Records a use, and returns the entry after it, without values. Leaves expired sessions and
    /// markers as they are.
    fn record_use<'a>(&'a self, id: Id, used: Use, policy: &'a Policy)
    -> Answer<'a, Option<Entry>>;

    /// Removes a session, in any state and even if it cannot be read; `None` if there was none.
    /// Markers stay.
    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>>;

    /// Returns what the backend does with the mark of unproven records.
    fn unproven(&self) -> Unproven;
}

/// A store of all sessions.
///
/// A write that returned `Ok` is durable: a crash of this process loses none of it (except in the
/// memory store, which ends with it).
pub trait Store: Backend {
    /// Returns a page of sessions, of one principal or of all, without values and in no particular
    /// order.
    ///
    /// Some may have expired, and one that changes during the listing may be returned twice. A page
    /// has at most `limit` sessions, which is 1 or more; it may hold fewer and still have a next
    /// one. A record that cannot be read does not break the list: it is in [`Page::unreadable`] if
    /// the store knows that it belongs there.
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page>;

    /// Counts the entries that have expired at `now`, for the progress of sweeps. 0 in a store that removes them by
    /// itself.
    fn expired(&self, now: Timestamp) -> Answer<'_, u64>;

    /// Removes a batch of entries that have expired at `now`. Changes proceed between batches.
    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept>;

    /// Records which session keys this instance has, and returns what was recorded before. A key
    /// that it no longer has is removed from the record. With no keys it only reads.
    fn exchange_keys<'a>(&'a self, own: &'a [Fingerprint], now: Timestamp)
    -> Answer<'a, KnownKeys>;

    /// Succeeds if the store can be read.
    fn ping(&self) -> Answer<'_, ()>;

    /// Succeeds if the store can be written. The entry that it writes is no session and in no list,
    /// and after a crash it is removed within seconds or with the next opening.
    fn probe(&self, now: Timestamp) -> Answer<'_, ()>;

    /// Returns the time by the clock of the store's server; `None` if the store has none, or does not report it.
    fn server_time(&self) -> Answer<'_, Option<Timestamp>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// The session keys of the instances that share a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownKeys {
    /// The store is not shared.
    NotKept,
    /// The server refuses to record them, for this reason.
    Denied(String),
    /// The recorded keys; empty on the first start.
    Known(Vec<KnownKey>),
}

/// A session key that every instance has which started since a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownKey {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) since: Timestamp,
}

/// The values that a result must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// None.
    Meta,
    /// One value.
    Value(&'a Key),
    /// One value; of a patch, as it was before, in [`Applied::before`].
    Before(&'a Key),
    /// All.
    Values,
}

impl Want<'_> {
    /// Returns the key whose value before a patch is requested.
    pub(crate) fn before(&self) -> Option<&Key> {
        match self {
            Self::Before(key) => Some(key),
            Self::Meta | Self::Value(_) | Self::Values => None,
        }
    }

    /// Returns an entry with the requested values.
    pub(crate) fn of(&self, entry: &Entry) -> Entry {
        match entry {
            Entry::Ended { until } => Entry::Ended { until: *until },
            Entry::Live(record) => {
                let values = match self {
                    Self::Meta => Values::new(),
                    Self::Value(_) | Self::Before(_) | Self::Values => {
                        self.select(record.values.clone())
                    }
                };
                Entry::Live(Record { meta: record.meta.clone(), values })
            }
        }
    }

    /// Removes values that are not requested from a result.
    pub(crate) fn narrow(&self, applied: &mut Applied) {
        applied.record.values = self.select(std::mem::take(&mut applied.record.values));
        if let Some(Entry::Live(record)) = &mut applied.entry {
            record.values.clone_from(&applied.record.values);
        }
    }

    /// Returns the requested ones of `values`.
    pub(crate) fn select(&self, values: Values) -> Values {
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

/// Returns the first time at which an entry has expired. A tombstone is still valid at its `until`.
fn over_at(entry: &Entry, policy: &Policy) -> Timestamp {
    match entry {
        Entry::Live(record) => policy.ends_at(&record.meta),
        Entry::Ended { until } => *until + Duration::from_millis(1),
    }
}

/// The use that a store has for the mark of unproven records ([`Meta::unproven`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It keeps the mark, for the policy to use.
    Kept,
    /// It evicts such records if it is full.
    Evicted,
    /// It has no such records: a session is in it only while a request presents it.
    None,
}

/// The result of a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The record is stored.
    Done,
    /// The id is taken: draw another. Nothing was overwritten.
    Exists,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub(crate) sessions: Vec<(Id, Meta)>,
    /// Records that cannot be read.
    pub(crate) unreadable: Vec<Id>,
    /// The cursor of the next page; `None` after the last.
    pub(crate) next: Option<String>,
}

/// The result of a batch of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The removed sessions, by the reason of their end.
    pub(crate) sessions: BTreeMap<Expired, u64>,
    /// The number of removed entries: sessions and tombstones.
    pub(crate) entries: u64,
    /// Whether there may be another batch.
    pub(crate) more: bool,
}

impl Swept {
    /// Counts a removed session.
    fn session(&mut self, expired: Expired) {
        self.entries += 1;
        *self.sessions.entry(expired).or_default() += 1;
    }

    /// Counts a removed tombstone.
    fn tombstone(&mut self) {
        self.entries += 1;
    }

    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        for (expired, count) in other.sessions {
            *self.sessions.entry(expired).or_default() += count;
        }
    }
}

/// The failure of a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store is unreachable or did not reply in time; nothing has changed.
    #[error("the store is not available")]
    Unavailable(#[source] Cause),
    /// A change was sent, and it is unknown whether it was made.
    #[error("the store did not say whether the change was made")]
    OutcomeUnknown(#[source] Cause),
    /// The store has no room; nothing has changed.
    #[error("the store is full")]
    Full(#[source] Cause),
    /// The record is not one that we wrote.
    #[error("corrupt record")]
    Corrupt(#[source] Cause),
}

/// The cause of an [`Error`].
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;
