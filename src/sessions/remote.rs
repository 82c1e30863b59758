//! Requests that another instance forwarded: what can be done for them here, in the store they share.
//!
//! Their tokens say to which session they were bound when they were forwarded. While that session
//! lives and was not rotated away, they are bound to it still: whatever binds a request anew ends or
//! rotates its session first. So what needs no cookie is done here, and the rest is the other
//! instance's.

use super::change::{ChangeRequest, Snapshot, changed};
use super::{Failure, Sessions};
use crate::session::id::Id;
use crate::session::patch::{Authority, Refusal, Tombstone};
use crate::session::record::{Entry, Meta};
use crate::store::Want;

/// A request that another instance forwarded, or this one's process before it was started anew.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// The session that it was bound to; `None` where its own instance alone can say whether it has
    /// one, or whether it still lasts.
    pub(super) session: Option<(Id, u32)>,
    /// Whether its changes prolong the session.
    pub(super) prolongs: bool,
}

impl Sessions {
    /// The session of a request of another instance, as it is now.
    pub async fn read_remote(&self, remote: Remote, want: Want<'_>) -> Result<Snapshot, Failure> {
        let (id, generation) = remote.session.ok_or(Failure::OtherInstance)?;
        let serves = |meta: &Meta| meta.serves(generation);
        match self.load_cached(self.store()?, id, want, serves).await? {
            Some(Entry::Live(record)) if !record.meta.rotated_away(generation) => {
                Ok(Snapshot { session: Some((id, record)), ..Snapshot::default() })
            }
            Some(Entry::Live(_) | Entry::Ended { .. }) | None => Err(Failure::OtherInstance),
        }
    }

    /// Changes values of the session of a request of another instance.
    pub async fn apply_remote(
        &self,
        remote: Remote,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let ChangeRequest { patch, condition, want } = requested;
        let (id, generation) = remote.session.ok_or(Failure::OtherInstance)?;
        if patch.needs_cookie() || patch.destroy {
            return Err(Failure::OtherInstance);
        }
        let authority = Authority::Request(generation);
        let change = self.change(patch, condition, authority, remote.prolongs, Tombstone::None);
        match self.patched(self.store()?, id, change, want).await {
            Ok(applied) => Ok(changed(id, applied, false)),
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended | Refusal::Rotated)) => {
                Err(Failure::OtherInstance)
            }
            Err(failure) => Err(failure),
        }
    }
}
