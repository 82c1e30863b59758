//! Sessions by their id, and the sessions of a principal: for back offices, operators, and "your
//! devices".

use tracing::info;

use super::change::{Changed, Requested};
use super::exchange::Exchange;
use super::{Failure, Sessions};
use crate::metrics::Event;
use crate::session::id::Id;
use crate::session::patch::{Patch, Refusal, Remains, Through};
use crate::session::record::{Entry, Meta, Principal};
use crate::store::{Error as StoreError, Want};

/// A page of sessions that are alive.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The sessions, without values.
    pub sessions: Vec<(Id, Meta)>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// How many sessions are read from the store at a time.
const PAGE: usize = 500;

impl Sessions {
    /// A session by its id.
    pub async fn find(&self, id: Id, want: Want<'_>) -> Result<Changed, Failure> {
        let record = self.load_live(id, want).await?.ok_or(Failure::NoSuchSession)?;
        Ok(Changed { session: Some((id, record)), ..Changed::default() })
    }

    /// Changes a session by its id; never makes one, never prolongs one.
    pub async fn apply_by_id(&self, id: Id, requested: Requested<'_>) -> Result<Changed, Failure> {
        let Requested { patch, condition, want } = requested;
        let change = self.change(patch, condition, Through::Service, false, Remains::Nothing);
        let applied = match self.timed("patch", self.store.patch(id, change, want)).await? {
            Err(Refusal::Gone | Refusal::Ended) => return Err(Failure::NoSuchSession),
            applied => applied?,
        };
        if !matches!(applied.entry, Some(Entry::Live(_))) {
            self.shared.metrics.event(Event::Destroyed);
        }
        Ok(Changed { session: Some((id, applied.record)), before: applied.before, made: false })
    }

    /// Ends a session by its id; answers whether there was one.
    pub async fn destroy(&self, id: Id) -> Result<bool, Failure> {
        let alive = self.load_live(id, Want::Meta).await?.is_some();
        let removed = self.timed("remove", self.store.remove(id)).await?.is_some() && alive;
        self.shared.metrics.events(Event::Destroyed, u64::from(removed));
        Ok(removed)
    }

    /// A page of the sessions of a principal, or of all.
    pub async fn list(
        &self,
        principal: Option<&Principal>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Listed, StoreError> {
        let page = self.timed("list", self.store.list(principal, cursor, limit)).await?;
        let now = self.shared.clock.now();
        let alive = |(_, meta): &(Id, Meta)| {
            self.shared.policy.is_alive(meta, now)
                && principal.is_none_or(|principal| meta.principal.as_ref() == Some(principal))
        };
        let sessions = page.sessions.into_iter().filter(alive).collect();
        Ok(Listed { sessions, next: page.next })
    }

    /// All sessions of a principal.
    pub async fn sessions_of(&self, principal: &Principal) -> Result<Vec<(Id, Meta)>, StoreError> {
        let mut sessions = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.list(Some(principal), cursor.as_deref(), PAGE).await?;
            sessions.extend(page.sessions);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(sessions);
            }
        }
    }

    /// Ends all sessions of a principal but `spared`; answers how many.
    pub async fn destroy_all_of(
        &self,
        principal: &Principal,
        spared: Option<Id>,
    ) -> Result<u64, Failure> {
        let mut destroyed = 0;
        for (id, _) in self.sessions_of(principal).await? {
            if Some(id) != spared {
                destroyed += u64::from(self.destroy(id).await?);
            }
        }
        info!(destroyed, "the sessions of a principal were ended");
        Ok(destroyed)
    }

    /// Ends the session of a request, and with it all others of its principal.
    pub async fn destroy_everywhere(&self, exchange: &Exchange) -> Result<(), Failure> {
        let principal = match self.read(exchange, Want::Meta).await {
            Ok(read) => read.session.and_then(|(id, record)| Some((id, record.meta.principal?))),
            // There is nothing left that could say whose it was.
            Err(Failure::Refused(Refusal::Gone)) => None,
            Err(failure) => return Err(failure),
        };
        if let Some((id, principal)) = principal {
            self.destroy_all_of(&principal, Some(id)).await?;
        }
        let patch = Patch { destroy: true, ..Patch::default() };
        let requested = Requested { patch: &patch, condition: None, want: Want::Meta };
        self.apply(exchange, requested).await.map(drop)
    }

    /// Removes what is over; answers how many sessions that were.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let removed = self.timed("sweep", self.store.sweep(self.shared.clock.now())).await?;
        self.shared.metrics.events(Event::Expired, removed);
        Ok(removed)
    }
}
