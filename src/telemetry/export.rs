//! The export of spans (OTLP 1, "OTLP/HTTP Response"): batches, retries, and what is dropped.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::span::encode;
use super::{MAX_BATCH, Span, Tracer};
use crate::body::Body;
use crate::client::{self, Pool};
use crate::metrics::SpanOutcome;
use crate::tasks::Tasks;

/// The time that the first span of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// The deadline of one attempt: the SDKs' default.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which a batch is retried.
const RETRY_FOR: Duration = Duration::from_mins(1);

/// The first pause between attempts. Pauses double, and are at least as long as the collector asks for.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The deadline of the last exports: a collector that does not respond must not delay the drain.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes of a collector's response.
const MAX_RESPONSE: usize = 64 * 1024;

impl Tracer {
    /// Exports spans until the drain begins, and then what is still queued. It must run only once; its connections live
    /// on the runtime that it runs on.
    pub(crate) async fn export(self: Arc<Self>, tasks: Tasks) {
        let mut exporter = BatchExporter::new(&self, &tasks);
        tokio::select! {
            () = tasks.draining() => {}
            () = exporter.run() => {}
        }
        let _ = timeout(FLUSH_TIMEOUT, exporter.flush()).await;
        exporter.drop_batch();
        self.metrics.spans(SpanOutcome::Failed, self.take(usize::MAX).len());
    }

    /// Waits for a first span, and then for a full batch, but not longer than [`BATCH_DELAY`].
    async fn batch_ready(&self) {
        while self.queue().is_empty() {
            self.ready.notified().await;
        }
        let full = async {
            while self.queue().len() < MAX_BATCH {
                self.ready.notified().await;
            }
        };
        let _ = timeout(BATCH_DELAY, full).await;
    }

    fn take(&self, limit: usize) -> Vec<Span> {
        let mut queue = self.queue();
        let end = queue.len().min(limit);
        queue.drain(..end).collect()
    }
}

/// Sends batches to the collector, one after the other.
struct BatchExporter<'a> {
    tracer: &'a Tracer,
    tasks: &'a Tasks,
    pool: Pool,
    /// The current batch, encoded.
    message: Bytes,
    /// Spans of the current batch; zero if there is none.
    spans: usize,
    /// The last attempt failed. A failure is logged once, until an export succeeds.
    is_failing: bool,
}

/// A failed attempt.
struct SendError {
    cause: Box<dyn std::error::Error + Send + Sync>,
    /// The pause before a retry; `None` if the collector will not accept the batch.
    retry_after: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
#[error("the collector responded with {0}")]
struct UnexpectedStatus(StatusCode);

impl<'a> BatchExporter<'a> {
    fn new(tracer: &'a Tracer, tasks: &'a Tasks) -> Self {
        let config = client::Config {
            connect_timeout: ATTEMPT_TIMEOUT,
            response_timeout: ATTEMPT_TIMEOUT,
            max_idle: 1,
            tls: tracer.tls.clone(),
            ..client::Config::default()
        };
        let pool = Pool::new(tracer.config.collector.target.clone(), config);
        Self { tracer, tasks, pool, message: Bytes::new(), spans: 0, is_failing: false }
    }

    async fn run(&mut self) {
        loop {
            self.tracer.batch_ready().await;
            self.next_batch();
            self.send_with_retries().await;
        }
    }

    /// Sends what is left, each batch once, until one fails.
    async fn flush(&mut self) {
        loop {
            if self.spans == 0 {
                self.next_batch();
            }
            if self.spans == 0 || self.send().await.is_err() {
                return;
            }
        }
    }

    fn next_batch(&mut self) {
        let spans = self.tracer.take(MAX_BATCH);
        self.spans = spans.len();
        self.message = encode(&self.tracer.resource, &spans).into();
    }

    async fn send_with_retries(&mut self) {
        let end = Instant::now() + RETRY_FOR;
        let mut pause = RETRY_DELAY;
        while let Err(SendError { cause, retry_after }) = self.send().await {
            if !self.is_failing {
                self.is_failing = true;
                warn!(collector = %self.pool.target(), error = &*cause as &dyn std::error::Error, "failed to export spans");
            }
            let left = end.saturating_duration_since(Instant::now());
            // Compared as durations: a collector may ask for a pause that overflows an instant.
            let next = retry_after.map(|asked| asked.max(pause));
            match next.filter(|next| *next < left) {
                Some(next) => sleep(next).await,
                None => return self.drop_batch(),
            }
            pause *= 2;
        }
    }

    async fn send(&mut self) -> Result<(), SendError> {
        let request = self.request();
        let fetched = self.pool.fetch(request, self.tasks, MAX_RESPONSE, ATTEMPT_TIMEOUT).await;
        let response = fetched
            .map_err(|error| SendError { cause: error.into(), retry_after: Some(RETRY_DELAY) })?;
        if !response.status().is_success() {
            let retry_after = retry_delay(response.status(), response.headers());
            let cause = UnexpectedStatus(response.status()).into();
            return Err(SendError { cause, retry_after });
        }
        if std::mem::take(&mut self.is_failing) {
            info!(collector = %self.pool.target(), "span export recovered");
        }
        let rejected = rejected(response.body()).min(self.spans);
        let accepted = std::mem::take(&mut self.spans) - rejected;
        self.tracer.metrics.spans(SpanOutcome::Exported, accepted);
        self.tracer.metrics.spans(SpanOutcome::Failed, rejected);
        Ok(())
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::full(self.message.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from(self.tracer.config.collector.traces());
        let headers = request.headers_mut();
        headers.extend(self.tracer.config.headers.iter().cloned());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    fn drop_batch(&mut self) {
        self.tracer.metrics.spans(SpanOutcome::Failed, std::mem::take(&mut self.spans));
    }
}

/// Returns when a batch may be retried after this response; `None` if never. The protocol lists the statuses.
fn retry_delay(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let is_retryable = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    let asked = headers.get(RETRY_AFTER).and_then(|line| line.to_str().ok()?.parse().ok());
    is_retryable.then(|| asked.map_or(RETRY_DELAY, Duration::from_secs))
}

/// Returns how many spans of an accepted batch the collector has rejected.
fn rejected(response: &[u8]) -> usize {
    let response: Value = serde_json::from_slice(response).unwrap_or_default();
    let count = response.pointer("/partialSuccess/rejectedSpans");
    // The JSON of Protobuf has 64-bit integers as strings; some collectors write numbers.
    let count = count.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_retryable_statuses_are_retried() {
        let mut headers = HeaderMap::new();
        for (status, retries) in
            [(429, true), (502, true), (503, true), (504, true), (400, false), (500, false)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(retry_delay(status, &headers).is_some(), retries, "{status}");
        }
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(
            retry_delay(StatusCode::SERVICE_UNAVAILABLE, &headers),
            Some(Duration::from_secs(7))
        );
    }

    #[test]
    fn rejected_spans_are_read_as_string_or_number() {
        for (answer, count) in [
            ("", 0),
            ("{}", 0),
            (r#"{"partialSuccess":{}}"#, 0),
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"old"}}"#, 3),
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, 3),
            (r#"{"partialSuccess":{"rejectedSpans":-3}}"#, 0),
        ] {
            assert_eq!(rejected(answer.as_bytes()), count, "{answer}");
        }
    }
}
