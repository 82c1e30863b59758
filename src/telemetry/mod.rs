//! What others learn of a request's way: its place in a trace, which is passed on, and, where it is configured, a
//! span of it for a collector (OTLP/HTTP, version 1, in JSON).
//!
//! Written by hand, because what the OpenTelemetry SDK would take off us is the shape of one message: queue,
//! batches, connections and their deadlines have to be ours on workers with runtimes of their own.

mod collector;
mod export;
mod span;
mod trace;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderName, HeaderValue};
use tokio::sync::Notify;

use crate::client::{Tls, TlsConfig, TlsError};
use crate::metrics::{Metrics, SpanOutcome};
use crate::net::scheme::Scheme;

pub use collector::Collector;
pub use span::{Ended, Span};
pub use trace::{Recorded, Trace};

use span::Resource;

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whom they go to.
    pub collector: Collector,
    /// Whom we believe that it is the collector, and who we are.
    pub tls: TlsConfig,
    /// What each export is given on its way.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What our spans say that they are from.
    pub service_name: String,
    /// Of the traces that nobody has decided upon, how many are recorded: from 0, none, to 1, all.
    pub sample_ratio: f64,
}

/// Spans that wait for their export: two seconds' worth at a thousand requests a second.
const CAPACITY: usize = 2048;

/// Spans of one export, at most: the SDKs' default.
const BATCH: usize = 512;

/// What takes the spans of all workers. One of these exports them.
#[derive(Debug)]
pub struct Tracer {
    config: Config,
    tls: Option<Arc<Tls>>,
    resource: Resource,
    waiting: Mutex<Vec<Span>>,
    /// There is a first one, or a batch is full.
    changed: Notify,
    metrics: Metrics,
}

impl Tracer {
    /// One that has recorded nothing.
    ///
    /// # Errors
    /// There is no TLS to the collector.
    pub fn new(config: Config, metrics: Metrics) -> Result<Self, TlsError> {
        let tls = match config.collector.target.scheme() {
            Scheme::Https => Some(Arc::new(Tls::open(&config.tls)?)),
            Scheme::Http => None,
        };
        let resource = Resource::new(config.service_name.clone());
        let (waiting, changed) = Default::default();
        Ok(Self { config, tls, resource, waiting, changed, metrics })
    }

    /// Whether a trace is recorded that nobody has decided upon: by its last 56 bits, so that all who record
    /// the same ratio record the same traces (W3C Trace Context, level 2, "Random Trace ID Flag").
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "56 bits, of which the last three do not matter"
    )]
    fn samples(&self, trace: u128) -> bool {
        const RANGE: u64 = 1 << 56;
        let random = trace as u64 % RANGE;
        random as f64 >= (1.0 - self.config.sample_ratio) * RANGE as f64
    }

    /// Takes a span; where too many wait already it is dropped, and counted.
    pub fn record(&self, span: Span) {
        let mut waiting = self.waiting();
        if waiting.len() >= CAPACITY {
            drop(waiting);
            self.metrics.spans(SpanOutcome::Dropped, 1);
            return;
        }
        waiting.push(span);
        if matches!(waiting.len(), 1 | BATCH) {
            self.changed.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Span>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, Version};

    use super::*;
    use crate::body::End;

    fn span() -> Span {
        Span {
            place: Recorded { trace: 1, span: 2, parent: None },
            began: 0,
            method: Method::GET,
            path: "/".to_owned(),
            host: None,
            scheme: Scheme::Http,
            version: Version::HTTP_11,
            client: None,
            session: None,
            ended: Ended { took: Duration::ZERO, status: Some(200), end: End::Complete },
        }
    }

    #[test]
    fn spans_that_nobody_takes_are_bounded_and_counted() {
        let config = Config {
            collector: "http://127.0.0.1:4318".parse().unwrap(),
            tls: TlsConfig::default(),
            headers: Vec::new(),
            service_name: "cloakroom".to_owned(),
            sample_ratio: 1.0,
        };
        let metrics = Metrics::new();
        let tracer = Tracer::new(config, metrics.clone()).unwrap();
        for _ in 0..CAPACITY + 7 {
            tracer.record(span());
        }
        assert_eq!(tracer.waiting().len(), CAPACITY);
        assert!(metrics.text().contains("spans_total{outcome=\"dropped\"} 7"));
    }
}
