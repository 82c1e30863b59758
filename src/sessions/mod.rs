//! Where policy, cookie and store meet: a request's session is opened, changed and committed here.
//!
//! [`Sessions::open`] finds the session that a request's cookies name. While the upstream works,
//! the session API and header exchange change it through the request's [`Exchange`]. As the
//! response's head leaves, [`Sessions::commit`] writes the use down and decides the one Set-Cookie.
//! It knows neither routes nor HTTP bodies.

#[cfg(test)]
mod cached_tests;
mod cap;
mod carried;
mod change;
mod commit;
mod exchange;
#[cfg(test)]
mod histories;
mod in_flight;
#[cfg(test)]
mod jars;
mod keys;
mod new_sessions;
mod open;
mod remote;
mod service;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use crate::log::limited;
use crate::metrics::{Event, Metrics, SessionTokens, StoreOperation};
use crate::random;
use crate::session::cookie::Attributes;
use crate::session::id::Id;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{Authority, Change, Condition, Patch, Refusal, Tombstone};
use crate::session::peer::Instance;
use crate::session::policy::Policy;
use crate::session::record::{Entry, Meta, Record};
use crate::store::{Answer, Backend, Error as StoreError, Store, Want};
use crate::time::Clock;

pub use change::{ChangeRequest, Snapshot};
pub use commit::{CookieLine, ResponseKind};
pub use exchange::{CookieOutcome, Exchange, SessionError, TouchPolicy};
pub use in_flight::{InFlight, Resumed, Tracked};
pub use keys::KeyCheck;
pub use new_sessions::NewSessions;
pub use open::{Arrival, Opened};
pub use remote::Remote;
pub use service::{Destroyed, Listed};
pub use watch::{SessionStatus, WatchedSession};

/// Sessions, as one worker reaches them: the way to them is the worker's, the rest is shared.
#[derive(Clone, Debug)]
pub struct Sessions {
    home: Home,
    shared: Arc<Shared>,
}

/// Where sessions live.
#[derive(Clone, Debug)]
pub enum Home {
    /// In a store.
    Store(Arc<dyn Store>),
    /// In their clients' cookies, sealed.
    Cookies,
}

/// What the workers share.
#[derive(Debug)]
pub struct Shared {
    /// The key ring.
    pub ring: Arc<KeyRing>,
    /// The cookie.
    pub attributes: Attributes,
    /// The policy.
    pub policy: Policy,
    /// Where `now` comes from.
    pub clock: Clock,
    /// The counters.
    pub metrics: Metrics,
    /// The counters of the keys of `ring`.
    pub session_tokens: SessionTokens,
    /// How many sessions client addresses have created.
    pub new_sessions: Arc<NewSessions>,
    /// The requests that are being forwarded.
    pub in_flight: Arc<InFlight>,
    /// The process that forwards them.
    pub instance: Instance,
}

/// What a probe of the store has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Whether it can be read.
    pub read: bool,
    /// Whether it can be written.
    pub write: bool,
}

