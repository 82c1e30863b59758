//! How many sessions a principal may have.
//!
//! The number is looked at beside the log-in, not in one step with it: log-ins at the same moment
//! may exceed it until the next one.

use super::change::Snapshot;
use super::exchange::{Binding, State};
use super::{Failure, Sessions};
use crate::log::limited;
use crate::session::policy::AtMax;
use crate::session::record::{Meta, Principal};

impl Sessions {
    /// Refuses a log-in of a principal that has as many sessions as it may have, where the policy
    /// does that. The request's own session is no further one.
    pub(super) async fn admit(&self, principal: &Principal, state: &State) -> Result<(), Failure> {
        let policy = &self.shared.policy;
        let (Some(max), AtMax::Reject) = (policy.max_per_principal, policy.at_max_per_principal)
        else {
            return Ok(());
        };
        let own = match state.binding {
            Binding::Session { id, .. } | Binding::Stale(id) => Some(id),
            Binding::None(_) | Binding::Ended | Binding::Ambiguous | Binding::Unavailable => None,
        };
        let sessions = self.sessions_of(principal).await?;
        let others = sessions.iter().filter(|(id, _)| Some(*id) != own).count();
        if others < max { Ok(()) } else { Err(Failure::TooManySessions) }
    }

    /// Ends the sessions of a principal that logged in first, until there are as many as there may
    /// be; never the one that has just logged in. The log-in stands whatever becomes of this.
    pub(super) async fn evict_beyond(&self, principal: &Principal, changed: &Snapshot) {
        let policy = &self.shared.policy;
        let (Some(max), AtMax::EvictOldest) =
            (policy.max_per_principal, policy.at_max_per_principal)
        else {
            return;
        };
        let own = changed.session.as_ref().map(|(id, _)| *id);
        let evicted = async {
            let mut others = self.sessions_of(principal).await?;
            others.retain(|(id, _)| Some(*id) != own);
            others.sort_by_key(|(id, meta)| (logged_in_at(meta), *id));
            let excess = (others.len() + 1).saturating_sub(max);
            for (id, _) in others.into_iter().take(excess) {
                self.destroy(id).await?;
            }
            Ok::<(), Failure>(())
        };
        if let Err(error) = evicted.await {
            limited!(warn, "cap", %error, "failed to evict the principal's oldest sessions");
        }
    }
}

fn logged_in_at(meta: &Meta) -> crate::time::Timestamp {
    meta.login_at.unwrap_or(meta.created_at)
}
