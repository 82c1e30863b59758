//! The last minute as samples, and the last hour as one point a minute: for the rates and the graphs of the page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cookies::Cookies;
use super::slow::{LATENCY, SlowSince, slow_since};
use crate::metrics::{Metrics, Samples};
use crate::tasks::Tasks;

/// Samples of the metrics in the last minute, and what the graphs show of the last hour.
#[derive(Debug)]
pub(super) struct History(Mutex<Ring>);

#[derive(Debug)]
struct Ring {
    start: Instant,
    /// Oldest first; at first that of the start.
    samples: VecDeque<Arc<Samples>>,
    /// The sample at the end of the latest minute.
    minute: Arc<Samples>,
    /// Samples since then.
    since_minute: usize,
    points: VecDeque<Point>,
    /// The first of the latest samples that have mostly invalid session cookies in the minute before.
    cookies_invalid: Option<Instant>,
    slow: Arc<SlowSince>,
}

/// A minute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) requests_per_second: f64,
    pub(super) failures_per_second: f64,
    /// In seconds; `None` without requests.
    pub(super) upstream_p99: Option<f64>,
    pub(super) log_ins_per_second: f64,
}

/// The interval between samples.
const INTERVAL: Duration = Duration::from_secs(5);

/// Samples of a minute.
const IN_A_MINUTE: usize = 12;

/// The number of samples that are kept: of a minute, and one more because the latest may be of this moment.
const SAMPLES: usize = IN_A_MINUTE + 2;

/// A time over which rates are computed. It is up to [`INTERVAL`] longer, and shorter after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Enough for steady rates and quantiles.
    Minute,
    /// What happens now: a rate over less than this would say little.
    TenSeconds,
}

/// Counts log-ins of principals.
pub(super) fn log_ins(samples: &Samples) -> f64 {
    samples.of("session_events_total", "event", "logged_in")
}

/// The outcomes of requests that an operator has to look at.
const FAILURES: [&str; 3] = ["upstream_error", "store_error", "internal_error"];

impl History {
    /// The number of points: an hour.
    pub(super) const POINTS: usize = 60;

    /// The minutes after which it is known what is usual: after a start, many log in at once.
    const USUAL: usize = 10;

    pub(super) fn new(metrics: &Metrics) -> Self {
        let start = Arc::new(metrics.samples());
        let samples = VecDeque::from([Arc::clone(&start)]);
        let points = VecDeque::new();
        Self(Mutex::new(Ring {
            start: start.at,
            samples,
            minute: start,
            since_minute: 0,
            points,
            cookies_invalid: None,
            slow: Arc::default(),
        }))
    }

    /// Takes samples until the drain.
    pub(super) async fn record(&self, metrics: Metrics, tasks: Tasks) {
        let mut interval = tokio::time::interval(INTERVAL);
        // The first tick is immediate, and the start has been sampled.
        interval.tick().await;
        loop {
            tokio::select! {
                () = tasks.draining() => return,
                _ = interval.tick() => self.push(metrics.samples()),
            }
        }
    }

    pub(super) fn push(&self, samples: Samples) {
        let samples = Arc::new(samples);
        let mut ring = self.ring();
        let cookies = Cookies::between(&ring.base(Window::Minute), &samples);
        let invalid = cookies.are_mostly_invalid();
        ring.cookies_invalid = invalid.then(|| ring.cookies_invalid.unwrap_or(samples.at));
        let recent = ring.base(Window::TenSeconds);
        ring.slow = Arc::new(slow_since(&ring.slow, &recent, &samples));
        ring.samples.push_back(Arc::clone(&samples));
        if ring.samples.len() > SAMPLES {
            ring.samples.pop_front();
        }
        ring.since_minute += 1;
        if ring.since_minute < IN_A_MINUTE {
            return;
        }
        let point = Point::between(&ring.minute, &samples);
        (ring.minute, ring.since_minute) = (samples, 0);
        if ring.points.len() >= Self::POINTS {
            ring.points.pop_front();
        }
        ring.points.push_back(point);
    }

    /// Returns the sample since which rates are computed.
    pub(super) fn base(&self, window: Window) -> Arc<Samples> {
        self.ring().base(window)
    }

    /// Returns since when most session cookies have been invalid, if the latest sample says so.
    pub(super) fn cookies_invalid_since(&self) -> Option<Instant> {
        self.ring().cookies_invalid
    }

    /// Returns the upstreams whose latency is high, as the latest sample says.
    pub(super) fn slow_since(&self) -> Arc<SlowSince> {
        Arc::clone(&self.ring().slow)
    }

    /// Returns the median rate of log-ins in the minutes of the last hour; `None` after fewer than [`Self::USUAL`].
    pub(super) fn usual_log_ins(&self) -> Option<f64> {
        let mut rates: Vec<f64> =
            self.ring().points.iter().map(|point| point.log_ins_per_second).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().filter(|_| rates.len() >= Self::USUAL)
    }

