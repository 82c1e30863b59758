//! A request in flight: the outcome of its cookies, the binding to its session, and the phase of its
//! response.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::RwLock;

use super::cookie_backed::CookieBacked;
use crate::audit::Source;
use crate::random;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::navigation::{Navigation, Origin};
use crate::session::policy::HeaderExchange;
use crate::session::record::{Client, Meta, Record};
use crate::session::rotation::Verdict;
use crate::session::token::{Bound, RequestToken};
use crate::time::Timestamp;

/// A proxied request, from the opening of its session until its request token expires.
///
/// All workers share it, so it has no connection to a store: each worker brings its own.
#[derive(Debug)]
pub(crate) struct InFlightRequest {
    /// Its token, unsigned.
    pub(super) token: RequestToken,
    pub(super) outcome: CookieOutcome,
    pub(super) context: RequestContext,
    /// Its session, if that lives in its cookie.
    pub(super) sealed: Option<Arc<CookieBacked>>,
    /// Milliseconds since the epoch; 0 until the request ends.
    ended_at: AtomicI64,
    /// Locked for writing by changes that may bind the request to another session, and by the commit
    /// of the response's head, which so waits for running calls; locked for reading by other calls.
    pub(super) state: RwLock<State>,
}

/// The parts of a request on which changes of its session depend.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    pub(super) origin: Origin,
    pub(super) touch: TouchPolicy,
    /// What the audit trail says of it.
    pub(super) source: Source,
    /// Its client, if the policy records it.
    pub(super) client: Option<Client>,
    /// The address of its client, unless that is unknown or a trusted proxy's.
    pub(super) address: Option<IpAddr>,
    /// Header exchange of its route; `None` if it has none, or is not known since the request has ended.
    pub(super) header_exchange: Option<HeaderExchange>,
}

/// The result of a request's cookies when it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CookieOutcome {
    /// No cookie that we signed.
    None,
    /// A well-signed token of no session.
    Unknown,
    /// A session.
    Session {
        id: Id,
        /// The generation of the token.
        generation: u32,
        verdict: Verdict,
        signed_by: SignedBy,
        /// The session as it was then.
        meta: Box<Meta>,
    },
    /// A session whose token, of this generation, another response has just replaced.
    Stale { id: Id, generation: u32, meta: Box<Meta> },
    /// A session that another request has just destroyed.
    Ended {
        /// The end of its tombstone.
        until: Timestamp,
    },
    /// Two sessions.
    Ambiguous,
    /// The store did not answer.
    Unavailable,
}

/// The requests of a route that touch their sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TouchPolicy {
    /// Each request, if the policy touches on use.
    OnUse,
    /// No request: polling does not keep a visitor logged in.
    Never,
}

/// The reason why a request that brought a cookie, or whose browser withheld one, has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionError {
    StoreUnavailable,
    /// The token was rotated a moment ago.
    SessionRotated,
    /// The session was destroyed a moment ago.
    SessionEnded,
    AmbiguousCookie,
    /// The browser withheld the cookie: there may be a session.
    CookieWithheld,
}

/// The part of an ended request that late calls need, apart from its token.
#[derive(Clone, Debug)]
pub(super) struct EndedRequest {
    pub(super) ended_at: Timestamp,
    pub(super) binding: Binding,
    pub(super) is_new: bool,
}

impl EndedRequest {
    /// Creates that of a request that has not changed its binding.
    pub(super) fn unchanged(token: RequestToken) -> Self {
        let binding = match token.bound {
            Bound::Session(id, generation) => Binding::Session { id, generation, own: true },
            Bound::None(id) => Binding::None(id),
            Bound::Refused => Binding::Ambiguous,
        };
        Self { ended_at: token.forwarded_at, binding, is_new: false }
    }
}

/// The part of a request that its calls change.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) binding: Binding,
    /// The browser needs the cookie of the session that the request is bound to.
    pub(super) owes_cookie: bool,
    /// The request has destroyed the session whose cookie the browser has.
    pub(super) ended_own: bool,
    pub(super) token: TokenOrigin,
    /// The session after the latest change that affected the binding or the cookie.
    pub(super) meta: Option<Meta>,
}

/// The origin of the token of the session that a request is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TokenOrigin {
    /// The request came with it.
    Presented,
    /// The request has rotated the session, or joined its log-in.
    Rotated,
    /// The request has created the session.
    Created,
}

/// The phase of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The head has not been sent: a cookie can be set.
    Open,
    Committed,
}

/// The session on which the request's calls act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// No session; the next write creates one with this id.
    None(Id),
    /// This session. `own`: the browser has its cookie, or gets it from another response.
    Session { id: Id, generation: u32, own: bool },
    /// A session whose token, of this generation, is stale.
    Stale(Id, u32),
    /// A session that was destroyed a moment ago.
    Ended,
    /// Two sessions.
    Ambiguous,
    /// The store did not answer.
    Unavailable,
}

impl InFlightRequest {
    pub(super) fn new(
        number: u64,
        outcome: CookieOutcome,
        context: RequestContext,
        sealed: Option<Arc<CookieBacked>>,
        now: Timestamp,
    ) -> Self {
        let binding = match &outcome {
            CookieOutcome::None | CookieOutcome::Unknown => Binding::None(draw_id()),
            CookieOutcome::Session { id, generation, .. } => {
                Binding::Session { id: *id, generation: *generation, own: true }
            }
            CookieOutcome::Stale { id, generation, .. } => Binding::Stale(*id, *generation),
            CookieOutcome::Ended { .. } => Binding::Ended,
            CookieOutcome::Ambiguous => Binding::Ambiguous,
            CookieOutcome::Unavailable => Binding::Unavailable,
        };
        let bound = match binding {
            Binding::Session { id, generation, .. } => Bound::Session(id, generation),
            Binding::None(id) => Bound::None(id),
            Binding::Stale(..) | Binding::Ended | Binding::Ambiguous | Binding::Unavailable => {
                Bound::Refused
            }
        };
        let touches = context.touch == TouchPolicy::OnUse;
        Self {
            token: RequestToken { number, bound, touches, forwarded_at: now },
            outcome,
            context,
            sealed,
            ended_at: AtomicI64::new(0),
            state: RwLock::new(State::new(Phase::Open, binding)),
        }
    }

