//! Calls to a backend: timed, and with expired and unreadable records counted as missing.

use std::pin::pin;

use super::failure::Failure;
use super::shared::Shared;
use crate::log::limited;
use crate::metrics::{Event, StoreOperation};
use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Expired;
use crate::session::record::{Entry, Meta, Record};
use crate::store::{Backend, Created, Error as StoreError, Want};

/// The calls of one worker to a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls<'a> {
    backend: &'a dyn Backend,
    shared: &'a Shared,
}

/// A session as a backend has it.
#[derive(Debug)]
pub(super) enum Stored {
    Live(Box<Meta>),
    /// The backend has not removed it yet.
    Expired(Expired),
}

impl<'a> Calls<'a> {
    pub(super) fn new(backend: &'a dyn Backend, shared: &'a Shared) -> Self {
        Self { backend, shared }
    }

    /// Returns the live entry under `id`: from a cache if its record passes `suffices`, else from
    /// the backend.
    ///
    /// A cached record may be a moment old. It can show that a token is valid until it is
    /// invalidated, but not that a token is invalid or that the session has ended.
    pub(super) async fn load_cached(
        self,
        id: Id,
        want: Want<'_>,
        suffices: impl Fn(&Meta) -> bool,
    ) -> Result<Option<Entry>, StoreError> {
        match self.cached(id, want, suffices) {
            Some(record) => Ok(Some(Entry::Live(record))),
            None => pin!(self.load(id, want)).await,
        }
    }

    /// Returns the live session under `id` if a cache has it and it suffices.
    pub(super) fn cached(
        self,
        id: Id,
        want: Want<'_>,
        suffices: impl Fn(&Meta) -> bool,
    ) -> Option<Record> {
        match self.backend.cached(id, want)? {
            Entry::Live(record)
                if self.shared.policy.is_alive(&record.meta, self.shared.clock.now())
                    && suffices(&record.meta) =>
            {
                Some(record)
            }
            Entry::Live(_) | Entry::Ended { .. } => None,
        }
    }

    /// Returns the live entry under `id` as the backend has it.
    pub(super) async fn load(self, id: Id, want: Want<'_>) -> Result<Option<Entry>, StoreError> {
        let load = self.shared.timed(StoreOperation::Load, self.backend.load(id, want));
        let entry = pin!(load).await;
        let entry = self.readable(id, entry)?.flatten();
        let now = self.shared.clock.now();
        Ok(entry.filter(|entry| match entry {
            Entry::Live(record) => self.shared.policy.is_alive(&record.meta, now),
            Entry::Ended { until } => now <= *until,
        }))
    }

    /// Returns the live session under `id` as the backend has it.
    pub(super) async fn load_live(
        self,
        id: Id,
        want: Want<'_>,
    ) -> Result<Option<Record>, StoreError> {
        Ok(self.load(id, want).await?.and_then(Entry::into_live))
    }

    /// Returns the session under `id` as the backend has it, even if it has expired.
    pub(super) async fn load_stored(self, id: Id) -> Result<Option<Stored>, StoreError> {
        let load = self.shared.timed(StoreOperation::Load, self.backend.load(id, Want::Meta));
        let entry = load.await;
        let record = self.readable(id, entry)?.flatten().and_then(Entry::into_live);
        let Shared { policy, clock, .. } = self.shared;
        Ok(record.map(|Record { meta, .. }| {
            if policy.is_alive(&meta, clock.now()) {
                Stored::Live(Box::new(meta))
            } else {
                Stored::Expired(policy.expired(&meta))
            }
        }))
    }

    pub(super) async fn create(self, id: Id, record: &Record) -> Result<Created, StoreError> {
        let policy = &self.shared.policy;
        self.shared.timed(StoreOperation::Create, self.backend.create(id, record, policy)).await
    }

    /// Applies a change. A session that cannot be read counts as missing.
    pub(super) async fn patch(
        self,
        id: Id,
        change: Change<'_>,
        want: Want<'_>,
    ) -> Result<Applied, Failure> {
        let answer =
            self.shared.timed(StoreOperation::Patch, self.backend.patch(id, change, want)).await;
        Ok(self.readable(id, answer)?.unwrap_or(Err(Refusal::Gone))?)
    }

    pub(super) async fn record_use(self, id: Id, used: Use) -> Result<Option<Entry>, StoreError> {
        let policy = &self.shared.policy;
        self.shared
            .timed(StoreOperation::RecordUse, self.backend.record_use(id, used, policy))
            .await
    }

    pub(super) async fn remove(self, id: Id) -> Result<Option<Replicated>, StoreError> {
        self.shared.timed(StoreOperation::Remove, self.backend.remove(id)).await
    }

    /// Returns the answer, or `None` if the record under `id` cannot be read. The session is served
    /// no more and its visitor may start again; the record stays for inspection.
    fn readable<T>(self, id: Id, answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match answer {
            Err(StoreError::Corrupt(cause)) => {
                self.shared.metrics.event(Event::Unreadable);
                limited!(error, "unreadable", session = %id, cause, "session cannot be read and counts as missing");
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }
}
