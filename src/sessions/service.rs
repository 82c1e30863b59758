//! Sessions by their id, and the sessions of a principal: for back offices, operators, and "your
//! devices".

use tracing::info;

use super::change::{ChangeRequest, Snapshot, changed};
use super::exchange::Exchange;
use super::{Failure, Home, Sessions};
use crate::log::limited;
use crate::metrics::{Event, StoreOperation};
use crate::session::id::Id;
use crate::session::patch::{Authority, Patch, Refusal, Replicated, Tombstone};
use crate::session::record::{Entry, Meta, Principal};
use crate::store::{Error as StoreError, Want};

/// A page of sessions that are alive.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The sessions, without values.
    pub sessions: Vec<(Id, Meta)>,
    /// Records that cannot be read, which have been logged and counted.
    pub unreadable: Vec<Id>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// What ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// How many sessions.
    pub count: u64,
    /// Whether a replica has the end of each of them.
    pub replicated: Replicated,
}

/// How many sessions are read from the store at a time.
const PAGE: usize = 500;

impl Sessions {
    /// A session by its id.
    pub async fn find(&self, id: Id, want: Want<'_>) -> Result<Snapshot, Failure> {
        let entry = self.load_cached(self.store()?, id, want, |_| true).await?;
        let record = entry.and_then(Entry::into_live).ok_or(Failure::NoSuchSession)?;
        Ok(Snapshot { session: Some((id, record)), ..Snapshot::default() })
    }

    /// Changes a session by its id; never makes one, never prolongs one.
    pub async fn apply_by_id(
        &self,
        id: Id,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let ChangeRequest { patch, condition, want } = requested;
        let change = self.change(patch, condition, Authority::Service, false, Tombstone::None);
        let applied = match self.patched(self.store()?, id, change, want).await {
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended)) => {
                return Err(Failure::NoSuchSession);
            }
            applied => applied?,
        };
        if !matches!(applied.entry, Some(Entry::Live(_))) {
            self.shared.metrics.event(Event::Destroyed);
        }
        Ok(changed(id, applied, false))
    }

    /// Ends a session by its id, if there is one.
    pub async fn destroy(&self, id: Id) -> Result<Destroyed, Failure> {
        let store = self.store()?;
        let alive = self.load_live(store, id, Want::Meta).await?.is_some();
        let removed = self.timed(StoreOperation::Remove, store.remove(id)).await?;
        let Some(replicated) = removed.filter(|_| alive) else { return Ok(Destroyed::default()) };
        self.shared.metrics.event(Event::Destroyed);
        Ok(Destroyed { count: 1, replicated })
    }

    /// A page of the sessions of a principal, or of all.
    pub async fn list(
        &self,
        principal: Option<&Principal>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Listed, Failure> {
        let page =
            self.timed(StoreOperation::List, self.store()?.list(principal, cursor, limit)).await?;
        for id in &page.unreadable {
            self.shared.metrics.event(Event::Unreadable);
            limited!(error, "unreadable_listed", session = %id, "session cannot be read and is left out of a list");
        }
        let now = self.shared.clock.now();
        let alive = |(_, meta): &(Id, Meta)| {
            self.shared.policy.is_alive(meta, now)
                && principal.is_none_or(|principal| meta.principal.as_ref() == Some(principal))
        };
        let sessions = page.sessions.into_iter().filter(alive).collect();
        Ok(Listed { sessions, unreadable: page.unreadable, next: page.next })
    }

    /// Returns all sessions of a principal.
    pub async fn sessions_of(&self, principal: &Principal) -> Result<Vec<(Id, Meta)>, Failure> {
        Ok(self.all_of(principal).await?.sessions)
    }

    /// Returns all sessions of a principal, and all records of theirs that cannot be read.
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

    /// Ends all sessions of a principal but `spared`. Records of theirs that cannot be read are
    /// removed, and not counted.
    pub async fn destroy_all_of(
        &self,
        principal: &Principal,
        spared: Option<Id>,
    ) -> Result<Destroyed, Failure> {
        let mut destroyed = Destroyed::default();
        let all = self.all_of(principal).await?;
        for (id, _) in all.sessions {
            if Some(id) != spared {
                destroyed = destroyed.and(self.destroy(id).await?);
            }
        }
        for id in all.unreadable {
            // It opens nothing now, and should not if it can be read again.
            self.timed(StoreOperation::Remove, self.store()?.remove(id)).await?;
        }
        info!(destroyed = destroyed.count, "the sessions of a principal were ended");
        Ok(destroyed)
    }

    /// Ends the session of a request, and with it all others of its principal.
    pub async fn destroy_everywhere(&self, exchange: &Exchange) -> Result<Destroyed, Failure> {
        let principal = match self.read(exchange, Want::Meta).await {
            Ok(read) => read.session.and_then(|(id, record)| Some((id, record.meta.principal?))),
            // There is nothing left that could say whose it was.
            Err(Failure::Refused(Refusal::Gone)) => None,
            Err(failure) => return Err(failure),
        };
        let mut others = Destroyed::default();
        if let Some((id, principal)) = principal {
            others = self.destroy_all_of(&principal, Some(id)).await?;
        }
        Ok(others.and(self.destroy_own(exchange).await?))
    }

    /// Ends the session of a request.
    pub async fn destroy_own(&self, exchange: &Exchange) -> Result<Destroyed, Failure> {
        let patch = Patch { destroy: true, ..Patch::default() };
        let requested = ChangeRequest { patch: &patch, condition: None, want: Want::Meta };
        Ok(Destroyed::by(&self.apply(exchange, requested).await?))
    }

    /// Removes what is over; answers how many sessions that were.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let Home::Store(store) = &self.home else { return Ok(0) };
        let removed =
            self.timed(StoreOperation::Sweep, store.sweep(self.shared.clock.now())).await?;
        self.shared.metrics.events(Event::Expired, removed);
        Ok(removed)
    }
}

impl Destroyed {
    /// What a patch that destroys has ended.
    pub fn by(changed: &Snapshot) -> Self {
        Self { count: u64::from(changed.session.is_some()), replicated: changed.replicated }
    }

    /// These, and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        Self { count, replicated: self.replicated.and(other.replicated) }
    }
}
