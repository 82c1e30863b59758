//! Distributed tracing: the trace context of a request, which is propagated, and, if configured, a span for a collector
//! (OTLP/HTTP, version 1, in JSON).
//!
//! It does not use the OpenTelemetry SDK, which would save us the shape of one message: its queue, batches, connections
//! and deadlines do not fit workers that have a runtime of their own each.

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

pub(crate) use collector::Collector;
pub(crate) use span::Span;
pub(crate) use trace::{Sender, SpanContext, Trace, TraceId};

use span::Resource;

/// Settings of the export of spans.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) collector: Collector,
    pub(crate) tls: TlsConfig,
    /// Headers of each export, e.g. an API key.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The resource attribute `service.name`.
    pub(crate) service_name: String,
    /// The share of new traces that are sampled, from 0 to 1.
    pub(crate) sample_ratio: f64,
}

/// Most spans that wait for their export: two seconds' worth at a thousand requests a second.
const QUEUE_CAPACITY: usize = 2048;

/// Most spans of one export: the SDKs' default.
const MAX_BATCH: usize = 512;

/// The queue of spans of all workers. One worker exports them.
#[derive(Debug)]
pub(crate) struct Tracer {
    config: Config,
    tls: Option<Arc<Tls>>,
    resource: Resource,
    queue: Mutex<Vec<Span>>,
    /// Notified of the first span of a batch, and when a batch is full.
    ready: Notify,
    metrics: Metrics,
}

impl Tracer {
    /// Creates an empty queue.
    ///
    /// # Errors
    /// The files of TLS to the collector cannot be used.
    pub(crate) fn new(config: Config, metrics: Metrics) -> Result<Self, TlsError> {
        let tls = match config.collector.target.scheme() {
            Scheme::Https => Some(Arc::new(Tls::open(&config.tls)?)),
            Scheme::Http => None,
        };
        let resource = Resource::new(config.service_name.clone());
        let (queue, ready) = Default::default();
        Ok(Self { config, tls, resource, queue, ready, metrics })
    }

    /// Returns whether a new trace is sampled. Its last 56 bits decide, so that services with the same ratio sample the same
    /// traces (W3C Trace Context, level 2, "Random Trace ID Flag").
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "56 bits, of which the last three are below the precision of a ratio"
    )]
    fn samples(&self, trace: u128) -> bool {
        const RANGE: u64 = 1 << 56;
        let random = trace as u64 % RANGE;
        random as f64 >= (1.0 - self.config.sample_ratio) * RANGE as f64
    }

    /// Queues a span. If the queue is full, the span is dropped and counted.
    pub(crate) fn record(&self, span: Span) {
        let mut queue = self.queue();
        if queue.len() >= QUEUE_CAPACITY {
            drop(queue);
            self.metrics.spans(SpanOutcome::Dropped, 1);
            return;
        }
        queue.push(span);
        if matches!(queue.len(), 1 | MAX_BATCH) {
            self.ready.notify_one();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Span>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
            context: SpanContext { trace: 1, span: 2, parent: None },
            started_at: 0,
            method: Method::GET,
            path: "/".to_owned(),
            host: None,
            scheme: Scheme::Http,
            version: Version::HTTP_11,
            client: None,
            session: None,
            duration: Duration::ZERO,
            status: Some(200),
            end: End::Complete,
        }
    }

    #[test]
    fn full_queue_drops_and_counts_spans() {
        let config = Config {
            collector: "http://127.0.0.1:4318".parse().unwrap(),
            tls: TlsConfig::default(),
            headers: Vec::new(),
            service_name: "cloakroom".to_owned(),
            sample_ratio: 1.0,
        };
        let metrics = Metrics::new();
        let tracer = Tracer::new(config, metrics.clone()).unwrap();
        for _ in 0..QUEUE_CAPACITY + 7 {
            tracer.record(span());
        }
        assert_eq!(tracer.queue().len(), QUEUE_CAPACITY);
        assert!(metrics.text().contains("spans_total{outcome=\"dropped\"} 7"));
    }
}
