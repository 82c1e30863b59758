//! Problems of upstreams.

use super::super::rates::{Windows, count};
use super::super::slow::{LATENCY, SLOW_FROM};
use super::{Facts, Finding};
use crate::metrics::{Quantile, Samples, UpstreamFailure};

/// Fewer failed requests of an upstream may be of a single visitor.
const MIN_FAILURES: u64 = 3;

/// Fewer requests say nothing about latencies.
const MIN_REQUESTS: u64 = 5;

/// How many times as slow as another upstream it has to be.
const SLOWER: f64 = 10.0;

/// The last seconds of an upstream that responds. Latencies are those of the response's head, in seconds.
struct Recent<'a> {
    url: &'a str,
    requests: u64,
    median: Quantile,
    /// The latency that nine of ten requests did not exceed.
    most: Quantile,
}

impl Facts<'_> {
    pub(super) fn upstreams(&self, found: &mut Vec<Finding>) {
        let mut responding = Vec::new();
        let mut healths = self.windows.now.by("upstream_healthy", "upstream");
        healths.sort_by_key(|(url, _)| *url);
        let has_failed = |url: &str| healths.contains(&(url, 0.0));
        for (url, _) in &healths {
            if has_failed(url) {
                found.push(self.ejected(url, has_failed));
                continue;
            }
            let windows = self.windows.only("upstream", url);
            let [failed, all] = failed_requests(&windows);
            // A single upstream is never ejected.
            if failed >= MIN_FAILURES && failed * 2 > all {
                let detail =
                    format!("the upstream {url} failed {failed} of the last {all} requests");
                found.push(Finding::new("upstream_fails", detail, None));
            } else if failed * 10 <= all {
                // Requests that fail are no measure of how fast others could be.
                responding.extend(Recent::read(url, all, &windows));
            }
        }
        self.slow_upstreams(&responding, found);
    }

    fn ejected(&self, url: &str, has_failed: impl Fn(&str) -> bool) -> Finding {
        let failure = self.metrics.upstream_failure(url);
        let kept = failure.as_ref().and_then(|failure| self.responses_on_kept(url, failure));
        let requests = if self.routing.gets_requests(url, has_failed) {
            "still gets requests, because all upstreams of a route have failed"
        } else if kept.is_some() {
            "gets requests on its open connections only"
        } else {
            "gets no requests from any route"
        };
        let kept = kept.map_or_else(String::new, |rate| {
            format!(
                "; its open connections respond to {rate:.1} requests per second, new ones fail"
            )
        });
        let cause =
            failure.as_ref().map_or_else(String::new, |failure| format!(" ({})", failure.cause));
        let since = failure.map(|failure| self.time(failure.since));
        let detail = format!("the upstream {url} has failed{cause} and {requests}{kept}");
        Finding::new("upstream_ejected", detail, since)
    }

    /// Returns the responses per second in the last seconds of an upstream that has failed. `None` if there were none, or if
    /// a connection was opened to it.
    fn responses_on_kept(&self, url: &str, failure: &UpstreamFailure) -> Option<f64> {
        let windows = self.windows.only("upstream", url);
        // What was before the failure does not count.
        let growth = |counter: &dyn Fn(&Samples) -> f64, at_failure: u64| {
            let since_failure = count(counter(&windows.now)).saturating_sub(at_failure);
            windows.recent_growth(counter).min(since_failure)
        };
        let responses = growth(&responded, failure.responses);
        let opened =
            growth(&|samples| samples.sum("upstream_connections_total"), failure.connections);
        let lasts = failure.since.elapsed().min(windows.recent_duration());
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX).max(1);
        let responses = u32::try_from(responses).unwrap_or(u32::MAX);
        (responses > 0 && opened == 0).then(|| f64::from(responses) / f64::from(seconds))
    }

    /// Finds upstreams that are much slower than another one of the same routes. If all are slow, as those of long polls
    /// are, none is found. Neither is one if some requests are slow on purpose: most of the other upstream's have to be fast.
    fn slow_upstreams(&self, responding: &[Recent<'_>], found: &mut Vec<Finding>) {
        for Recent { url, requests, median, .. } in responding {
            let equals = self.routing.equals_of(url);
            let others = responding.iter().filter(|other| equals.contains(&other.url));
            let most = |recent: &Recent<'_>| recent.most.estimate;
            let Some(fast) = others.min_by(|one, other| most(one).total_cmp(&most(other))) else {
                continue;
            };
            if median.estimate > SLOW_FROM && median.estimate >= SLOWER * most(fast) {
                // The bounds of buckets, which are true for every request in them; an estimate is not.
                let detail = format!(
                    "half of the last {requests} requests to the upstream {url} waited more than {:.1} s for the \
                     response's head; at {} nine of ten waited at most {:.0} ms",
                    median.lower,
                    fast.url,
                    (fast.most.upper * 1000.0).ceil()
                );
                // Not known before the next sample.
                let since = self.windows.slow_since.get(*url).map(|since| self.time(*since));
                let finding = Finding::new("upstream_slow", detail, since);
                found.push(Finding { slow_upstream: Some((*url).to_owned()), ..finding });
            }
        }
    }
}

