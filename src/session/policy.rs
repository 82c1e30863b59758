//! The policy: how long a session lives, when it is touched, when its token is renewed.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::record::{Expiry, Meta};
use crate::time::Timestamp;

/// What the configuration says of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A session ends this long after its last use.
    pub idle_timeout: Duration,
    /// A session ends this long after its creation, whatever its use; `None` is never.
    pub absolute_timeout: Option<Duration>,
    /// A session ends this long after its creation if no request has presented its cookie by then
    /// and no one has logged in to it; `None` is never.
    pub unproven_timeout: Option<Duration>,
    /// How old a generation grows before its successor goes out; `None` is never. Not less than
    /// `rotation_grace`.
    pub rotate_every: Option<Duration>,
    /// How long the generation before stays valid, and how long an ended session is remembered.
    pub rotation_grace: Duration,
    /// What a really old token does.
    pub on_replay: OnReplay,
    /// Cookies end with the browser.
    pub expire_at_browser_close: bool,
    /// When a visitor gets a session.
    pub create: Create,
    /// What prolongs a session.
    pub touch: Touch,
    /// Use is counted once in this time.
    pub touch_interval: Duration,
    /// The largest session: bytes of keys and JSON texts.
    pub max_bytes: usize,
    /// The most values in a session.
    pub max_values: usize,
    /// Keep the client's address and user agent in the session.
    pub record_client: bool,
    /// How many sessions a principal may have; `None` is any number.
    pub max_per_principal: Option<usize>,
    /// What a log-in does where there are as many already.
    pub at_max_per_principal: AtMax,
    /// How many sessions requests from one client address may create in a minute, log-ins not
    /// counted; `None` is any number.
    pub new_sessions_per_address: Option<u32>,
    /// How long a request token outlives its request; also how long a session lives after its
    /// latest write, where its request brought no cookie because the browser withheld it.
    pub request_token_linger: Duration,
}

/// What a token of a generation that was over long ago does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReplay {
    /// It names no session.
    Ignore,
    /// It ends the session: a thief may have rotated first.
    Revoke,
}

/// What a log-in does where its principal has as many sessions as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtMax {
    /// It ends those that logged in first.
    EvictOldest,
    /// It is refused.
    Reject,
}

/// When a visitor gets a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Create {
    /// At the first write.
    OnWrite,
    /// At the first page that the visitor opens.
    Navigation,
}

/// What prolongs a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Touch {
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

impl Policy {
    /// The longest a browser keeps a cookie: 400 days (RFC 6265bis, section 5.5).
    pub const MAX_COOKIE_AGE: Duration = Duration::from_hours(400 * 24);

    /// How long the session lives without use; its own, or the policy's.
    fn idle_of(&self, meta: &Meta) -> Duration {
        match meta.expiry {
            Some(Expiry::Idle(idle) | Expiry::BrowserClose(Some(idle))) => idle,
            _ => self.idle_timeout,
        }
    }

    /// Use is counted at most once in this time: the policy's interval, or a tenth of the
    /// session's own idle timeout where that is less.
    fn touch_interval_of(&self, meta: &Meta) -> Duration {
        self.touch_interval.min(self.idle_of(meta) / 10)
    }

    /// When the session ends if nobody uses it: what its upstream is told.
    pub fn expires_at(&self, meta: &Meta) -> Timestamp {
        self.end(meta, Duration::ZERO)
    }

    /// When the record ends. Use is counted once in a touch interval, so the record stays that
    /// much longer, and nobody is cut early.
    pub fn ends_at(&self, meta: &Meta) -> Timestamp {
        self.end(meta, self.touch_interval_of(meta))
    }

