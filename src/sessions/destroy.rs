//! Destroying the session of a request.

use super::failure::Failure;
use super::request::Binding;
use super::request_session::RequestSession;
use super::snapshot::{ChangeRequest, Destroyed};
use crate::session::id::Id;
use crate::session::patch::{Authority, Patch, Refusal};
use crate::session::record::{Principal, Record};
use crate::store::Want;

impl RequestSession {
    pub(crate) async fn destroy(&self) -> Result<Destroyed, Failure> {
        let patch = Patch::of_destroy();
        Ok(Destroyed::by(&self.apply(ChangeRequest::new(&patch)).await?))
    }

    /// Destroys the session and all others of its principal.
    pub(crate) async fn destroy_everywhere(&self) -> Result<Destroyed, Failure> {
        let mut others = Destroyed::default();
        if let Some((id, principal)) = self.principal_to_log_out().await? {
            // Its own session comes last: it has the principal, should the call be repeated after
            // an error.
            others = self.directory()?.destroy_all_of(&principal, Some(id)).await?;
        }
        Ok(others.and(self.destroy().await?))
    }

    /// Returns the session of the request and its principal, if it has both.
    async fn principal_to_log_out(&self) -> Result<Option<(Id, Principal)>, Failure> {
        let (id, authority) = match self.request.state.read().await.binding {
            Binding::Session { id, generation, .. } => (id, Authority::Request(generation)),
            Binding::Stale(id, generation) => (id, Authority::Stale(generation)),
            Binding::None(_) | Binding::Ended | Binding::Ambiguous | Binding::Unavailable => {
                return Ok(None);
            }
        };
        let Some(Record { meta, .. }) = self.calls()?.load_live(id, Want::Meta).await? else {
            // The principal was in the session, which is gone.
            return Ok(None);
        };
        if authority.is_away(&meta) && !authority.may_log_out(&meta) {
            return Err(Refusal::Rotated.into());
        }
        Ok(meta.principal.map(|principal| (id, principal)))
    }
}
