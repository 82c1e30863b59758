//! The policy: lifetimes of sessions, and when they are touched and their tokens renewed.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{Expiry, Meta};
use crate::time::Timestamp;

/// The lifetimes and limits of sessions, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A session ends this long after its last use.
    pub(crate) idle_timeout: Duration,
    /// A session ends this long after its creation, whatever its use; `None` is never.
    pub(crate) absolute_timeout: Option<Duration>,
    /// A session ends this long after its creation if no request has presented its cookie by then
    /// and no one has logged in to it; `None` is never.
    pub(crate) unproven_timeout: Option<Duration>,
    /// The age of a generation at which its successor is issued; `None` is never. Not less than
    /// `rotation_grace`.
    pub(crate) rotate_every: Option<Duration>,
    /// The time for which the previous generation stays valid and tombstones are kept.
    pub(crate) rotation_grace: Duration,
    /// The reaction to a token that was replaced long ago.
    pub(crate) on_replay: OnReplay,
    /// Cookies end with the browser.
    pub(crate) expire_at_browser_close: bool,
    /// The moment at which a visitor gets a session.
    pub(crate) create: Create,
    /// The requests that touch a session.
    pub(crate) touch: Touch,
    /// The interval in which use is recorded once.
    pub(crate) touch_interval: Duration,
    /// The maximum size of a session: bytes of keys and JSON texts.
    pub(crate) max_bytes: usize,
    /// The maximum number of values in a session.
    pub(crate) max_values: usize,
    /// Record the client's address and user agent in the session.
    pub(crate) record_client: bool,
    /// The maximum number of sessions of a principal; `None` is any number.
    pub(crate) max_per_principal: Option<usize>,
    /// The reaction to a log-in beyond `max_per_principal`.
    pub(crate) at_max_per_principal: AtMax,
    /// The maximum number of sessions that one client address may create in a minute, without
    /// log-ins; `None` is any number.
    pub(crate) new_sessions_per_address: Option<u32>,
    /// The time for which a request token outlives its request. Also the lifetime after its latest
    /// write of a session whose request had no cookie because the browser withheld it.
    pub(crate) request_token_linger: Duration,
}

/// Header exchange, as configured for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeaderExchange {
    pub(crate) mode: ExchangeMode,
    /// The maximum size of `X-Session-Data`, and of the keys in `X-Session-Data-Omitted`: name and value, in bytes.
    pub(crate) max_bytes: usize,
}

/// The values that a request has if not all of them fit into a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangeMode {
    /// None.
    Whole,
    /// The smallest ones, as long as they fit.
    Partial,
}

/// The reaction to a token that was replaced long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnReplay {
    /// The token opens no session.
    Ignore,
    /// The session is destroyed: a thief may have rotated it first.
    Revoke,
}

/// The reaction to a log-in of a principal that has reached its limit of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AtMax {
    /// The sessions that logged in first are destroyed.
    EvictOldest,
    /// The log-in is refused.
    Reject,
}

/// The moment at which a visitor gets a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Create {
    /// At the first write.
    OnWrite,
    /// At the first page that the visitor opens.
    Navigation,
}

/// The requests that touch a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Touch {
    /// Every request that presents it.
    Request,
    /// Only a change.
    Write,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_hours(14 * 24),
            absolute_timeout: None,
            unproven_timeout: None,
            rotate_every: Some(Duration::from_hours(1)),
            rotation_grace: Duration::from_mins(2),
            on_replay: OnReplay::Ignore,
            max_per_principal: None,
            at_max_per_principal: AtMax::EvictOldest,
            expire_at_browser_close: false,
            create: Create::OnWrite,
            touch: Touch::Request,
            touch_interval: Duration::from_mins(1),
            max_bytes: 1024 * 1024,
            max_values: 1024,
            record_client: false,
            new_sessions_per_address: None,
            request_token_linger: Duration::from_mins(1),
        }
    }
}

/// The reason why a session has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Expired {
    /// It was not used for its idle timeout.
    Idle,
    Absolute,
    /// No browser came back with it.
    Unproven,
    /// The date that the site has set has come.
    Date,
}

impl Policy {
    /// The maximum age of cookies in browsers: 400 days (RFC 6265bis, section 5.5).
    pub(crate) const MAX_COOKIE_AGE: Duration = Duration::from_hours(400 * 24);

    /// The time within which a session that holds cookies has to be presented.
    pub(crate) const HELD_UNPROVEN_TIMEOUT: Duration = Duration::from_hours(24);

    /// Returns the idle timeout of a session: its own, or the policy's.
    fn idle_of(&self, meta: &Meta) -> Duration {
        match meta.expiry {
            Some(Expiry::Idle(idle) | Expiry::BrowserClose(Some(idle))) => idle,
            _ => self.idle_timeout,
        }
    }

