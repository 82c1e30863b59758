//! One request of a session at a time: a request waits for its turn on the session that its cookies name, and the
//! session is looked up then.
//!
//! A request that has to wait is looked up before, too: only tokens that open the session keep a place in its queue.
//! Otherwise clients with an old token of a session, e.g. one from before a log-in, could fill it.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::calls::Calls;
use super::found::Found;
use super::look_up::{Tokens, look_up, look_up_cached, named_session};
use super::request::CookieOutcome;
use super::shared::Shared;
use crate::audit::Source;
use crate::metrics::Event;
use crate::store::{Error as StoreError, Want};
use crate::turns::Full;

/// Most requests that wait for their turn on one session.
const MAX_WAITING: usize = 128;

/// The reason why a request did not get its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Busy {
    #[error("{MAX_WAITING} requests of the session are waiting already")]
    Full,
    #[error("earlier requests of the session took longer than one_at_a_time_wait")]
    TimedOut,
}

impl From<Full> for Busy {
    fn from(_full: Full) -> Self {
        Self::Full
    }
}

/// The reason why the session of a request was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// A look-up of the tokens of one request, which may be repeated.
#[derive(Clone, Copy)]
pub(super) struct LookUp<'a> {
    pub(super) tokens: &'a Tokens,
    pub(super) want: Want<'a>,
    pub(super) calls: Calls<'a>,
    pub(super) shared: &'a Shared,
    pub(super) source: &'a Source,
}

impl LookUp<'_> {
    /// Looks up the tokens when it is the request's turn on their session. A request without a session gets no turn.
    ///
    /// # Errors
    /// The store did not answer, or the request did not get its turn within `wait`.
    pub(super) async fn in_turn(self, wait: Duration) -> Result<Found, OpenError> {
        let deadline = Instant::now() + wait;
        let id = match named_session(self.tokens) {
            Some(id) => id,
            // Several tokens: the store knows which of them open a session.
            None => match self.run().await? {
                Found { outcome: CookieOutcome::Session { id, .. }, .. } => id,
                found => return Ok(found),
            },
        };
        let mut turn = pin!(self.shared.turns.wait(id, MAX_WAITING));
        // The first poll enters the queue, so that the order is that of arrival.
        let turn = match poll_fn(|cx| Poll::Ready(turn.as_mut().poll(cx))).await {
            Poll::Ready(turn) => turn.map_err(Busy::from),
            Poll::Pending => {
                let _waiting = self.shared.metrics.request_waiting();
                let found = self.run().await?;
                if !found.is_session(id) {
                    return Ok(found);
                }
                let turn = timeout_at(deadline, turn).await.map_err(|_elapsed| Busy::TimedOut);
                turn.and_then(|turn| turn.map_err(Busy::from))
            }
        };
        let turn = turn.inspect_err(|_| self.shared.metrics.event(Event::SessionBusy))?;
        let found = self.run().await?;
        let turn = found.is_session(id).then(|| Arc::new(turn));
        Ok(Found { turn, ..found })
    }

    async fn run(self) -> Result<Found, StoreError> {
        let Self { tokens, want, calls, shared, source } = self;
        match look_up_cached(tokens, want, calls, shared) {
            Some(found) => Ok(found),
            None => look_up(tokens.clone(), want, calls, shared, source).await,
        }
    }
}
