//! Problems of upstreams.

use super::super::rates::Windows;
use super::{Facts, Finding};
use crate::metrics::Samples;

/// Fewer failed requests of an upstream may be of a single visitor.
const MIN_FAILURES: u64 = 3;

/// Fewer requests say nothing about latencies.
const MIN_REQUESTS: u64 = 5;

/// The median latency from which an upstream may be slow, in seconds.
const SLOW_FROM: f64 = 1.0;

/// How many times as slow as another upstream it has to be.
const SLOWER: f64 = 10.0;

/// The last seconds of an upstream that responds. Latencies are those of the response's head, in seconds.
struct Recent<'a> {
    url: &'a str,
    requests: u64,
    median: f64,
    /// The latency that nine of ten requests did not exceed.
    most: f64,
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
        let requests = if self.routing.gets_requests(url, has_failed) {
            "still gets requests, because all upstreams of a route have failed"
        } else {
            "gets no requests from any route"
        };
        let failure = self.metrics.upstream_failure(url);
        let cause =
            failure.as_ref().map_or_else(String::new, |failure| format!(" ({})", failure.cause));
        let since = failure.map(|failure| self.now - failure.since.elapsed());
        let detail = format!("the upstream {url} has failed{cause} and {requests}");
        Finding::new("upstream_ejected", detail, since)
    }

    /// Finds upstreams that are much slower than another one of the same routes. If all are slow, as those of long polls
    /// are, none is found. Neither is one if some requests are slow on purpose: most of the other upstream's have to be fast.
    fn slow_upstreams(&self, responding: &[Recent<'_>], found: &mut Vec<Finding>) {
        for Recent { url, requests, median, .. } in responding {
            let equals = self.routing.equals_of(url);
            let others = responding.iter().filter(|other| equals.contains(&other.url));
            let Some(fast) = others.min_by(|one, other| one.most.total_cmp(&other.most)) else {
                continue;
            };
            if *median > SLOW_FROM && *median >= SLOWER * fast.most {
                let detail = format!(
                    "half of the last {requests} requests to the upstream {url} waited more than {median:.1} s for the \
                     response's head; at {} nine of ten waited at most {:.0} ms",
                    fast.url,
                    (fast.most * 1000.0).ceil()
                );
                found.push(Finding::new("upstream_slow", detail, None));
            }
        }
    }
}

impl<'a> Recent<'a> {
    /// Returns `None` if there were too few requests.
    fn read(url: &'a str, requests: u64, windows: &Windows) -> Option<Self> {
        let latency = |part| windows.recent_quantile("upstream_request_duration_seconds", part);
        let (median, most) = (latency(0.5)?, latency(0.9)?);
        (requests >= MIN_REQUESTS).then_some(Self { url, requests, median, most })
    }
}

/// Returns how many requests to an upstream have failed lately, and how many there were.
fn failed_requests(windows: &Windows) -> [u64; 2] {
    let requests = |samples: &Samples| samples.sum("upstream_requests_total");
    let responded =
        |samples: &Samples| samples.of("upstream_requests_total", "outcome", "responded");
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
            "half of the last 5 requests to the upstream http://slow waited more than 1.8 s for the response's head; \
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
