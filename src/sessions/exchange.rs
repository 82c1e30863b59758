//! A request in flight: what it came with, what it has done to its session since, and how far its
//! response is.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::RwLock;

use super::carried::Carried;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::navigation::{Navigation, Origin};
use crate::session::record::{Client, Meta};
use crate::session::rotation::Verdict;
use crate::session::token::{Bound, RequestToken};
use crate::time::Timestamp;

/// One proxied request, from its opening until its request token has lost its authority.
#[derive(Debug)]
pub struct Exchange {
    /// Its token, before it is signed.
    pub token: RequestToken,
    /// What its cookies were worth.
    pub presented: CookieOutcome,
    /// How it came about.
    pub origin: Origin,
    /// Whether use prolongs the session on its route.
    pub touch: TouchPolicy,
    /// Who sent it, where the policy keeps that.
    pub(super) client: Option<Client>,
    /// The address of its client, if it is known and is not a proxy's of ours.
    pub(super) address: Option<IpAddr>,
    /// Its session itself, where sessions live in cookies.
    pub(super) carried: Option<Carried>,
    /// When it was over, in milliseconds; 0 while it lasts.
    over_at: AtomicI64,
    /// Held for writing by what may bind the request anew, and by the response's head as it
    /// leaves, which so waits for calls that are running; held for reading by all others.
    pub(super) state: RwLock<State>,
}

/// What a request's cookies were worth when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CookieOutcome {
    /// No cookie that we signed.
    None,
    /// Well signed, but there is no such session.
    Unknown,
    /// A session.
    Session {
        /// Its id.
        id: Id,
        /// The generation of the token.
        generation: u32,
        /// What that is worth: current, next or previous.
        verdict: Verdict,
        /// Which key signed it.
        signed_by: SignedBy,
        /// The session as it was then.
        meta: Box<Meta>,
    },
    /// A session whose token another response has just replaced.
    Stale(Id),
    /// A session that another request has just ended.
    Ended,
    /// Two sessions.
    Ambiguous,
    /// The store did not say.
    Unavailable,
}

/// What prolongs a session on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TouchPolicy {
    /// Each request, if the policy touches on use.
    OnUse,
    /// No request: polling does not keep a visitor logged in.
    Never,
}

/// Why a request that presented a cookie, or whose browser kept one back, has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// The store did not answer.
    StoreUnavailable,
    /// The token was rotated a moment ago.
    SessionRotated,
    /// The session was ended a moment ago.
    SessionEnded,
    /// Two sessions were presented.
    AmbiguousCookie,
    /// The browser kept the cookie back: there may be a session.
    CookieWithheld,
}

/// What late calls need of a request that is over, besides its token.
#[derive(Clone, Debug)]
pub(super) struct Over {
    pub(super) since: Timestamp,
    pub(super) binding: Binding,
    /// The request made the session that it is bound to.
    pub(super) made: bool,
}

impl Over {
    /// Of a request that has changed nothing of what it is bound to.
    pub(super) fn unmoved(token: RequestToken) -> Self {
        let binding = match token.bound {
            Bound::Session(id, generation) => Binding::Session { id, generation, own: true },
            Bound::None(id) => Binding::None(id),
            Bound::Refused => Binding::Ambiguous,
        };
        Self { since: token.forwarded_at, binding, made: false }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) binding: Binding,
    /// The browser needs the cookie of the session that the request is bound to.
    pub(super) owes_cookie: bool,
    /// The session that the browser has the cookie of was ended by this request.
    pub(super) ended_own: bool,
    /// The request made the session that it is bound to.
    pub(super) made: bool,
    /// That session as the request's latest change left it, where one bound it anew.
    pub(super) meta: Option<Meta>,
}

/// How far the response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Its head has not left: a cookie can be set.
    Open,
    /// Its head has left.
    Committed,
}

/// What the request's calls act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// No session; the next write makes one of this id.
    None(Id),
    /// This session. `own`: the browser has, or is about to get, its cookie from elsewhere than
    /// this request alone.
    Session { id: Id, generation: u32, own: bool },
    /// A session whose token is stale.
    Stale(Id),
    /// A session that ended a moment ago.
    Ended,
    /// Two sessions.
    Ambiguous,
    /// The store did not say which.
    Unavailable,
}