impl<'a> Recent<'a> {
    /// Returns `None` if there were too few requests.
    fn read(url: &'a str, requests: u64, windows: &Windows) -> Option<Self> {
        let latency = |part| windows.recent_quantile(LATENCY, part);
        let (median, most) = (latency(0.5)?, latency(0.9)?);
        (requests >= MIN_REQUESTS).then_some(Self { url, requests, median, most })
    }
}

fn responded(samples: &Samples) -> f64 {
    samples.of("upstream_requests_total", "outcome", "responded")
}

/// Returns how many requests to an upstream have failed lately, and how many there were.
fn failed_requests(windows: &Windows) -> [u64; 2] {
    let requests = |samples: &Samples| samples.sum("upstream_requests_total");
    let all = windows.recent_growth(requests);
    [all.saturating_sub(windows.recent_growth(responded)), all]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::Scene;
    use super::*;
    use crate::admin::routing::Routing;
    use crate::metrics::{UpstreamMetrics, UpstreamOutcome};

    #[test]
    fn upstream_that_fails_most_requests_is_named() {
        let scene = Scene::new();
        let upstream = scene.metrics.upstream("http://app");
        let _health = upstream.health();
        let request = |outcome| upstream.request_finished(outcome, Duration::ZERO);
        request(UpstreamOutcome::Responded);
        request(UpstreamOutcome::Responded);
        request(UpstreamOutcome::TimedOut);
        request(UpstreamOutcome::Failed);
        assert_eq!(scene.find(), []);
        request(UpstreamOutcome::Failed);
        let found = scene.find();
        let [Finding { problem: "upstream_fails", detail, .. }] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(detail, "the upstream http://app failed 3 of the last 5 requests");
    }

    #[test]
    fn ejected_upstreams_are_named_with_their_cause() {
        let mut scene = Scene::new();
        let route = |upstreams: &[&str]| upstreams.iter().copied().map(str::to_owned).collect();
        scene.routing = Routing::new(vec![route(&["http://a", "http://b"]), route(&["http://c"])]);
        let healths =
            ["http://a", "http://b", "http://c"].map(|url| scene.metrics.upstream(url).health());
        let [a, b, _] = &healths;
        a.set_failure("refused");
        a.set(false);
        let details = |scene: &Scene| -> Vec<String> {
            let found = scene.find();
            assert!(found.iter().all(|found| found.problem == "upstream_ejected"), "{found:?}");
            found.into_iter().map(|found| found.detail).collect()
        };
        let ejected =
            "the upstream http://a has failed (refused) and gets no requests from any route";
        assert_eq!(details(&scene), [ejected]);
        assert!(scene.find().iter().all(|found| found.since.is_some()));
        b.set(false);
        let all = "and still gets requests, because all upstreams of a route have failed";
        let expected = ["http://a has failed (refused)", "http://b has failed"];
        assert_eq!(details(&scene), expected.map(|failed| format!("the upstream {failed} {all}")));
    }

    /// Responses before the failure, and those after a new connection, do not count.
    #[test]
    fn open_connections_that_respond_are_named() {
        let scene = Scene::new();
        let upstream = scene.metrics.upstream("http://a");
        let health = upstream.health();
        let detail = || {
            let found = scene.find();
            found.first().map(|found| found.detail.clone()).unwrap_or_default()
        };
        let respond = || upstream.request_finished(UpstreamOutcome::Responded, Duration::ZERO);
        let _open = upstream.connection_opened();
        respond();
        health.set_failure("refused");
        health.set(false);
        let none = "the upstream http://a has failed (refused) and gets no requests from any route";
        assert_eq!(detail(), none);
        (0..3).for_each(|_| respond());
        assert_eq!(
            detail(),
            "the upstream http://a has failed (refused) and gets requests on its open connections only; its open \
             connections respond to 3.0 requests per second, new ones fail"
        );
        let since = scene.find().pop().and_then(|found| found.since).map(|since| since.0);
        assert_eq!(scene.find().pop().and_then(|found| found.since).map(|since| since.0), since);
        let _new = upstream.connection_opened();
        assert_eq!(detail(), none);
    }

    /// Requests to one upstream: how many, how long each took, and their outcome.
    type Requests = (u64, u64, UpstreamOutcome);

    /// Returns what is found after requests to two upstreams of these routes.
    fn found(routes: &[&[&str]], fast: &[Requests], slow: &[Requests]) -> Vec<Finding> {
        let mut scene = Scene::new();
        let route = |route: &&[&str]| route.iter().copied().map(str::to_owned).collect();
        scene.routing = Routing::new(routes.iter().map(route).collect());
        let upstreams = ["http://fast", "http://slow"].map(|url| scene.metrics.upstream(url));
        let _healths = upstreams.each_ref().map(UpstreamMetrics::health);
        for (upstream, requests) in upstreams.iter().zip([fast, slow]) {
            for (count, millis, outcome) in requests {
                for _ in 0..*count {
                    upstream.request_finished(*outcome, Duration::from_millis(*millis));
                }
            }
        }
        scene.find()
    }

    #[test]
    fn upstream_much_slower_than_another_is_named() {
        use UpstreamOutcome::{Failed, Responded, TimedOut};
        let (fast, slow) = ((50, 4, Responded), (MIN_REQUESTS, 2000, Responded));
        let same: &[&[&str]] = &[&["http://fast", "http://slow"], &["http://other"]];
        let problems = found(same, &[fast], &[slow]);
        let [Finding { problem: "upstream_slow", detail, .. }] = problems.as_slice() else {
            panic!("{problems:?}")
        };
        assert_eq!(
            detail,
            "half of the last 5 requests to the upstream http://slow waited more than 1.0 s for the response's head; \
             at http://fast nine of ten waited at most 5 ms"
        );
        let timed_out = [(10, 4, Responded), (1, 60_000, TimedOut)];
        for (calm, fast, slow) in [
            ("few requests", &[fast][..], &[(MIN_REQUESTS - 1, 2000, Responded)][..]),
            ("nothing to compare with", &[(MIN_REQUESTS - 1, 4, Responded)], &[slow]),
            ("long polls", &[(50, 30_000, Responded)], &[(50, 30_000, Responded)]),
            ("some long polls", &[fast, (6, 30_000, Responded)], &[fast, (60, 30_000, Responded)]),
            ("a few slow requests", &[fast], &[fast, (20, 30_000, Responded)]),
            ("below a second", &[fast], &[(50, 900, Responded)]),
            ("fast failures", &[(40, 4, Responded), (10, 0, Failed)], &[slow]),
            ("a slow request", &timed_out, &[fast]),
        ] {
            assert_eq!(found(same, fast, slow), [], "{calm}");
        }
        let polls: &[&[&str]] = &[&["http://fast", "http://slow"], &["http://slow"]];
        assert_eq!(found(polls, &[fast], &[slow]), [], "another route has long polls");
    }
}