    /// Returns from when it is known how many log-ins are usual; `None` if it is known.
    pub(super) fn log_ins_compared_from(&self) -> Option<Instant> {
        const UNTIL_USUAL: Duration = Duration::from_mins(History::USUAL as u64);
        let ring = self.ring();
        (ring.points.len() < Self::USUAL).then(|| ring.start + UNTIL_USUAL)
    }

    /// Returns the minutes, oldest first.
    pub(super) fn points(&self) -> Vec<Point> {
        self.ring().points.iter().copied().collect()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn base(&self, window: Window) -> Arc<Samples> {
        let wanted = match window {
            Window::Minute => Duration::from_mins(1),
            Window::TenSeconds => Duration::from_secs(10),
        };
        let latest = self.samples.iter().rev().find(|sample| sample.at.elapsed() >= wanted);
        Arc::clone(latest.or_else(|| self.samples.front()).unwrap_or(&self.minute))
    }
}

impl Point {
    /// Computes the rates between two samples.
    pub(super) fn between(earlier: &Samples, later: &Samples) -> Self {
        let seconds = later.at.duration_since(earlier.at).as_secs_f64().max(1.0);
        let rate = |count: &dyn Fn(&Samples) -> f64| (count(later) - count(earlier)) / seconds;
        let failures = |samples: &Samples| {
            FAILURES.iter().map(|outcome| samples.of("requests_total", "outcome", outcome)).sum()
        };
        Self {
            requests_per_second: rate(&|samples| samples.sum("requests_total")),
            failures_per_second: rate(&failures),
            upstream_p99: later.quantile_since(earlier, LATENCY, 0.99).map(|p99| p99.estimate),
            log_ins_per_second: rate(&log_ins),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Event, Outcome};

    #[test]
    fn first_sample_of_invalid_cookies_is_kept() {
        let metrics = Metrics::new();
        let valid = metrics.session_tokens(["0123456789abcdef".to_owned()].into_iter());
        let history = History::new(&metrics);
        let push = |invalid, valid_ones| {
            metrics.events(Event::InvalidCookie, invalid);
            (0..valid_ones).for_each(|_| valid.count(0));
            history.push(metrics.samples());
            history.ring().cookies_invalid
        };
        assert_eq!(push(4, 0), None, "too few");
        let since = push(1, 0);
        assert!(since.is_some());
        assert_eq!(push(1, 5), since, "6 of 11");
        assert!(history.cookies_invalid_since().is_some());
        assert_eq!(push(0, 1), None, "half of them");
        assert_eq!(history.cookies_invalid_since(), None);
    }

    #[test]
    fn history_is_bounded_to_an_hour() {
        let metrics = Metrics::new();
        let history = History::new(&metrics);
        assert!(history.points().is_empty());
        for number in 0..(History::POINTS + 5) * IN_A_MINUTE {
            if number % IN_A_MINUTE == 0 {
                metrics.request(Outcome::Forwarded, 200, Duration::ZERO);
                metrics.request(Outcome::StoreError, 503, Duration::ZERO);
                metrics.events(Event::LoggedIn, 3);
            }
            history.push(metrics.samples());
        }
        let points = history.points();
        assert_eq!(points.len(), History::POINTS);
        assert_eq!(history.ring().samples.len(), SAMPLES);
        // The samples are less than a second apart, which counts as one.
        let expected = Point {
            requests_per_second: 2.0,
            failures_per_second: 1.0,
            upstream_p99: None,
            log_ins_per_second: 3.0,
        };
        assert!(points.iter().all(|point| *point == expected), "{points:?}");
    }

    #[test]
    fn usual_log_ins_are_known_after_some_minutes() {
        let metrics = Metrics::new();
        let history = History::new(&metrics);
        for minute in 1..=60 {
            assert_eq!(history.usual_log_ins().is_some(), minute > History::USUAL, "{minute}");
            let from = history.log_ins_compared_from();
            assert_eq!(from.is_none(), minute > History::USUAL, "{minute}");
            assert!(from.is_none_or(|from| from > Instant::now()), "{minute}");
            // A storm in fewer than half of the minutes is not usual.
            metrics.events(Event::LoggedIn, if minute > 31 { 1000 } else { 2 });
            (0..IN_A_MINUTE).for_each(|_| history.push(metrics.samples()));
        }
        // The samples are less than a second apart, which counts as one.
        assert_eq!(history.usual_log_ins().map(|rate| rate.to_string()).as_deref(), Some("2"));
    }

    #[tokio::test(start_paused = true)]
    async fn samples_end_at_the_drain() {
        let (metrics, tasks) = (Metrics::new(), Tasks::new());
        let history = Arc::new(History::new(&metrics));
        let recorder = Arc::clone(&history);
        let (recorded, of) = (metrics.clone(), tasks.clone());
        let recording = tasks.run(async move { recorder.record(recorded, of).await });
        tokio::time::sleep(Duration::from_secs(3 * 60 + 30)).await;
        assert_eq!(history.points().len(), 3);
        tasks.drain();
        assert!(recording.await.is_ok());
    }
}
