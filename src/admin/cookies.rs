//! Session cookies without a valid signature.

use crate::metrics::Samples;

/// The session cookies of a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cookies {
    /// Those without a valid signature.
    pub(super) invalid: f64,
    pub(super) all: f64,
}

/// Fewer cookies of a minute say nothing: one client may have made them up.
const MIN_COOKIES: f64 = 5.0;

impl Cookies {
    pub(super) fn between(earlier: &Samples, later: &Samples) -> Self {
        let growth = |count: &dyn Fn(&Samples) -> f64| (count(later) - count(earlier)).max(0.0);
        let invalid =
            growth(&|samples| samples.of("session_events_total", "event", "invalid_cookie"));
        let valid = growth(&|samples| samples.sum("session_tokens_total"));
        Self { invalid, all: invalid + valid }
    }

    pub(super) fn are_mostly_invalid(&self) -> bool {
        self.all >= MIN_COOKIES && self.invalid * 2.0 > self.all
    }
}
