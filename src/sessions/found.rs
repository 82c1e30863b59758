//! The result of looking a request's cookies up.

use std::sync::Arc;

use super::cookie_backed::CookieBacked;
use super::request::CookieOutcome;
use crate::log::limited;
use crate::session::id::Id;
use crate::session::record::Values;
use crate::turns::Turn;

/// The turn of a request on its session: others wait until it is dropped.
pub(crate) type SessionTurn = Turn<Id>;

/// The outcome of a request's cookies, and the values that were loaded with it.
pub(super) struct Found {
    pub(super) outcome: CookieOutcome,
    pub(super) values: Values,
    /// The session itself, if it lives in its cookie.
    pub(super) sealed: Option<Arc<CookieBacked>>,
    /// The turn of the request, if its route lets one request of a session through at a time.
    pub(super) turn: Option<Arc<SessionTurn>>,
}

impl From<CookieOutcome> for Found {
    fn from(outcome: CookieOutcome) -> Self {
        Self { outcome, values: Values::new(), sealed: None, turn: None }
    }
}

impl Found {
    /// Returns whether the cookies opened the session at `place`.
    pub(super) fn is_session(&self, place: Id) -> bool {
        matches!(&self.outcome, CookieOutcome::Session { id, .. } if *id == place)
    }
}

/// The maximum number of sessions that are looked up for one request. A request whose well-signed
/// tokens name more is ambiguous without a look-up.
pub(super) const MAX_SESSIONS: usize = 4;

/// Logs a request with the cookies of several sessions.
pub(super) fn log_ambiguous<'a>(sessions: impl Iterator<Item = &'a Id>) {
    let sessions: Vec<_> = sessions.take(MAX_SESSIONS + 1).collect();
    limited!(
        warn,
        "ambiguous_cookie",
        ?sessions,
        "request brought the cookies of several sessions"
    );
}
