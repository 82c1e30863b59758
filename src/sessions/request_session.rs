//! The session of one request: reading and watching it.
//!
//! Changes are in `apply`, the response's head in `commit`.

use std::sync::Arc;

use super::calls::Calls;
use super::cookie_backed::CookieBacked;
use super::directory::Directory;
use super::failure::Failure;
use super::request::{Binding, CookieOutcome, InFlightRequest, SessionError};
use super::shared::Shared;
use super::snapshot::Snapshot;
use super::watch::WatchedSession;
use crate::audit::{By, Entry};
use crate::metrics::Event;
use crate::session::id::{Id, PublicId};
use crate::session::patch::Refusal;
use crate::session::policy::HeaderExchange;
use crate::session::record::{self, Meta, Principal};
use crate::session::token::{Bound, RequestToken};
use crate::store::{Backend, Store, Want};
use crate::telemetry::TraceId;
use crate::time::Timestamp;

/// The session of one request, as one worker reaches it.
#[derive(Clone, Debug)]
pub(crate) struct RequestSession {
    pub(super) request: Arc<InFlightRequest>,
    pub(super) storage: Storage,
    pub(super) shared: Arc<Shared>,
}

/// The place where a request's session lives. The cookie carries its token, or all of it.
#[derive(Clone, Debug)]
pub(super) enum Storage {
    Store(Arc<dyn Store>),
    Cookie(Arc<CookieBacked>),
}

impl RequestSession {
    /// Returns the request's token, unsigned.
    pub(crate) fn token(&self) -> RequestToken {
        self.request.token
    }

    /// Returns the id of the session that the request's cookies opened; `None` if they opened none.
    pub(crate) fn presented_id(&self) -> Option<PublicId> {
        match &self.request.outcome {
            CookieOutcome::Session { id, meta, .. } => Some(meta.public_id(*id)),
            _ => None,
        }
    }

    /// Returns the id that a session of this request would get, for a visitor without one; `None` if the request may
    /// not create a session, or has one.
    pub(crate) fn next_id(&self) -> Option<Id> {
        match self.request.token.bound {
            Bound::None(id) => Some(id),
            Bound::Session(..) | Bound::Refused => None,
        }
    }

    /// Returns the id of the session that the request is bound to now; `None` while a call changes it.
    pub(crate) fn current_id(&self) -> Option<PublicId> {
        let state = self.request.state.try_read().ok()?;
        let place = state.session()?;
        let counter = self.known(&state, place).map_or(0, |meta| meta.id_counter);
        Some(PublicId { place, counter })
    }

    /// Returns the trace of the request; `None` for a request of which only its token is known.
    pub(crate) fn trace(&self) -> Option<TraceId> {
        self.request.context.source.trace
    }

    /// Returns why the request has no session, if the upstream should know.
    pub(crate) fn error(&self) -> Option<SessionError> {
        self.request.error()
    }

    /// Returns the header exchange of the request's route, while the request lasts.
    pub(crate) fn header_exchange(&self) -> Option<HeaderExchange> {
        self.request.context.header_exchange
    }

    /// Returns the session as it was when the request arrived; `None` if its cookies opened none.
    pub(super) fn presented_meta(&self) -> Option<&Meta> {
        match &self.request.outcome {
            CookieOutcome::Session { meta, .. } => Some(meta),
            _ => None,
        }
    }

    /// Returns when the request ended; `None` until then.
    pub(crate) fn ended_at(&self) -> Option<Timestamp> {
        self.request.ended_at()
    }

    /// Returns whether the request is bound to a session, even if that is stale, has ended, is ambiguous or could not
    /// be loaded.
    pub(crate) async fn is_bound(&self) -> bool {
        !matches!(self.request.state.read().await.binding, Binding::None(_))
    }

    /// Reads the session. Creates nothing and touches nothing.
    pub(crate) async fn read(&self, want: Want<'_>) -> Result<Snapshot, Failure> {
        let state = self.request.state.read().await;
        let (calls, is_new) = (self.calls()?, state.is_new());
        match state.binding {
            Binding::Session { id, generation, .. } => {
                match calls.load_cached(id, want, |meta| meta.suffices_for(generation)).await? {
                    Some(record::Entry::Live(record)) if record.meta.rotated_away(generation) => {
                        Err(Refusal::Rotated.into())
                    }
                    Some(record::Entry::Live(record)) => {
                        Ok(Snapshot { is_new, ..Snapshot::of(id, record) })
                    }
                    Some(record::Entry::Ended { .. }) | None => Err(Refusal::Gone.into()),
                }
            }
            Binding::Unavailable => Err(Failure::NotLoaded),
            Binding::None(_) | Binding::Stale(..) | Binding::Ended | Binding::Ambiguous => {
                Ok(Snapshot { next_id: self.request.next_id(&state), ..Snapshot::default() })
            }
        }
    }

    /// Returns the session for a response that outlives its head. A session in a cookie cannot be
    /// watched.
    pub(crate) async fn watch(&self) -> Option<WatchedSession> {
        let Storage::Store(store) = &self.storage else { return None };
        let Binding::Session { id, generation, .. } = self.request.state.read().await.binding
        else {
            return None;
        };
        let (store, shared) = (Arc::clone(store), Arc::clone(&self.shared));
        let touch = self.request.context.touch;
        Some(WatchedSession { store, shared, id, generation, touch })
    }

    /// Returns the calls to where the session lives. A cookie takes none after the request.
    pub(super) fn calls(&self) -> Result<Calls<'_>, Failure> {
        let backend: &dyn Backend = match &self.storage {
            Storage::Store(store) => &**store,
            Storage::Cookie(cookie) if self.request.ended_at().is_none() => &**cookie,
            Storage::Cookie(_) => return Err(Failure::ResponseCommitted),
        };
        Ok(Calls::new(backend, &self.shared))
    }

    /// Records what the request has done to a session.
    pub(super) fn record(&self, event: Event, session: PublicId, principal: Option<&Principal>) {
        let entry = Entry::new(event, By::Request).of(session, principal);
        self.shared.audit.record(entry.from(self.request.context.source.clone()));
    }

    /// Returns the directory of all sessions; none lists sessions that live in cookies.
    pub(super) fn directory(&self) -> Result<Directory, Failure> {
        match &self.storage {
            Storage::Store(store) => {
                let (store, shared) = (Arc::clone(store), Arc::clone(&self.shared));
                let source = self.request.context.source.clone();
                Ok(Directory::new(store, shared, By::OtherSession).for_request(source))
            }
            Storage::Cookie(_) => Err(Failure::NoStore),
        }
    }
}