impl Exchange {
    pub(super) fn new(
        number: u64,
        presented: CookieOutcome,
        origin: Origin,
        touch: TouchPolicy,
        client: Option<Client>,
        (now, next): (Timestamp, Id),
    ) -> Self {
        let binding = match &presented {
            CookieOutcome::None | CookieOutcome::Unknown => Binding::None(next),
            CookieOutcome::Session { id, generation, .. } => {
                Binding::Session { id: *id, generation: *generation, own: true }
            }
            CookieOutcome::Stale(id) => Binding::Stale(*id),
            CookieOutcome::Ended => Binding::Ended,
            CookieOutcome::Ambiguous => Binding::Ambiguous,
            CookieOutcome::Unavailable => Binding::Unavailable,
        };
        let bound = match binding {
            Binding::Session { id, generation, .. } => Bound::Session(id, generation),
            Binding::None(id) => Bound::None(id),
            _ => Bound::Refused,
        };
        let touches = touch == TouchPolicy::OnUse;
        let token = RequestToken { number, bound, prolongs: touches, forwarded_at: now };
        let state = RwLock::new(State::new(Phase::Open, binding));
        let (over_at, address, carried) = (AtomicI64::new(0), None, None);
        Self { token, presented, origin, touch, client, address, carried, over_at, state }
    }

    /// The same with its session itself.
    pub(super) fn carrying(self, carried: Option<Carried>) -> Self {
        Self { carried, ..self }
    }

    /// The same from this address.
    pub(super) fn at_address(self, address: Option<IpAddr>) -> Self {
        Self { address, ..self }
    }

    /// A request that is over, from its token and what was kept of it.
    pub(super) fn over(token: RequestToken, over: Over) -> Self {
        let state = State { made: over.made, ..State::new(Phase::Committed, over.binding) };
        let touch = if token.prolongs { TouchPolicy::OnUse } else { TouchPolicy::Never };
        Self {
            token,
            presented: CookieOutcome::None,
            origin: Origin { navigation: Navigation::None, withholds_cookie: false },
            touch,
            client: None,
            address: None,
            carried: None,
            over_at: AtomicI64::new(over.since.as_millis().max(1)),
            state: RwLock::new(state),
        }
    }

    /// What late calls need of it; `None` while it lasts, or while a call changes it.
    pub(super) fn summary(&self) -> Option<Over> {
        let since = self.over_since()?;
        let state = self.state.try_read().ok()?;
        Some(Over { since, binding: state.binding.clone(), made: state.made })
    }

    /// Notes that the request is over.
    pub(super) fn end(&self, now: Timestamp) {
        self.over_at.store(now.as_millis().max(1), Ordering::Relaxed);
    }

    /// Since when the request is over.
    pub fn over_since(&self) -> Option<Timestamp> {
        match self.over_at.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Timestamp::from_millis(millis)),
        }
    }

    /// Whether a cookie can still be set on its response.
    pub(super) fn takes_cookies(&self, state: &State) -> bool {
        state.phase == Phase::Open && self.over_since().is_none()
    }

    /// The session that the request came with.
    pub fn id(&self) -> Option<Id> {
        match &self.presented {
            CookieOutcome::Session { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// Why the request has no session, where there is something to say.
    pub fn error(&self) -> Option<SessionError> {
        match &self.presented {
            CookieOutcome::None if self.origin.withholds_cookie => {
                Some(SessionError::CookieWithheld)
            }
            CookieOutcome::None | CookieOutcome::Unknown | CookieOutcome::Session { .. } => None,
            CookieOutcome::Stale(_) => Some(SessionError::SessionRotated),
            CookieOutcome::Ended => Some(SessionError::SessionEnded),
            CookieOutcome::Ambiguous => Some(SessionError::AmbiguousCookie),
            CookieOutcome::Unavailable => Some(SessionError::StoreUnavailable),
        }
    }

    /// A session that is made through this request gets no cookie of its own.
    pub(super) fn is_withheld(&self) -> bool {
        self.error() == Some(SessionError::CookieWithheld)
    }
}

impl State {
    fn new(phase: Phase, binding: Binding) -> Self {
        Self { phase, binding, owes_cookie: false, ended_own: false, made: false, meta: None }
    }

    /// The session that the request is bound to, now.
    pub(super) fn session(&self) -> Option<Id> {
        match self.binding {
            Binding::Session { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Whether the token alone would no longer say what the request is bound to.
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
    /// The code that the upstream reads in `X-Session-Error`.
    pub fn code(self) -> &'static str {
        match self {
            Self::StoreUnavailable => "store_unavailable",
            Self::SessionRotated => "session_rotated",
            Self::SessionEnded => "session_ended",
            Self::AmbiguousCookie => "ambiguous_cookie",
            Self::CookieWithheld => "cookie_withheld",
        }
    }
}