    /// The nearest of its ends. `unproven_timeout` counts from the creation: what a record that no
    /// browser has come back with is written to later does not keep it. It does not bound the
    /// cookie, which is to last as long as the session once that is proven.
    fn end(&self, meta: &Meta, slack: Duration) -> Timestamp {
        let end = self.bounded(meta, self.end_by_use(meta, slack));
        match self.unproven_timeout {
            Some(timeout) if meta.unproven => end.min(meta.created_at + timeout),
            _ => end,
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

    /// Whether the session is alive: the one decision about it, whatever a store has removed yet.
    pub fn is_alive(&self, meta: &Meta, now: Timestamp) -> bool {
        now < self.ends_at(meta)
    }

    /// Whether use at `now` is to be written down.
    pub fn touch_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
        self.touch == Touch::Request && now >= meta.last_seen_at + self.touch_interval_of(meta)
    }

    /// Whether the cookie ends with the browser.
    pub fn expires_at_browser_close(&self, meta: &Meta) -> bool {
        match meta.expiry {
            Some(Expiry::BrowserClose(_)) => true,
            Some(Expiry::Idle(_) | Expiry::At(_)) => false,
            None => self.expire_at_browser_close,
        }
    }

    /// The cookie's Max-Age at `now`; `None` where it ends with the browser.
    pub fn cookie_age(&self, meta: &Meta, now: Timestamp) -> Option<Duration> {
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

    /// Whether a persistent cookie is to be set again, so that its Max-Age slides with the
    /// session: a tenth of it, at most a day, has gone since it was last set.
    pub fn cookie_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
        let slides = !matches!(meta.expiry, Some(Expiry::At(_)));
        let day = Duration::from_hours(24);
        slides
            && self
                .cookie_age(meta, meta.cookie_set_at)
                .is_some_and(|age| now >= meta.cookie_set_at + (age / 10).min(day))
    }

    /// Whether the generation is old enough for its successor to go out: `rotate_every` has passed
    /// since it moved, and the grace since its own cookie was last set. Else that cookie, late by
    /// less than the grace, could take the successor's place in the browser, and the visitor would
    /// be out as soon as the grace of the old one is over.
    pub fn rotation_is_due(&self, meta: &Meta, now: Timestamp) -> bool {
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
    fn an_idle_session_ends_one_touch_interval_late_and_never_early() {
        let policy = Policy { idle_timeout: seconds(600), ..Policy::default() };
        let meta = meta(at(0));
        assert_eq!(policy.expires_at(&meta), at(600));
        assert!(policy.is_alive(&meta, at(659)));
        assert!(!policy.is_alive(&meta, at(660)));
        assert!(!policy.touch_is_due(&meta, at(59)));
        assert!(policy.touch_is_due(&meta, at(60)));
    }

    #[test]
    fn the_absolute_timeout_bounds_everything() {
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
    fn a_short_lifetime_of_its_own_is_touched_more_often() {
        let meta = Meta { expiry: Some(Expiry::Idle(seconds(5))), ..meta(at(0)) };
        let policy = Policy::default();
        assert!(policy.touch_is_due(&meta, at(1)));
        assert!(!policy.is_alive(&meta, at(6)));
    }

    #[test]
    fn a_cookie_slides_after_a_tenth_of_its_age_at_most_a_day() {
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
    fn a_fixed_instant_does_not_slide() {
        let meta = Meta { expiry: Some(Expiry::At(at(1000))), ..meta(at(0)) };
        let policy = Policy::default();
        assert!(!policy.cookie_is_due(&meta, at(999)));
        assert_eq!(policy.cookie_age(&meta, at(400)), Some(seconds(600)));
        assert!(!policy.is_alive(&meta, at(1000)));
    }

    #[test]
    fn max_age_never_passes_what_browsers_keep() {
        let policy = Policy { idle_timeout: Duration::MAX, ..Policy::default() };
        assert_eq!(policy.cookie_age(&meta(at(0)), at(0)), Some(Policy::MAX_COOKIE_AGE));
    }

    #[test]
    fn an_unproven_session_ends_early_and_its_cookie_does_not() {
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
    fn a_session_without_a_cookie_ends_soon_after_its_latest_write() {
        let meta = Meta { withheld: true, last_seen_at: at(30), ..meta(at(0)) };
        assert_eq!(Policy::default().expires_at(&meta), at(90));
    }
}