    /// Restores a request that has ended, from its token and what was kept of it.
    pub(super) fn ended(token: RequestToken, ended: EndedRequest) -> Self {
        let origin = if ended.is_new { TokenOrigin::Created } else { TokenOrigin::Presented };
        let state = State { token: origin, ..State::new(Phase::Committed, ended.binding) };
        let context = RequestContext {
            // Its response is committed, so it creates no session, for which these would count.
            origin: Origin { navigation: Navigation::None, withholds_cookie: false },
            touch: if token.touches { TouchPolicy::OnUse } else { TouchPolicy::Never },
            source: Source::default(),
            client: None,
            address: None,
            header_exchange: None,
        };
        Self {
            token,
            outcome: CookieOutcome::None,
            context,
            sealed: None,
            ended_at: AtomicI64::new(ended.ended_at.as_millis().max(1)),
            state: RwLock::new(state),
        }
    }

    /// Returns what late calls need of it; `None` until it ends, and while a call changes it.
    pub(super) fn to_ended(&self) -> Option<EndedRequest> {
        let ended_at = self.ended_at()?;
        let state = self.state.try_read().ok()?;
        Some(EndedRequest { ended_at, binding: state.binding.clone(), is_new: state.is_new() })
    }

    pub(super) fn end(&self, now: Timestamp) {
        self.ended_at.store(now.as_millis().max(1), Ordering::Relaxed);
    }

    /// Returns when the request ended; `None` until then.
    pub(super) fn ended_at(&self) -> Option<Timestamp> {
        match self.ended_at.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Timestamp::from_millis(millis)),
        }
    }

    /// Returns whether a cookie can still be set on its response.
    pub(super) fn takes_cookies(&self, state: &State) -> bool {
        state.phase == Phase::Open && self.ended_at().is_none()
    }

    /// Returns the id that the next write would give to a new session; `None` if the request has a session, or cannot
    /// create one any more.
    pub(super) fn next_id(&self, state: &State) -> Option<Id> {
        match state.binding {
            Binding::None(id) if self.takes_cookies(state) => Some(id),
            _ => None,
        }
    }

    /// Returns why the request has no session, if the upstream should know.
    pub(super) fn error(&self) -> Option<SessionError> {
        match &self.outcome {
            CookieOutcome::None if self.context.origin.withholds_cookie => {
                Some(SessionError::CookieWithheld)
            }
            CookieOutcome::None | CookieOutcome::Unknown | CookieOutcome::Session { .. } => None,
            CookieOutcome::Stale { .. } => Some(SessionError::SessionRotated),
            CookieOutcome::Ended { .. } => Some(SessionError::SessionEnded),
            CookieOutcome::Ambiguous => Some(SessionError::AmbiguousCookie),
            CookieOutcome::Unavailable => Some(SessionError::StoreUnavailable),
        }
    }

    /// Returns whether a session that this request creates gets no cookie of its own.
    pub(super) fn is_withheld(&self) -> bool {
        self.error() == Some(SessionError::CookieWithheld)
    }
}

impl State {
    fn new(phase: Phase, binding: Binding) -> Self {
        Self {
            phase,
            binding,
            owes_cookie: false,
            ended_own: false,
            token: TokenOrigin::Presented,
            meta: None,
        }
    }

    /// Returns whether the request has created the session that it is bound to.
    pub(super) fn is_new(&self) -> bool {
        self.token == TokenOrigin::Created
    }

    /// Returns the session that the request is bound to now.
    pub(super) fn session(&self) -> Option<Id> {
        match self.binding {
            Binding::Session { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Binds the request to no session; its next write creates one.
    pub(super) fn unbind(&mut self) {
        self.binding = Binding::None(draw_id());
        self.owes_cookie = false;
        self.token = TokenOrigin::Presented;
        self.meta = None;
    }

    /// Binds the request to the session that it has just created.
    pub(super) fn bind_created(&mut self, id: Id, record: &Record) {
        self.binding = Binding::Session { id, generation: record.meta.generation, own: false };
        self.token = TokenOrigin::Created;
        self.owes_cookie = !record.meta.withheld;
        self.meta = Some(record.meta.clone());
    }

    /// Returns whether the binding is no longer the one in the request's token.
    pub(super) fn has_moved(&self, bound: Bound) -> bool {
        match (&self.binding, bound) {
            (Binding::Session { id, generation, .. }, Bound::Session(then, at)) => {
                *id != then || *generation != at
            }
            (Binding::None(id), Bound::None(then)) => *id != then,
            (Binding::Session { .. } | Binding::None(_), _) => true,
            _ => bound != Bound::Refused,
        }
    }
}

impl SessionError {
    /// Returns the code that the upstream reads in `X-Session-Error`.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::StoreUnavailable => "store_unavailable",
            Self::SessionRotated => "session_rotated",
            Self::SessionEnded => "session_ended",
            Self::AmbiguousCookie => "ambiguous_cookie",
            Self::CookieWithheld => "cookie_withheld",
        }
    }
}

/// Draws a new session id at random.
pub(super) fn draw_id() -> Id {
    Id::from_bytes(random::bytes())
}
