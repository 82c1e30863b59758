//! Known problems: what the state of this instance says that an operator has to look at.

mod connections;
mod store;
mod upstreams;

use std::time::{Duration, Instant};

use serde::Serialize;

use super::history::log_ins;
use super::keys::Keys;
use super::moments::Moments;
use super::page::Rfc3339;
use super::rates::{Rate, Windows, count};
use super::reload::FailedReload;
use super::routing::Routing;
use crate::metrics::Metrics;
use crate::store::health::Report;
use crate::time::Timestamp;

/// A known problem.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    /// The problem as a code.
    problem: &'static str,
    pub(super) detail: String,
    pub(super) since: Option<Rfc3339>,
    /// The upstream that is slow, if this is the problem.
    #[serde(skip)]
    pub(super) slow_upstream: Option<String>,
}

/// What problems are found in.
pub(super) struct Facts<'a> {
    pub(super) now: Timestamp,
    pub(super) moments: &'a Moments,
    pub(super) metrics: &'a Metrics,
    pub(super) windows: &'a Windows,
    pub(super) routing: &'a Routing,
    /// The usual rate of log-ins, if it is known.
    pub(super) usual_log_ins: Option<f64>,
    /// The kind of the store, and what its last calls say.
    pub(super) store: (&'static str, &'a Report),
    pub(super) failed_reload: Option<FailedReload>,
    pub(super) keys: &'a Keys,
    pub(super) descriptors: Descriptors,
}

/// File descriptors: those that the process has and may have, and the connections for which they have to suffice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptors {
    pub(super) limit: u64,
    /// Those that are open; `None` if the system does not report it.
    pub(super) open: Option<u64>,
    pub(super) connections: u64,
}

/// An operator has to have the time to replace a certificate.
const EXPIRES_SOON: Duration = Duration::from_hours(14 * 24);

/// Fewer log-ins per second are no storm.
const STORM_FROM: f64 = 5.0;

/// How many times as many log-ins as usual are a storm.
const STORM_FACTOR: f64 = 10.0;

/// Returns the known problems, the most severe kinds first.
pub(super) fn find(facts: &Facts<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    facts.store(&mut found);
    facts.upstreams(&mut found);
    facts.cookies(&mut found);
    facts.log_ins(&mut found);
    facts.keys(&mut found);
    facts.clock(&mut found);
    facts.certificates(&mut found);
    facts.reload(&mut found);
    facts.descriptors(&mut found);
    found
}

impl Finding {
    fn new(problem: &'static str, detail: String, since: Option<Timestamp>) -> Self {
        Self { problem, detail, since: since.map(Rfc3339), slow_upstream: None }
    }

    /// Returns the problem as words.
    pub(super) fn title(&self) -> String {
        self.problem.replace('_', " ")
    }
}

