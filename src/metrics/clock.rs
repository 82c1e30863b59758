//! The metric of the difference of two clocks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// By how much the clock of this machine is ahead of the store's, in milliseconds. Without a series until it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockOffset(Arc<Mutex<Option<i64>>>);

impl ClockOffset {
    /// Sets the offset, and returns the previous one.
    pub(super) fn set(&self, ahead: i64) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(ahead)
    }
}

impl Collector for ClockOffset {
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Seconds by which the clock of this machine is ahead of that of Redis";
        let name = "clock_offset_seconds";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(ahead) => ConstGauge::new(ahead as f64 / 1000.0).encode(metric),
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
        assert_eq!(metrics.set_clock_offset(0), Some(-1500));
    }
}
