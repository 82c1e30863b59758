//! The difference of two clocks, and its metric.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::time::CLOCK_TOLERANCE;

/// A comparison of the clock of this machine with the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockComparison {
    /// By how much the clock of this machine is ahead, in milliseconds.
    pub(crate) ahead: i64,
    pub(crate) at: Instant,
    /// When the clocks were first found to differ by more than [`CLOCK_TOLERANCE`]; `None` if they agree.
    pub(crate) differs_since: Option<Instant>,
}

impl ClockComparison {
    /// Returns the difference in seconds: positive if the clock of this machine is ahead.
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    pub(crate) fn seconds(&self) -> f64 {
        self.ahead as f64 / 1000.0
    }
}

/// The last comparison. Without a series until there was one.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockOffset(Arc<Mutex<Option<ClockComparison>>>);

impl ClockOffset {
    /// Keeps a comparison of this moment, and returns the previous one.
    pub(super) fn set(&self, ahead: i64) -> Option<ClockComparison> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        let differs = u128::from(ahead.unsigned_abs()) > CLOCK_TOLERANCE.as_millis();
        let since = last.and_then(|last| last.differs_since).unwrap_or(at);
        last.replace(ClockComparison { ahead, at, differs_since: differs.then_some(since) })
    }

    pub(super) fn last(&self) -> Option<ClockComparison> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for ClockOffset {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Seconds by which the clock of this machine is ahead of that of Redis";
        let name = "clock_offset_seconds";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        match self.last() {
            Some(comparison) => ConstGauge::new(comparison.seconds()).encode(metric),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn offset_has_a_series_once_known() {
        let metrics = Metrics::new();
        let line = || {
            let text = metrics.text();
            text.lines().find(|line| line.starts_with("cloakroom_clock_offset")).map(str::to_owned)
        };
        assert_eq!(line(), None);
        assert_eq!(metrics.set_clock_offset(-1500), None);
        assert_eq!(line().as_deref(), Some("cloakroom_clock_offset_seconds -1.5"));
        assert_eq!(metrics.set_clock_offset(0).map(|last| last.ahead), Some(-1500));
    }

    #[test]
    fn first_difference_is_kept_until_the_clocks_agree() {
        let metrics = Metrics::new();
        let since = |ahead| {
            metrics.set_clock_offset(ahead);
            metrics.clock().and_then(|last| last.differs_since)
        };
        assert_eq!(since(5000), None);
        let first = since(-5001);
        assert!(first.is_some() && since(60_000) == first);
        assert_eq!(since(0), None);
        assert!(since(5001) > first);
    }
}
