//! Sessions of requests that another instance forwarded, as far as the shared store is enough.
//!
//! A request token says to which session its request was bound when it was forwarded. While that
//! session lives and was not rotated away, the request is still bound to it, because each change of the
//! binding ends or rotates the session first. So changes that need no cookie are made here, and the
//! rest is left to the other instance.

use std::sync::Arc;

use super::calls::Calls;
use super::failure::Failure;
use super::shared::Shared;
use super::snapshot::{ChangeRequest, Snapshot};
use crate::session::id::Id;
use crate::session::patch::{Authority, Change, Refusal};
use crate::session::record::{Entry, Meta};
use crate::store::{Store, Want};

/// The session of a request that another instance forwarded, or an earlier process of this one.
#[derive(Clone, Debug)]
pub(crate) struct RemoteSession {
    pub(super) shared: Arc<Shared>,
    /// `None` if only the other instance knows whether the request has a session, or still lasts.
    pub(super) bound: Option<BoundSession>,
    /// Changes of the request touch the session.
    pub(super) touches: bool,
}

/// The session to which a remote request is bound.
#[derive(Clone, Debug)]
pub(super) struct BoundSession {
    pub(super) store: Arc<dyn Store>,
    pub(super) id: Id,
    pub(super) generation: u32,
}

impl RemoteSession {
    pub(crate) async fn read(&self, want: Want<'_>) -> Result<Snapshot, Failure> {
        let BoundSession { store, id, generation } = self.bound()?;
        let suffices = |meta: &Meta| meta.suffices_for(*generation);
        let calls = Calls::new(&**store, &self.shared);
        match calls.load_cached(*id, want, suffices).await? {
            Some(Entry::Live(record)) if !record.meta.rotated_away(*generation) => {
                Ok(Snapshot::of(*id, record))
            }
            Some(Entry::Live(_) | Entry::Ended { .. }) | None => Err(Failure::OtherInstance),
        }
    }

    /// Changes values of the session.
    pub(crate) async fn apply(&self, request: ChangeRequest<'_>) -> Result<Snapshot, Failure> {
        let BoundSession { store, id, generation } = self.bound()?;
        if request.patch.needs_cookie() || request.patch.destroy {
            return Err(Failure::OtherInstance);
        }
        let change = Change {
            touches: self.touches,
            ..request.to_change(*id, Authority::Request(*generation), &self.shared)
        };
        match Calls::new(&**store, &self.shared).patch(*id, change, request.want).await {
            Ok(applied) => Ok(Snapshot::after(*id, applied)),
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended | Refusal::Rotated)) => {
                Err(Failure::OtherInstance)
            }
            Err(failure) => Err(failure),
        }
    }

    fn bound(&self) -> Result<&BoundSession, Failure> {
        self.bound.as_ref().ok_or(Failure::OtherInstance)
    }
}
