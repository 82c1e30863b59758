//! Sessions of tunnels, which outlive the response's head: looked at now and then, used by what the
//! client sends.

use tracing::debug;

use super::exchange::{Binding, Exchange, TouchPolicy};
use super::{Home, Sessions};
use crate::metrics::StoreOperation;
use crate::session::id::Id;
use crate::session::patch::Use;
use crate::session::policy::Touch;
use crate::session::record::Entry;
use crate::store::Want;

/// The session of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct WatchedSession {
    id: Id,
    /// The generation that its request was bound to when the tunnel began.
    generation: u32,
    touch: TouchPolicy,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// It is alive, or the store did not answer.
    Alive,
    /// It was destroyed or has expired.
    Ended,
}

impl Sessions {
    /// The session that a request has as its tunnel begins. What lives in a cookie cannot be watched.
    pub async fn watch(&self, exchange: &Exchange) -> Option<WatchedSession> {
        let Home::Store(_) = &self.home else { return None };
        let Binding::Session { id, generation, .. } = exchange.state.read().await.binding else {
            return None;
        };
        Some(WatchedSession { id, generation, touch: exchange.touch })
    }

    /// Looks at it; `used` says that its client has sent something since the last look.
    pub async fn check(&self, watched: WatchedSession, used: bool) -> SessionStatus {
        match self.standing(watched, used).await {
            Ok(standing) => standing,
            Err(error) => {
                debug!(session = %watched.id, %error, "a tunnel's session could not be looked at");
                SessionStatus::Alive
            }
        }
    }

    async fn standing(
        &self,
        watched: WatchedSession,
        used: bool,
    ) -> Result<SessionStatus, super::Failure> {
        let WatchedSession { id, generation, touch } = watched;
        let store = self.store()?;
        let entry = self.load_cached(store, id, Want::Meta, |_| true).await?;
        let Some(record) = entry.and_then(Entry::into_live) else {
            return Ok(SessionStatus::Ended);
        };
        let (policy, now) = (&self.shared.policy, self.shared.clock.now());
        // A log-in or rotation since makes the tunnel's token worthless: what comes by it is no use.
        let counts = used
            && touch == TouchPolicy::OnUse
            && policy.touch == Touch::Request
            && !record.meta.rotated_away(generation);
        if counts && policy.touch_is_due(&record.meta, now) {
            let used = Use { generation, touches: true, sets_cookie: false, proves: false, now };
            self.timed(StoreOperation::RecordUse, store.record_use(id, used, policy)).await?;
        }
        Ok(SessionStatus::Alive)
    }
}