impl Facts<'_> {
    /// Returns the wall-clock time of a moment, the same at each look.
    fn time(&self, moment: Instant) -> Timestamp {
        self.moments.time(moment, self.now)
    }

    fn cookies(&self, found: &mut Vec<Finding>) {
        let cookies = self.windows.cookies();
        if !cookies.are_mostly_invalid() {
            return;
        }
        let (invalid, all) = (count(cookies.invalid), count(cookies.all));
        let first = self.keys.own.first().map(String::as_str).unwrap_or_default();
        let detail = format!(
            "{invalid} of {all} session cookies in the last minute have no valid signature: another instance signs \
             with another key, or the name of the cookie has changed; the first session key here is {first}"
        );
        // Not known before the next sample.
        let since = self.windows.cookies_invalid_since.map(|since| self.time(since));
        found.push(Finding::new("invalid_cookies", detail, since));
    }

    fn log_ins(&self, found: &mut Vec<Finding>) {
        let Some(usual) = self.usual_log_ins else { return };
        let Rate { per_second, recent_per_second, .. } = self.windows.rate(log_ins);
        let least = STORM_FROM.max(usual * STORM_FACTOR);
        if per_second > least && recent_per_second > least {
            let detail = format!(
                "{recent_per_second:.0} log-ins per second in the last seconds, against {usual:.1} in the median \
                 minute of the last hour; the audit trail has their addresses and principals"
            );
            found.push(Finding::new("log_in_storm", detail, None));
        }
    }

    fn keys(&self, found: &mut Vec<Finding>) {
        if let Some((first, since)) = &self.keys.new {
            let detail = format!(
                "the first session key {first} is new to other instances: those without it log visitors out; put a \
                 new key last in session.keys everywhere before it comes first"
            );
            found.push(Finding::new("first_key_is_new", detail, Some(*since)));
        }
        if let Some((first, since)) = &self.keys.missing {
            let others = self.keys.others.as_deref().unwrap_or_default().join(", ");
            let detail = format!(
                "another instance has started or reloaded with the session keys {others}, without {first}, which is \
                 first here: it logs out visitors of this one"
            );
            found.push(Finding::new("first_key_is_missing", detail, Some(*since)));
        }
    }

    fn clock(&self, found: &mut Vec<Finding>) {
        let Some(clock) = self.metrics.clock() else { return };
        let Some(since) = clock.differs_since else { return };
        let side = if clock.ahead > 0 { "ahead of" } else { "behind" };
        let detail = format!(
            "the clock of this machine is {:.0} s {side} that of Redis; synchronize both (NTP): sessions expire by the \
             clock of this machine",
            clock.seconds().abs()
        );
        found.push(Finding::new("clock_differs", detail, Some(self.time(since))));
    }

    fn certificates(&self, found: &mut Vec<Finding>) {
        let name = "certificate_expiry_timestamp_seconds";
        let now = self.now.as_millis() / 1000;
        for ([listener, file], expiry) in self.windows.now.pairs(name, ["listener", "certificate"])
        {
            let expiry = i64::try_from(count(expiry)).unwrap_or(i64::MAX / 1000);
            let at = Timestamp::from_millis(expiry * 1000);
            if expiry < now {
                let detail =
                    format!("the certificate {file} of the listener {listener} expired at {at}");
                found.push(Finding::new("certificate_expired", detail, Some(at)));
            } else if at.since(self.now) < EXPIRES_SOON {
                let days = at.since(self.now).as_secs() / 86_400;
                let detail = format!(
                    "the certificate {file} of the listener {listener} expires at {at}, in {days} days"
                );
                found.push(Finding::new("certificate_expires_soon", detail, None));
            }
        }
    }

    fn reload(&self, found: &mut Vec<Finding>) {
        if let Some(FailedReload { at, cause }) = &self.failed_reload {
            let detail =
                format!("the last reload failed, and the running configuration was kept: {cause}");
            found.push(Finding::new("reload_failed", detail, Some(*at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::*;
    use crate::metrics::{CertificateExpiry, Event};
    use crate::store::health::Access;

    const NOW: i64 = 2_000_000_000;
    const DAY: i64 = 86_400;

    pub(super) struct Scene {
        pub(super) metrics: Metrics,
        pub(super) routing: Routing,
        usual_log_ins: Option<f64>,
        pub(super) history: History,
        moments: Moments,
        pub(super) store: Report,
        keys: Keys,
        pub(super) descriptors: Descriptors,
        failed_reload: Option<FailedReload>,
    }

    impl Scene {
        pub(super) fn new() -> Self {
            let metrics = Metrics::new();
            Self {
                history: History::new(&metrics),
                metrics,
                moments: Moments::default(),
                routing: Routing::default(),
                usual_log_ins: None,
                store: Report { read: Access::NotUsed, write: Access::NotUsed },
                keys: Keys::default(),
                descriptors: Descriptors { limit: 2000, open: Some(1100), connections: 1000 },
                failed_reload: None,
            }
        }

        pub(super) fn find(&self) -> Vec<Finding> {
            find(&Facts {
                now: Timestamp::from_millis(NOW * 1000),
                moments: &self.moments,
                metrics: &self.metrics,
                windows: &Windows::read(&self.metrics, &self.history),
                routing: &self.routing,
                usual_log_ins: self.usual_log_ins,
                store: ("Redis", &self.store),
                failed_reload: self.failed_reload.clone(),
                keys: &self.keys,
                descriptors: self.descriptors,
            })
        }

        pub(super) fn time(&self, moment: Instant) -> Timestamp {
            self.moments.time(moment, Timestamp::from_millis(NOW * 1000))
        }

        fn codes(&self) -> Vec<&'static str> {
            self.find().into_iter().map(|found| found.problem).collect()
        }
    }

    #[test]
    fn most_cookies_of_a_minute_are_invalid() {
        let mut scene = Scene::new();
        let metrics = scene.metrics.clone();
        let valid = metrics.session_tokens(["0123456789abcdef".to_owned()].into_iter());
        metrics.events(Event::InvalidCookie, 4);
        assert_eq!(scene.find(), []);
        metrics.event(Event::InvalidCookie);
        assert_eq!(scene.codes(), ["invalid_cookies"]);
        (0..5).for_each(|_| valid.count(0));
        assert_eq!(scene.find(), [], "half of them are valid");
        metrics.event(Event::InvalidCookie);
        scene.keys.own = vec!["0123456789abcdef".to_owned()];
        let found = scene.find();
        let [Finding { detail, .. }] = found.as_slice() else { panic!("{found:?}") };
        assert!(detail.starts_with("6 of 11 ") && detail.ends_with(" 0123456789abcdef"));
    }

    #[test]
    fn many_more_log_ins_than_usual_are_named() {
        let mut scene = Scene::new();
        // The windows are shorter than a second, which counts as one.
        scene.metrics.events(Event::LoggedIn, 21);
        for (usual, is_storm) in [(None, false), (Some(2.2), false), (Some(2.0), true)] {
            scene.usual_log_ins = usual;
            assert_eq!(scene.codes() == ["log_in_storm"], is_storm, "{usual:?}");
        }
        let [Finding { detail, .. }] = &scene.find()[..] else { panic!("{:?}", scene.find()) };
        let start = "21 log-ins per second in the last seconds, against 2.0 in the median minute of the last hour";
        assert!(detail.starts_with(start), "{detail}");
        let mut scene = Scene::new();
        scene.usual_log_ins = Some(0.0);
        scene.metrics.events(Event::LoggedIn, 5);
        assert_eq!(scene.find(), [], "few");
        scene.metrics.event(Event::LoggedIn);
        assert_eq!(scene.codes(), ["log_in_storm"]);
    }

    #[test]
    fn certificates_are_named_14_days_ahead() {
        let scene = Scene::new();
        for (after, expected) in [
            (-1, Some("certificate_expired")),
            (DAY, Some("certificate_expires_soon")),
            (14 * DAY - 1, Some("certificate_expires_soon")),
            (14 * DAY, None),
        ] {
            scene.metrics.set_certificates([CertificateExpiry {
                listener: "127.0.0.1:443".to_owned(),
                certificate: "site.pem".to_owned(),
                not_after: NOW + after,
            }]);
            let found = scene.find();
            assert_eq!(found.first().map(|found| found.problem), expected, "{after}");
            for Finding { detail, .. } in found {
                let start = "the certificate site.pem of the listener 127.0.0.1:443 ";
                assert!(detail.starts_with(start), "{detail}");
            }
        }
    }

    #[test]
    fn wrong_clock_is_named_with_its_direction() {
        let scene = Scene::new();
        for (ahead, expected) in [
            (5_000, None),
            (-5_000, None),
            (5_001, Some("5 s ahead of")),
            (1_499_000, Some("1499 s ahead of")),
            (-90_400, Some("90 s behind")),
        ] {
            scene.metrics.set_clock_offset(ahead);
            let details = scene.find().into_iter().map(|found| found.detail);
            let details: Vec<_> = details.collect();
            let expected = expected.map(|differs| {
                format!(
                    "the clock of this machine is {differs} that of Redis; synchronize both (NTP): sessions expire by \
                     the clock of this machine"
                )
            });
            assert_eq!(details, expected.into_iter().collect::<Vec<_>>(), "{ahead}");
        }
    }

    #[test]
    fn state_of_the_process_is_found() {
        let mut scene = Scene::new();
        let metrics = scene.metrics.clone();
        let upstream = metrics.upstream("http://app").health();
        assert_eq!(scene.find(), []);
        upstream.set(false);
        let (at, cause) = (Timestamp::from_millis(2), "a.toml:1:1: wrong".to_owned());
        scene.failed_reload = Some(FailedReload { at, cause });
        assert_eq!(scene.codes(), ["upstream_ejected", "reload_failed"]);
        upstream.set(true);
        scene.failed_reload = None;
        scene.descriptors.limit = 1999;
        assert_eq!(scene.codes(), ["descriptor_limit_too_low"]);
        scene.keys.new = Some(("0123456789abcdef".to_owned(), Timestamp::from_millis(4)));
        assert_eq!(scene.codes(), ["first_key_is_new", "descriptor_limit_too_low"]);
        scene.descriptors.limit = 2000;
        scene.keys.missing = scene.keys.new.take();
        assert_eq!(scene.codes(), ["first_key_is_missing"]);
    }
}
