//! Calls on all sessions, by the service token.

use http::Response;
use serde::Serialize;
use serde_json::value::RawValue;

use super::problem::{self, ApiResult};
use super::request::Query;
use super::response;
use super::routes::QueryParameter;
use crate::body::Body;
use crate::session::id::Id;
use crate::session::record::Meta;
use crate::sessions::Sessions;
use crate::wire::View;

/// A call on all sessions.
#[derive(Debug)]
pub(super) struct ServiceCall {
    pub(super) sessions: Sessions,
    pub(super) query: Query,
}

/// A list of sessions without their values.
#[derive(Debug, Default, Serialize)]
pub(super) struct SessionList {
    sessions: Vec<Box<RawValue>>,
}

/// A page of all sessions.
#[derive(Serialize)]
struct SessionPage {
    sessions: Vec<Box<RawValue>>,
    /// The cursor of the next page.
    next: Option<String>,
}

/// The number of expired sessions that were removed.
#[derive(Serialize)]
struct Removed {
    removed: u64,
}

impl SessionList {
    /// Creates a list. `current` says whether a session is the caller's own, if there is one.
    pub(super) fn new(
        sessions: &Sessions,
        listed: &[(Id, Meta)],
        current: impl Fn(Id) -> Option<bool>,
    ) -> ApiResult<Self> {
        let shared = sessions.shared();
        let now = shared.clock.now();
        let one = |(id, meta): &(Id, Meta)| {
            let view = View { session: Some((*id, meta)), policy: &shared.policy, now };
            serde_json::value::to_raw_value(&view.listed(current(*id)))
        };
        let sessions = listed.iter().map(one).collect::<Result<_, _>>();
        Ok(Self { sessions: sessions.map_err(|_invalid| problem::internal())? })
    }
}

impl ServiceCall {
    pub(super) async fn list(self) -> ApiResult<Response<Body>> {
        let (principal, limit) = (self.query.principal()?, self.query.limit()?);
        let cursor = self.query.get(QueryParameter::Cursor);
        let page = self.sessions.directory()?.list(principal.as_ref(), cursor, limit).await?;
        let SessionList { sessions } = SessionList::new(&self.sessions, &page.sessions, |_| None)?;
        response::serialize(&SessionPage { sessions, next: page.next })
    }

    pub(super) async fn destroy_all(self) -> ApiResult<Response<Body>> {
        let principal = self.query.principal()?.ok_or_else(problem::invalid_principal)?;
        let destroyed = self.sessions.directory()?.destroy_all_of(&principal, None).await?;
        response::destroyed_json(destroyed)
    }

    pub(super) async fn clear_expired(self) -> ApiResult<Response<Body>> {
        response::serialize(&Removed { removed: self.sessions.sweep().await? })
    }
}
