//! The upstreams of this instance: how many requests each gets, how it responds, and whether it gets requests.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rates::{Quantiles, Rate, Windows, count};
use super::slow::LATENCY;
use crate::metrics::Samples;

#[derive(Debug, Serialize)]
pub(super) struct Upstream {
    pub(super) state: State,
    pub(super) requests: Rate,
    /// Requests without a response: failed, timed out, or not sent because the upstream had too many.
    pub(super) failures: Rate,
    pub(super) latency: Quantiles,
    pub(super) in_flight: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Healthy,
    /// Much slower than another upstream of the same routes.
    Slow,
    /// It has failed for all routes, which send it no requests or as few as they can.
    Ejected,
}

impl State {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Ejected => "ejected",
        }
    }
}

/// Returns the upstreams of the current routes by their URL; `slow` are those of the problem `upstream_slow`.
pub(super) fn upstreams(windows: &Windows, slow: &[&str]) -> BTreeMap<String, Upstream> {
    let known = windows.now.by("upstream_healthy", "upstream").into_iter();
    let upstream = |(url, healthy): (&str, f64)| {
        let state = if healthy <= 0.0 {
            State::Ejected
        } else if slow.contains(&url) {
            State::Slow
        } else {
            State::Healthy
        };
        (url.to_owned(), Upstream::read(&windows.only("upstream", url), state))
    };
    known.map(upstream).collect()
}

impl Upstream {
    fn read(windows: &Windows, state: State) -> Self {
        const REQUESTS: &str = "upstream_requests_total";
        let requests = |samples: &Samples| samples.sum(REQUESTS);
        let responded = |samples: &Samples| samples.of(REQUESTS, "outcome", "responded");
        Self {
            state,
            requests: windows.rate(requests),
            failures: windows.rate(|samples| requests(samples) - responded(samples)),
            latency: windows.quantiles(LATENCY),
            in_flight: count(windows.now.sum("upstream_requests_in_flight")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::history::History;
    use super::*;
    use crate::metrics::{Metrics, UpstreamOutcome};

    #[test]
    fn each_upstream_has_its_own_numbers() {
        let metrics = Metrics::new();
        let history = History::new(&metrics);
        let (one, other) = (metrics.upstream("http://one"), metrics.upstream("http://other"));
        let _healths = (one.health(), other.health());
        let ejected = other.health();
        ejected.set(false);
        let _in_flight = one.request_started();
        one.request_finished(UpstreamOutcome::Responded, Duration::from_millis(2));
        one.request_finished(UpstreamOutcome::TimedOut, Duration::from_millis(20));
        let windows = Windows::read(&metrics, &history);
        let upstreams = upstreams(&windows, &["http://other"]);
        let one = upstreams.get("http://one").expect("an upstream");
        assert_eq!((one.requests.total, one.failures.total, one.in_flight), (2, 1, 1));
        assert!(one.latency.p99.is_some_and(|p99| p99 > 0.01), "{one:?}");
        assert!(one.latency.recent_p50.is_some_and(|p50| p50 < 0.01), "{one:?}");
        assert_eq!(one.state, State::Healthy);
        let other = upstreams.get("http://other").expect("an upstream");
        assert_eq!((other.requests.total, other.latency.p99), (0, None));
        assert_eq!(other.state, State::Slow, "another route sends it requests");
    }
}
