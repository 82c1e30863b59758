//! Rates and quantiles of the metrics, over the last minute and the last seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cookies::Cookies;
use super::history::{History, Window};
use super::slow::SlowSince;
use crate::metrics::{Metrics, Quantile, Samples};

/// The metrics now, a minute ago and some seconds ago.
pub(super) struct Windows {
    pub(super) now: Arc<Samples>,
    minute: Arc<Samples>,
    recent: Arc<Samples>,
    /// Since when most session cookies have been invalid.
    pub(super) cookies_invalid_since: Option<Instant>,
    pub(super) slow_since: Arc<SlowSince>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Over the last minute.
    pub(super) per_second: f64,
    /// Over the last ten seconds.
    pub(super) recent_per_second: f64,
    pub(super) total: u64,
}

/// In seconds, over the last minute; `None` without observations. They are estimates within a bucket of the histogram.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    /// Over the last ten seconds, as the next one.
    pub(super) recent_p50: Option<f64>,
    pub(super) recent_p99: Option<f64>,
}

impl Windows {
    pub(super) fn read(metrics: &Metrics, history: &History) -> Self {
        let (minute, recent) = (history.base(Window::Minute), history.base(Window::TenSeconds));
        let cookies_invalid_since = history.cookies_invalid_since();
        let (now, slow_since) = (Arc::new(metrics.samples()), history.slow_since());
        Self { now, minute, recent, cookies_invalid_since, slow_since }
    }

    /// Returns the seconds over which rates are computed: the long window, and the short one.
    pub(super) fn seconds(&self) -> [u64; 2] {
        [&self.minute, &self.recent].map(|base| self.since(base).as_secs())
    }

    fn since(&self, base: &Samples) -> Duration {
        self.now.at.duration_since(base.at).max(Duration::from_secs(1))
    }

    /// Returns the session cookies of the last minute.
    pub(super) fn cookies(&self) -> Cookies {
        Cookies::between(&self.minute, &self.now)
    }

    /// Returns how much a counter has grown in the last ten seconds.
    pub(super) fn recent_growth(&self, counter: impl Fn(&Samples) -> f64) -> u64 {
        count(counter(&self.now) - counter(&self.recent))
    }

    /// Returns the duration of the short window.
    pub(super) fn recent_duration(&self) -> Duration {
        self.since(&self.recent)
    }

    pub(super) fn rate(&self, counter: impl Fn(&Samples) -> f64) -> Rate {
        let total = counter(&self.now);
        let since =
            |base: &Samples| (total - counter(base)).max(0.0) / self.since(base).as_secs_f64();
        Rate {
            per_second: since(&self.minute),
            recent_per_second: since(&self.recent),
            total: count(total),
        }
    }

    /// Returns the rates of a counter by the value of a label.
    pub(super) fn rates(&self, name: &str, label: &str) -> BTreeMap<String, Rate> {
        let values = self.now.by(name, label).into_iter();
        let rate = |value: &str| self.rate(|samples| samples.of(name, label, value));
        values.map(|(value, _)| (value.to_owned(), rate(value))).collect()
    }

    pub(super) fn quantiles(&self, name: &str) -> Quantiles {
        let quantile = |base, part| {
            let found = self.now.quantile_since(base, name, part);
            found.map(|quantile| quantile.estimate)
        };
        Quantiles {
            p50: quantile(&self.minute, 0.5),
            p99: quantile(&self.minute, 0.99),
            recent_p50: quantile(&self.recent, 0.5),
            recent_p99: quantile(&self.recent, 0.99),
        }
    }

    /// Returns a quantile over the last ten seconds.
    pub(super) fn recent_quantile(&self, name: &str, quantile: f64) -> Option<Quantile> {
        self.now.quantile_since(&self.recent, name, quantile)
    }

    /// Returns the same with the series of one value of a label.
    pub(super) fn only(&self, label: &str, value: &str) -> Self {
        let only = |samples: &Samples| Arc::new(samples.only(label, value));
        Self {
            now: only(&self.now),
            minute: only(&self.minute),
            recent: only(&self.recent),
            slow_since: Arc::clone(&self.slow_since),
            ..*self
        }
    }
}

/// Rounds a count, which a sample has as a floating-point number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole numbers, and far below 2^53"
)]
pub(super) fn count(value: f64) -> u64 {
    value.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Event;

    #[test]
    fn rates_are_of_the_time_since_the_start_at_first() {
        let metrics = Metrics::new();
        let history = History::new(&metrics);
        metrics.events(Event::Created, 3);
        let windows = Windows::read(&metrics, &history);
        let rates = windows.rates("session_events_total", "event");
        // The samples are less than a second apart, which counts as one.
        let rate = Rate { per_second: 3.0, recent_per_second: 3.0, total: 3 };
        assert_eq!(rates.get("created"), Some(&rate));
        assert_eq!(windows.recent_growth(|samples| samples.sum("session_events_total")), 3);
        assert_eq!(windows.seconds(), [1, 1]);
    }
}
