//! Sessions of tunnels and event streams, which outlive the response's head.

use std::sync::Arc;

use tracing::debug;

use super::calls::Calls;
use super::request::TouchPolicy;
use super::shared::Shared;
use crate::session::id::Id;
use crate::session::patch::{Proof, Use};
use crate::session::policy::Touch;
use crate::session::record::Entry;
use crate::store::{Error as StoreError, Store, Want};

/// A session that a tunnel or an event stream ends with.
#[derive(Clone, Debug)]
pub(crate) struct WatchedSession {
    pub(super) store: Arc<dyn Store>,
    pub(super) shared: Arc<Shared>,
    pub(super) id: Id,
    /// The generation that the request was bound to when the response began.
    pub(super) generation: u32,
    pub(super) touch: TouchPolicy,
}

/// The state of a watched session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionStatus {
    /// It is alive, or the store did not answer.
    Alive,
    /// It was destroyed or has expired.
    Ended,
}

impl WatchedSession {
    /// Checks whether the session is alive, and touches it if `used`: its client has sent something
    /// since the last check.
    pub(crate) async fn check(&self, used: bool) -> SessionStatus {
        self.try_check(used).await.unwrap_or_else(|error| {
            debug!(session = %self.id, %error, "failed to check the session of a tunnel");
            SessionStatus::Alive
        })
    }

    async fn try_check(&self, used: bool) -> Result<SessionStatus, StoreError> {
        let Self { id, generation, .. } = *self;
        let calls = Calls::new(&*self.store, &self.shared);
        let entry = calls.load_cached(id, Want::Meta, |_| true).await?;
        let Some(record) = entry.and_then(Entry::into_live) else {
            return Ok(SessionStatus::Ended);
        };
        let (policy, now) = (&self.shared.policy, self.shared.clock.now());
        // A log-in or a rotation since then has made the tunnel's token worthless: it may be in other
        // hands, so its traffic is not the visitor's.
        let touches = used
            && self.touch == TouchPolicy::OnUse
            && policy.touch == Touch::Request
            && !record.meta.rotated_away(generation);
        if touches && policy.touch_is_due(&record.meta, now) {
            let used = Use { generation, touches, sets_cookie: false, proves: Proof::None, now };
            calls.record_use(id, used).await?;
        }
        Ok(SessionStatus::Alive)
    }
}
