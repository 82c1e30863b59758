//! Upstreams whose latency is high.

use std::collections::HashMap;
use std::time::Instant;

use crate::metrics::Samples;

/// The name of the histogram of latencies.
pub(super) const LATENCY: &str = "upstream_request_duration_seconds";

/// The median latency from which an upstream may be slow, in seconds.
pub(super) const SLOW_FROM: f64 = 1.0;

/// Since when half of the requests to an upstream have been slow, by its URL. Whether that is a fault is not known here: a
/// site may have long polls.
pub(super) type SlowSince = HashMap<String, Instant>;

/// Returns the upstreams whose median latency between two samples is high, with the time from `before`, or else that of
/// the later sample.
pub(super) fn slow_since(before: &SlowSince, earlier: &Samples, later: &Samples) -> SlowSince {
    let upstreams = later.by("upstream_healthy", "upstream").into_iter().map(|(url, _)| url);
    let is_slow = |url: &&str| {
        let [earlier, later] = [earlier, later].map(|samples| samples.only("upstream", url));
        let median = later.quantile_since(&earlier, LATENCY, 0.5);
        median.is_some_and(|median| median.estimate > SLOW_FROM)
    };
    let since = |url: &str| before.get(url).copied().unwrap_or(later.at);
    upstreams.filter(is_slow).map(|url| (url.to_owned(), since(url))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Metrics, UpstreamOutcome};

    #[test]
    fn first_slow_sample_is_kept() {
        let metrics = Metrics::new();
        let upstreams = ["http://a", "http://b"].map(|url| metrics.upstream(url));
        let _healths = upstreams.each_ref().map(crate::metrics::UpstreamMetrics::health);
        let [a, b] = &upstreams;
        let request = |millis| {
            a.request_finished(UpstreamOutcome::Responded, Duration::from_millis(millis));
            b.request_finished(UpstreamOutcome::Responded, Duration::from_millis(2));
            metrics.samples()
        };
        let samples = [metrics.samples(), request(3000), request(3000), request(5)];
        let [start, first, second, fast] = &samples;
        let slow = slow_since(&SlowSince::new(), start, first);
        let expected = SlowSince::from([("http://a".to_owned(), first.at)]);
        assert_eq!(slow, expected);
        assert_eq!(slow_since(&slow, first, second), expected);
        assert_eq!(slow_since(&slow, second, fast), SlowSince::new());
    }
}