/// Why a call on a session did not do what it was asked for. Then nothing has changed, unless it
/// says that this is not known.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The change was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It needs a cookie, and the response's head has left.
    #[error("the response's head has left, and with it the last chance to set a cookie")]
    ResponseCommitted,
    /// The request brought the cookies of two sessions.
    #[error("the request brought the cookies of two sessions")]
    AmbiguousCookie,
    /// There is no session to do this to.
    #[error("there is no such session")]
    NoSuchSession,
    /// Its principal has as many sessions as it may have.
    #[error("the principal has as many sessions as it may have; log one of them out")]
    TooManySessions,
    /// Its client's address has created as many sessions as it may.
    #[error("too many new sessions from this client's address; try again later")]
    TooManyNewSessions {
        /// When one more may be created: at most a minute.
        retry_after: Duration,
    },
    /// The request could not load its session when it came.
    #[error("the store did not answer when the request came")]
    NotLoaded,
    /// The instance that forwarded the request has to do this.
    #[error("only the instance that forwarded the request can do this")]
    OtherInstance,
    /// It needs sessions of which no request is here, and they live in cookies.
    #[error("sessions live in their clients' cookies; nobody can list them, or end another's")]
    NoStore,
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Sessions that live there.
    pub fn new(home: Home, shared: Arc<Shared>) -> Self {
        Self { home, shared }
    }

    /// What the workers share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Asks the store whether it can be read and written now. Without a store both can.
    pub async fn probe(&self) -> Probed {
        let Home::Store(store) = &self.home else { return Probed { read: true, write: true } };
        let read = self.timed(StoreOperation::Ping, store.ping()).await;
        let now = self.shared.clock.now();
        let write = self.timed(StoreOperation::Probe, store.probe(now)).await;
        for error in [read.as_ref().err(), write.as_ref().err()].into_iter().flatten() {
            debug!(%error, "a probe of the store failed");
        }
        Probed { read: read.is_ok(), write: write.is_ok() }
    }

    fn in_cookies(&self) -> bool {
        matches!(self.home, Home::Cookies)
    }

    /// The store of all sessions.
    fn store(&self) -> Result<&dyn Store, Failure> {
        match &self.home {
            Home::Store(store) => Ok(&**store),
            Home::Cookies => Err(Failure::NoStore),
        }
    }

    /// Where the session of a request is: with the request while that lasts, where it came in its
    /// cookie.
    fn store_of<'a>(&'a self, exchange: &'a Exchange) -> Result<&'a dyn Backend, Failure> {
        match (&self.home, &exchange.carried) {
            (Home::Store(store), _) => Ok(&**store),
            (Home::Cookies, Some(carried)) if exchange.over_since().is_none() => Ok(carried),
            (Home::Cookies, _) => Err(Failure::ResponseCommitted),
        }
    }

    /// Returns the live entry under `id`: from a cache if `suffices` accepts what that holds, else
    /// from the store.
    ///
    /// A cached record may be a moment old. It can show that a token is valid, for as long as it
    /// takes to be invalidated; nothing else may rest on it, neither that a token is not valid nor
    /// that the session has ended.
    async fn load_cached(
        &self,
        store: &dyn Backend,
        id: Id,
        want: Want<'_>,
        suffices: impl Fn(&Meta) -> bool,
    ) -> Result<Option<Entry>, StoreError> {
        if let Some(Entry::Live(record)) = store.cached(id, want)
            && self.shared.policy.is_alive(&record.meta, self.shared.clock.now())
            && suffices(&record.meta)
        {
            return Ok(Some(Entry::Live(record)));
        }
        self.load(store, id, want).await
    }

    /// Returns the live entry under `id` as the store has it.
    async fn load(
        &self,
        store: &dyn Backend,
        id: Id,
        want: Want<'_>,
    ) -> Result<Option<Entry>, StoreError> {
        let entry = self.timed(StoreOperation::Load, store.load(id, want)).await;
        let entry = self.readable(id, entry)?.flatten();
        let now = self.shared.clock.now();
        Ok(entry.filter(|entry| match entry {
            Entry::Live(record) => self.shared.policy.is_alive(&record.meta, now),
            Entry::Ended { until } => now <= *until,
        }))
    }

    /// Returns the live session under `id` as the store has it.
    async fn load_live(
        &self,
        store: &dyn Backend,
        id: Id,
        want: Want<'_>,
    ) -> Result<Option<Record>, StoreError> {
        Ok(self.load(store, id, want).await?.and_then(Entry::into_live))
    }

    /// The answer, or `None` where what stands under `id` is nothing that can be read: nobody will
    /// be served from it again, and its visitor may begin anew. It stays for who looks into it.
    fn readable<T>(&self, id: Id, answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match answer {
            Err(StoreError::Corrupt(cause)) => {
                self.shared.metrics.event(Event::Unreadable);
                limited!(error, "unreadable", session = %id, cause, "session cannot be read and counts as missing");
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    fn change<'a>(
        &'a self,
        patch: &'a Patch,
        condition: Option<&'a Condition>,
        authority: Authority,
        touches: bool,
        tombstone: Tombstone,
    ) -> Change<'a> {
        let Shared { policy, clock, .. } = &*self.shared;
        Change { patch, condition, authority, policy, now: clock.now(), touches, tombstone }
    }

    /// Waits for the store, and notes how long it took.
    async fn timed<T>(
        &self,
        operation: StoreOperation,
        answer: Answer<'_, T>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let answer = answer.await;
        self.shared.metrics.store_call(operation, start.elapsed(), answer.is_err());
        answer
    }
}

/// A new id.
fn draw_id() -> Id {
    Id::from_bytes(random::bytes())
}