    /// Returns the touch interval of a session: the policy's, or a tenth of its idle timeout if that
    /// is less.
    fn touch_interval_of(&self, meta: &Meta) -> Duration {
        self.touch_interval.min(self.idle_of(meta) / 10)
    }

    /// Returns when the session expires without further use, as the upstream sees it.
    pub(crate) fn expires_at(&self, meta: &Meta) -> Timestamp {
        self.end(meta, Duration::ZERO)
    }

    /// Returns when the record expires. Use is recorded once in a touch interval, so the record is
    /// kept that much longer: no session ends early.
    pub(crate) fn ends_at(&self, meta: &Meta) -> Timestamp {
        self.end(meta, self.touch_interval_of(meta))
    }

    /// Returns the earliest of its ends. `unproven_timeout` counts from the creation, so writes do not
    /// extend a session that no browser has presented. It does not bound the cookie, which must last
    /// as long as the session does once it is proven.
    fn end(&self, meta: &Meta, slack: Duration) -> Timestamp {
        let end = self.bounded(meta, self.end_by_use(meta, slack));
        match self.unproven_timeout_of(meta) {
            Some(timeout) if meta.unproven => end.min(meta.created_at + timeout),
            _ => end,
        }
    }

    /// Returns the time within which a session has to be presented. One that holds cookies has a day at most: each
    /// request of a client without a cookie jar makes one.
    fn unproven_timeout_of(&self, meta: &Meta) -> Option<Duration> {
        match (self.unproven_timeout, &meta.held) {
            (timeout, None) => timeout,
            (None, Some(_)) => Some(Self::HELD_UNPROVEN_TIMEOUT),
            (Some(timeout), Some(_)) => Some(timeout.min(Self::HELD_UNPROVEN_TIMEOUT)),
        }
    }

    fn end_by_use(&self, meta: &Meta, slack: Duration) -> Timestamp {
        match meta.expiry {
            _ if meta.withheld => meta.last_seen_at + self.request_token_linger,
            Some(Expiry::At(instant)) => instant,
            _ => meta.last_seen_at + self.idle_of(meta) + slack,
        }
    }

    fn bounded(&self, meta: &Meta, end: Timestamp) -> Timestamp {
        match self.absolute_timeout {
            Some(absolute) => end.min(meta.created_at + absolute),
            None => end,
        }
    }

    /// Returns why an expired session has expired: the earliest of its ends.
    pub(crate) fn expired(&self, meta: &Meta) -> Expired {
        let end = self.ends_at(meta);
        let unproven_timeout = self.unproven_timeout_of(meta).filter(|_| meta.unproven);
        if unproven_timeout.is_some_and(|timeout| end == meta.created_at + timeout) {
            Expired::Unproven
        } else if self.absolute_timeout.is_some_and(|absolute| end == meta.created_at + absolute) {
            Expired::Absolute
        } else if matches!(meta.expiry, Some(Expiry::At(_))) && !meta.withheld {
            Expired::Date
        } else {
            Expired::Idle
        }
    }

    /// Returns whether the session is alive. This is the only place that decides it: stores remove
    /// expired records at any later time.
    pub(crate) fn is_alive(&self, meta: &Meta, now: Timestamp) -> bool {
        now < self.ends_at(meta)
    }

