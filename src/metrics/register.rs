//! Registration of metrics, and their kinds.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::label::{ByLabel, Label, Labels};

/// A registry, and the ways in which metrics are added to it.
pub(super) struct Register<'a>(pub(super) &'a mut Registry);

impl Register<'_> {
    pub(super) fn metric(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register(name, help, metric);
    }

    /// Adds a metric without labels, or a family without series.
    pub(super) fn default<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.metric(name, help, metric.clone());
        metric
    }

    /// Adds a family, with a constructor of its series.
    pub(super) fn family<M>(
        &mut self,
        name: &str,
        help: &str,
        new: fn() -> M,
    ) -> Family<Labels, M, fn() -> M>
    where
        M: Clone,
        Family<Labels, M, fn() -> M>: Metric,
    {
        let family = Family::new_with_constructor(new);
        self.metric(name, help, family.clone());
        family
    }

    /// Adds a family with one series for each value of its only label.
    pub(super) fn by_label<L: Label, M>(
        &mut self,
        name: &str,
        help: &str,
        new: fn() -> M,
    ) -> ByLabel<L, M>
    where
        M: Clone,
        Family<Labels, M, fn() -> M>: Metric,
    {
        let family = self.family(name, help, new);
        ByLabel::new(|value: L| family.get_or_create_owned(&vec![value.pair()]))
    }
}

/// A gauge that counts what is open: it falls when this is dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Seconds. From 50 µs, the round trip to a store on the same machine, to the deadline.
const STORE_BUCKETS: [f64; 11] =
    [0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5];

/// Seconds. A latency objective is read off a bucket's bound, so these have the usual ones: 100, 200, 300 and 500 ms, 1 s.
const REQUEST_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

pub(super) fn store_histogram() -> Histogram {
    Histogram::new(STORE_BUCKETS)
}

pub(super) fn request_histogram() -> Histogram {
    Histogram::new(REQUEST_BUCKETS)
}
