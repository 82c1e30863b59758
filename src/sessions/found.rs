//! The result of looking a request's cookies up.

use std::sync::Arc;

use super::cookie_backed::CookieBacked;
use super::request::CookieOutcome;
use super::shared::Shared;
use crate::log::limited;
use crate::metrics::Event;
use crate::session::id::Id;
use crate::session::record::Values;

/// The outcome of a request's cookies, and the values that were loaded with it.
pub(super) struct Found {
    pub(super) outcome: CookieOutcome,
    pub(super) values: Values,
    /// The session itself, if it lives in its cookie.
    pub(super) sealed: Option<Arc<CookieBacked>>,
}

impl From<CookieOutcome> for Found {
    fn from(outcome: CookieOutcome) -> Self {
        Self { outcome, values: Values::new(), sealed: None }
    }
}

/// The maximum number of sessions that are looked up for one request. A request whose well-signed
/// tokens name more is ambiguous without a look-up.
pub(super) const MAX_SESSIONS: usize = 4;

/// Counts and logs a request with the cookies of several sessions.
pub(super) fn log_ambiguous<'a>(shared: &Shared, sessions: impl Iterator<Item = &'a Id>) {
    shared.metrics.event(Event::AmbiguousCookie);
    let sessions: Vec<_> = sessions.take(MAX_SESSIONS + 1).collect();
    limited!(
        warn,
        "ambiguous_cookie",
        ?sessions,
        "request brought the cookies of several sessions"
    );
}
