//! Calls on the sessions of the principal of a request's session: "your devices".

use http::Response;

use super::problem::{self, ApiResult};
use super::request::Preference;
use super::response;
use super::service::SessionList;
use crate::audit::By;
use crate::body::Body;
use crate::session::id::PublicId;
use crate::session::record::{Principal, Record};
use crate::sessions::{Destroyed, RequestSession, Sessions};
use crate::store::Want;

/// A call on the sessions of a principal.
#[derive(Debug)]
pub(super) struct PrincipalCall {
    pub(super) sessions: Sessions,
    pub(super) session: RequestSession,
    /// The session that the path has.
    pub(super) id: Option<PublicId>,
    pub(super) prefer: Preference,
}

impl PrincipalCall {
    pub(super) async fn list(self) -> ApiResult<Response<Body>> {
        let Some((own, principal)) = self.own().await? else {
            return response::serialize(&SessionList::default());
        };
        let sessions = self.sessions.directory(By::OtherSession)?.sessions_of(&principal).await?;
        let list = SessionList::new(&self.sessions, &sessions, |id| Some(id == own.place));
        response::serialize(&list)
    }

    pub(super) async fn destroy_others(self) -> ApiResult<Response<Body>> {
        let destroyed = match self.own().await? {
            Some((own, principal)) => {
                self.sessions
                    .directory(By::OtherSession)?
                    .destroy_all_of(&principal, Some(own.place))
                    .await?
            }
            None => Destroyed::default(),
        };
        response::destroyed_json(destroyed)
    }

    pub(super) async fn destroy_one(self) -> ApiResult<Response<Body>> {
        let (own, principal) = self.own().await?.ok_or_else(problem::no_such_session)?;
        let id = self.id.ok_or_else(problem::no_such_session)?;
        if id == own {
            let destroyed = self.session.destroy().await?;
            return response::destroyed(destroyed, self.prefer);
        }
        let found = self.sessions.directory(By::OtherSession)?.find(id, Want::Meta).await?;
        let is_theirs = found
            .session
            .is_some_and(|(_, record)| record.meta.principal.as_ref() == Some(&principal));
        if !is_theirs {
            return Err(problem::no_such_session());
        }
        match self.sessions.directory(By::OtherSession)?.destroy(id).await? {
            Destroyed { count: 0, .. } => Err(problem::no_such_session()),
            destroyed => response::destroyed(destroyed, self.prefer),
        }
    }

    /// Returns the session of the request and its principal, if it has both.
    async fn own(&self) -> ApiResult<Option<(PublicId, Principal)>> {
        // After its request a token is authority over values alone.
        if self.session.ended_at().is_some() {
            return Err(problem::request_gone());
        }
        let read = self.session.read(Want::Meta).await?;
        Ok(read
            .session
            .and_then(|(id, Record { meta, .. })| Some((meta.public_id(id), meta.principal?))))
    }
}
