//! The directory of all sessions, by id and by principal: for back offices, operators and lists of
//! "your devices".

use std::sync::Arc;

use tracing::info;

use super::calls::{Calls, Stored};
use super::failure::Failure;
use super::shared::Shared;
use super::snapshot::{ChangeRequest, Destroyed, Snapshot};
use crate::audit::{self, By, Source};
use crate::log::limited;
use crate::metrics::{Event, StoreOperation};
use crate::session::id::{Id, PublicId};
use crate::session::patch::{Authority, Refusal};
use crate::session::record::{Entry, Meta, Principal};
use crate::store::{Store, Want};

/// All sessions of a store.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    /// What destroys sessions, for the audit trail.
    by: By,
    source: Source,
}

/// A page of live sessions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    /// The sessions, without values.
    pub(crate) sessions: Vec<(Id, Meta)>,
    /// Records that cannot be read. They have been logged and counted.
    pub(crate) unreadable: Vec<Id>,
    /// The cursor of the next page; `None` after the last.
    pub(crate) next: Option<String>,
}

/// The number of sessions that are loaded at a time.
const PAGE: usize = 500;

impl Directory {
    pub(super) fn new(store: Arc<dyn Store>, shared: Arc<Shared>, by: By) -> Self {
        Self { store, shared, by, source: Source::default() }
    }

    /// Says which request makes the changes.
    pub(crate) fn for_request(self, source: Source) -> Self {
        Self { source, ..self }
    }

    /// Finds a session by its id.
    pub(crate) async fn find(&self, id: PublicId, want: Want<'_>) -> Result<Snapshot, Failure> {
        let is_named = |meta: &Meta| meta.id_counter == id.counter;
        let entry = self.calls().load_cached(id.place, want, is_named).await?;
        let record = entry.and_then(Entry::into_live).filter(|record| is_named(&record.meta));
        Ok(Snapshot::of(id.place, record.ok_or(Failure::NoSuchSession)?))
    }

    /// Changes a session by its id. Creates none and touches none.
    pub(crate) async fn apply(
        &self,
        id: PublicId,
        request: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let change = request.to_change(id.place, Authority::Service(id.counter), &self.shared);
        let applied = match self.calls().patch(id.place, change, request.want).await {
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended)) => {
                return Err(Failure::NoSuchSession);
            }
            applied => applied?,
        };
        if !matches!(applied.entry, Some(Entry::Live(_))) {
            self.record_destroyed(id.place, &applied.record.meta);
        }
        Ok(Snapshot::after(id.place, applied))
    }

    /// Destroys a session by its id, if there is one.
    pub(crate) async fn destroy(&self, id: PublicId) -> Result<Destroyed, Failure> {
        match self.calls().load_stored(id.place).await? {
            Some(Stored::Live(meta)) if meta.id_counter != id.counter => Ok(Destroyed::default()),
            found => self.remove(id.place, found).await,
        }
    }

    /// Destroys the session at a place, whatever its id.
    pub(super) async fn destroy_at(&self, place: Id) -> Result<Destroyed, Failure> {
        let found = self.calls().load_stored(place).await?;
        self.remove(place, found).await
    }

    /// Removes a session. One that has expired counts as expired, not as destroyed.
    async fn remove(&self, place: Id, found: Option<Stored>) -> Result<Destroyed, Failure> {
        // Of several that remove it, such as the sweep, only one receives that there was a session.
        match (self.calls().remove(place).await?, found) {
            (Some(replicated), Some(Stored::Live(meta))) => {
                self.record_destroyed(place, &meta);
                Ok(Destroyed { count: 1, replicated })
            }
            (Some(_), Some(Stored::Expired(reason))) => {
                self.shared.count_expired(reason, 1);
                Ok(Destroyed::default())
            }
            (Some(_), None) | (None, _) => Ok(Destroyed::default()),
        }
    }

    fn record_destroyed(&self, place: Id, meta: &Meta) {
        let entry = audit::Entry::new(Event::Destroyed, self.by)
            .of(meta.public_id(place), meta.principal.as_ref());
        self.shared.audit.record(entry.from(self.source.clone()));
    }

    /// Returns a page of the sessions of a principal, or of all sessions.
    pub(crate) async fn list(
        &self,
        principal: Option<&Principal>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Listed, Failure> {
        let page = self.store.list(principal, cursor, limit);
        let page = self.shared.timed(StoreOperation::List, page).await?;
        for id in &page.unreadable {
            self.shared.metrics.event(Event::Unreadable);
            limited!(error, "unreadable_listed", session = %id, "session cannot be read and is left out of a list");
        }
        let now = self.shared.clock.now();
        let is_listed = |(_, meta): &(Id, Meta)| {
            self.shared.policy.is_alive(meta, now)
                && principal.is_none_or(|principal| meta.principal.as_ref() == Some(principal))
        };
        let sessions = page.sessions.into_iter().filter(is_listed).collect();
        Ok(Listed { sessions, unreadable: page.unreadable, next: page.next })
    }

    /// Returns all sessions of a principal.
    pub(crate) async fn sessions_of(
        &self,
        principal: &Principal,
    ) -> Result<Vec<(Id, Meta)>, Failure> {
        Ok(self.all_of(principal).await?.sessions)
    }

    /// Returns all sessions of a principal, and all its records that cannot be read.
    async fn all_of(&self, principal: &Principal) -> Result<Listed, Failure> {
        let mut all = Listed::default();
        let mut cursor = None;
        loop {
            let page = self.list(Some(principal), cursor.as_deref(), PAGE).await?;
            all.sessions.extend(page.sessions);
            all.unreadable.extend(page.unreadable);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// Destroys all sessions of a principal except `spared`. Its records that cannot be read are
    /// removed, and not counted.
    pub(crate) async fn destroy_all_of(
        &self,
        principal: &Principal,
        spared: Option<Id>,
    ) -> Result<Destroyed, Failure> {
        let mut destroyed = Destroyed::default();
        let all = self.all_of(principal).await?;
        for (id, _) in all.sessions {
            if Some(id) != spared {
                destroyed = destroyed.and(self.destroy_at(id).await?);
            }
        }
        for id in all.unreadable {
            // It opens nothing now, and must not if it can be read again.
            self.calls().remove(id).await?;
        }
        info!(destroyed = destroyed.count, "destroyed the sessions of a principal");
        Ok(destroyed)
    }

    fn calls(&self) -> Calls<'_> {
        Calls::new(&*self.store, &self.shared)
    }
}
