//! The limit on sessions of one principal.
//!
//! It is checked next to the log-in, not in one step with it: parallel log-ins may exceed it until the
//! next one.

use std::error::Error as _;

use super::failure::Failure;
use super::request_session::RequestSession;
use crate::log::limited;
use crate::session::id::Id;
use crate::session::policy::AtMax;
use crate::session::record::{Meta, Principal};
use crate::time::Timestamp;

impl RequestSession {
    /// Refuses a log-in of a principal that has reached its limit, if the policy says so. `own` is
    /// the request's session, which does not count.
    pub(super) async fn admit_log_in(
        &self,
        principal: &Principal,
        own: Option<Id>,
    ) -> Result<(), Failure> {
        let policy = &self.shared.policy;
        let (Some(max), AtMax::Reject) = (policy.max_per_principal, policy.at_max_per_principal)
        else {
            return Ok(());
        };
        let sessions = self.directory()?.sessions_of(principal).await?;
        let others = sessions.iter().filter(|(id, _)| Some(*id) != own).count();
        if others < max { Ok(()) } else { Err(Failure::TooManySessions) }
    }

    /// Destroys the sessions of a principal that logged in first, down to the limit, but not `own`,
    /// which has just logged in. The log-in stands even if this fails.
    pub(super) async fn evict_oldest(&self, principal: &Principal, own: Option<Id>) {
        let policy = &self.shared.policy;
        let (Some(max), AtMax::EvictOldest) =
            (policy.max_per_principal, policy.at_max_per_principal)
        else {
            return;
        };
        let evicted = async {
            let directory = self.directory()?;
            let mut others = directory.sessions_of(principal).await?;
            others.retain(|(id, _)| Some(*id) != own);
            // By id too, so that parallel log-ins evict the same sessions.
            others.sort_by_key(|(id, meta)| (logged_in_at(meta), *id));
            let excess = (others.len() + 1).saturating_sub(max);
            for (id, _) in others.into_iter().take(excess) {
                directory.destroy_at(id).await?;
            }
            Ok::<(), Failure>(())
        };
        if let Err(error) = evicted.await {
            let cause = error.source().map(ToString::to_string);
            limited!(warn, "cap", %error, cause, "failed to evict the principal's oldest sessions");
        }
    }
}

fn logged_in_at(meta: &Meta) -> Timestamp {
    meta.login_at.unwrap_or(meta.created_at)
}
