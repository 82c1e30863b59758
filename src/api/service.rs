//! Calls on all sessions, by the service token.

use http::Response;
use serde::Serialize;

use super::problem::{self, ApiResult};
use super::request::{Query, QueryParameter};
use super::response;
use crate::audit::By;
use crate::body::Body;
use crate::session::id::Id;
use crate::session::record::Meta;
use crate::sessions::Sessions;
use crate::wire::{SessionObject, View};

/// A call on all sessions.
#[derive(Debug)]
pub(super) struct ServiceCall {
    pub(super) sessions: Sessions,
    pub(super) query: Query,
}

/// A list of sessions without their values.
#[derive(Debug, Default, Serialize)]
pub(super) struct SessionList<'a> {
    sessions: Vec<SessionObject<'a>>,
}

/// A page of all sessions.
#[derive(Serialize)]
struct SessionPage<'a> {
    sessions: Vec<SessionObject<'a>>,
    /// The cursor of the next page.
    next: Option<&'a str>,
}

/// The number of expired sessions that were removed.
#[derive(Serialize)]
struct Removed {
    removed: u64,
}

impl<'a> SessionList<'a> {
    /// Creates a list. `current` says whether a session is the caller's own, if there is one.
    pub(super) fn new(
        sessions: &'a Sessions,
        listed: &'a [(Id, Meta)],
        current: impl Fn(Id) -> Option<bool>,
    ) -> Self {
        let shared = sessions.shared();
        let now = shared.clock.now();
        let one = |(id, meta): &'a (Id, Meta)| {
            let view = View { session: Some((*id, meta)), policy: &shared.policy, now };
            view.listed(current(*id))
        };
        Self { sessions: listed.iter().map(one).collect() }
    }
}

impl ServiceCall {
    pub(super) async fn list(self) -> ApiResult<Response<Body>> {
        let (principal, limit) = (self.query.principal()?, self.query.limit()?);
        let cursor = self.query.get(QueryParameter::Cursor);
        let page =
            self.sessions.directory(By::Service)?.list(principal.as_ref(), cursor, limit).await?;
        let SessionList { sessions } = SessionList::new(&self.sessions, &page.sessions, |_| None);
        response::serialize(&SessionPage { sessions, next: page.next.as_deref() })
    }

    pub(super) async fn destroy_all(self) -> ApiResult<Response<Body>> {
        let principal = self.query.principal()?.ok_or_else(problem::invalid_principal)?;
        let destroyed =
            self.sessions.directory(By::Service)?.destroy_all_of(&principal, None).await?;
        response::destroyed_json(destroyed)
    }

    pub(super) async fn clear_expired(self) -> ApiResult<Response<Body>> {
        response::serialize(&Removed { removed: self.sessions.sweep(|_| ()).await? })
    }
}
