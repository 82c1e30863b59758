//! Destroying the session of a request.

use super::failure::Failure;
use super::request_session::RequestSession;
use super::snapshot::{ChangeRequest, Destroyed};
use crate::session::patch::{Patch, Refusal};
use crate::store::Want;

impl RequestSession {
    pub(crate) async fn destroy(&self) -> Result<Destroyed, Failure> {
        let patch = Patch { destroy: true, ..Patch::default() };
        Ok(Destroyed::by(&self.apply(ChangeRequest::new(&patch)).await?))
    }

    /// Destroys the session and all others of its principal.
    pub(crate) async fn destroy_everywhere(&self) -> Result<Destroyed, Failure> {
        let principal = match self.read(Want::Meta).await {
            Ok(read) => read.session.and_then(|(id, record)| Some((id, record.meta.principal?))),
            // The principal was in the session, which is gone.
            Err(Failure::Refused(Refusal::Gone)) => None,
            Err(failure) => return Err(failure),
        };
        let mut others = Destroyed::default();
        if let Some((id, principal)) = principal {
            // Its own session comes last: it has the principal, should the call be repeated after
            // an error.
            others = self.directory()?.destroy_all_of(&principal, Some(id)).await?;
        }
        Ok(others.and(self.destroy().await?))
    }
}