    /// Returns whether use at `now` is due to be recorded.
    pub(crate) fn touch_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
        self.touch == Touch::Request && now >= meta.last_seen_at + self.touch_interval_of(meta)
    }

    /// Returns whether the cookie ends with the browser.
    pub(crate) fn expires_at_browser_close(&self, meta: &Meta) -> bool {
        match meta.expiry {
            Some(Expiry::BrowserClose(_)) => true,
            Some(Expiry::Idle(_) | Expiry::At(_)) => false,
            None => {
                let ends_with_cookies = meta.held.as_ref().is_some_and(|held| !held.lasts());
                self.expire_at_browser_close || ends_with_cookies
            }
        }
    }

    /// Returns the cookie's Max-Age at `now`; `None` if it ends with the browser.
    pub(crate) fn cookie_age(&self, meta: &Meta, now: Timestamp) -> Option<Duration> {
        if self.expires_at_browser_close(meta) {
            return None;
        }
        let end = match meta.expiry {
            Some(Expiry::At(instant)) => instant,
            // From now, not from the last touch: the session is in use.
            _ => now + self.idle_of(meta),
        };
        Some(self.bounded(meta, end).since(now).min(Self::MAX_COOKIE_AGE))
    }

    /// Returns whether a persistent cookie is due to be set again, so that its Max-Age follows the
    /// session: a tenth of it, at most a day, has passed since it was last set.
    pub(crate) fn cookie_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
        let slides = !matches!(meta.expiry, Some(Expiry::At(_)));
        let day = Duration::from_hours(24);
        slides
            && self
                .cookie_age(meta, meta.cookie_set_at)
                .is_some_and(|age| now >= meta.cookie_set_at + (age / 10).min(day))
    }

    /// Returns whether the next generation is due: `rotate_every` has passed since the last one, and
    /// the grace period since the cookie was last set. Otherwise that cookie, delayed by less than
    /// the grace period, could replace its successor in the browser, and the visitor would be logged
    /// out at the end of the grace period.
    pub(crate) fn rotation_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
        self.rotate_every.is_some_and(|every| now >= meta.generation_since + every)
            && now >= meta.cookie_set_at + self.rotation_grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{at, meta};

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn idle_session_never_ends_early() {
        let policy = Policy { idle_timeout: seconds(600), ..Policy::default() };
        let meta = meta(at(0));
        assert_eq!(policy.expires_at(&meta), at(600));
        assert!(policy.is_alive(&meta, at(659)));
        assert!(!policy.is_alive(&meta, at(660)));
        assert!(!policy.touch_is_due(&meta, at(59)));
        assert!(policy.touch_is_due(&meta, at(60)));
    }

    #[test]
    fn absolute_timeout_bounds_all_lifetimes() {
        let policy = Policy { absolute_timeout: Some(seconds(100)), ..Policy::default() };
        for expiry in [
            None,
            Some(Expiry::Idle(seconds(3600))),
            Some(Expiry::At(at(500))),
            Some(Expiry::BrowserClose(None)),
        ] {
            let meta = Meta { expiry, last_seen_at: at(90), ..meta(at(0)) };
            assert_eq!(policy.expires_at(&meta), at(100), "{expiry:?}");
            assert!(!policy.is_alive(&meta, at(100)), "{expiry:?}");
        }
        assert_eq!(policy.cookie_age(&meta(at(0)), at(40)), Some(seconds(60)));
    }

    #[test]
    fn short_lifetimes_are_touched_more_often() {
        let meta = Meta { expiry: Some(Expiry::Idle(seconds(5))), ..meta(at(0)) };
        let policy = Policy::default();
        assert!(policy.touch_is_due(&meta, at(1)));
        assert!(!policy.is_alive(&meta, at(6)));
    }

    #[test]
    fn cookie_slides_after_a_tenth_of_its_age() {
        let due = |idle, after| {
            let policy = Policy { idle_timeout: seconds(idle), ..Policy::default() };
            policy.cookie_is_due(&meta(at(0)), at(after))
        };
        assert!(!due(600, 59));
        assert!(due(600, 60));
        assert!(!due(14 * 86_400, 86_399));
        assert!(due(14 * 86_400, 86_400));
    }

    #[test]
    fn fixed_expiry_does_not_slide() {
        let meta = Meta { expiry: Some(Expiry::At(at(1000))), ..meta(at(0)) };
        let policy = Policy::default();
        assert!(!policy.cookie_is_due(&meta, at(999)));
        assert_eq!(policy.cookie_age(&meta, at(400)), Some(seconds(600)));
        assert!(!policy.is_alive(&meta, at(1000)));
    }

    #[test]
    fn max_age_is_at_most_400_days() {
        let policy = Policy { idle_timeout: Duration::MAX, ..Policy::default() };
        assert_eq!(policy.cookie_age(&meta(at(0)), at(0)), Some(Policy::MAX_COOKIE_AGE));
    }

    #[test]
    fn unproven_timeout_does_not_bound_the_cookie() {
        let policy = Policy { unproven_timeout: Some(seconds(600)), ..Policy::default() };
        let proven = Meta { last_seen_at: at(500), ..meta(at(0)) };
        let unproven = Meta { unproven: true, ..proven.clone() };
        assert_eq!(policy.expires_at(&unproven), at(600));
        assert!(policy.is_alive(&unproven, at(599)) && !policy.is_alive(&unproven, at(600)));
        assert!(policy.is_alive(&proven, at(600)));
        assert_eq!(policy.cookie_age(&unproven, at(0)), policy.cookie_age(&proven, at(0)));
        // Whatever ends it sooner still does.
        let withheld = Meta { withheld: true, ..unproven.clone() };
        assert_eq!(policy.expires_at(&withheld), at(560));
        let own = Meta { expiry: Some(Expiry::Idle(seconds(10))), ..unproven };
        assert_eq!(policy.expires_at(&own), at(510));
    }

    #[test]
    fn withheld_session_ends_soon_after_a_write() {
        let meta = Meta { withheld: true, last_seen_at: at(30), ..meta(at(0)) };
        assert_eq!(Policy::default().expires_at(&meta), at(90));
    }
}
