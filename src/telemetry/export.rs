//! The way to the collector (OTLP 1, "OTLP/HTTP Response"): batches, and what becomes of one that is not taken.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::span::message_of;
use super::{BATCH, Span, Tracer};
use crate::body::Body;
use crate::client::{self, Pool};
use crate::metrics::SpanOutcome;
use crate::tasks::Tasks;

/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// For one try: the SDKs' default.
const TRY: Duration = Duration::from_secs(10);

/// How long a batch is tried, with pauses that double, and are as long as the collector asks.
const TRIES: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_secs(1);

/// For all that still waits at the end: a collector that does not answer holds no drain up.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Bytes of a collector's answer that are read.
const ANSWER_BYTES: usize = 64 * 1024;

impl Tracer {
    /// Sends what is recorded to the collector, until the drain begins, and then what still waits. It is
    /// to run once, and its connections live on the runtime that it runs on.
    pub async fn export(self: Arc<Self>, tasks: Tasks) {
        let mut courier = Courier::of(&self, &tasks);
        tokio::select! {
            () = tasks.draining() => {}
            () = courier.work() => {}
        }
        let _ = timeout(AT_THE_END, courier.clear()).await;
        courier.lose();
        self.metrics.spans(SpanOutcome::Failed, self.take(usize::MAX).len());
    }

    /// Waits for a first span, and then for a full batch, not for long.
    async fn gathered(&self) {
        while self.waiting().is_empty() {
            self.changed.notified().await;
        }
        let full = async {
            while self.waiting().len() < BATCH {
                self.changed.notified().await;
            }
        };
        let _ = timeout(GATHER, full).await;
    }

    fn take(&self, limit: usize) -> Vec<Span> {
        let mut waiting = self.waiting();
        let end = waiting.len().min(limit);
        waiting.drain(..end).collect()
    }
}

/// Who brings batches to the collector, one after the other.
struct Courier<'a> {
    tracer: &'a Tracer,
    tasks: &'a Tasks,
    pool: Pool,
    /// What it carries; nothing where there are no spans in it.
    message: Bytes,
    spans: usize,
    /// Whether the collector has not taken the last one.
    is_away: bool,
}

/// Why a batch was not taken.
struct Refusal {
    cause: Box<dyn std::error::Error + Send + Sync>,
    /// After how long it may be sent again, if ever.
    again: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
#[error("it answered {0}")]
struct Answered(StatusCode);

impl<'a> Courier<'a> {
    fn of(tracer: &'a Tracer, tasks: &'a Tasks) -> Self {
        let config = client::Config {
            connect_timeout: TRY,
            response_timeout: TRY,
            max_idle: 1,
            tls: tracer.tls.clone(),
            ..client::Config::default()
        };
        let pool = Pool::new(tracer.config.collector.target.clone(), config);
        Self { tracer, tasks, pool, message: Bytes::new(), spans: 0, is_away: false }
    }

    async fn work(&mut self) {
        loop {
            self.tracer.gathered().await;
            self.load();
            self.deliver().await;
        }
    }

    /// Tries once with each batch that is left, until one is not taken.
    async fn clear(&mut self) {
        loop {
            if self.spans == 0 {
                self.load();
            }
            if self.spans == 0 || self.bring().await.is_err() {
                return;
            }
        }
    }

    fn load(&mut self) {
        let spans = self.tracer.take(BATCH);
        self.spans = spans.len();
        self.message = message_of(&self.tracer.resource, &spans).into();
    }

    /// Brings what it carries until that is taken, or its time is over.
    async fn deliver(&mut self) {
        let end = Instant::now() + TRIES;
        let mut pause = PAUSE;
        while let Err(Refusal { cause, again }) = self.bring().await {
            if !self.is_away {
                self.is_away = true;
                warn!(collector = %self.pool.target(), error = &*cause as &dyn std::error::Error, "spans are not taken");
            }
            let left = end.saturating_duration_since(Instant::now());
            // A collector may ask for any time, also for one that no clock can add.
            let next = again.map(|asked| asked.max(pause));
            match next.filter(|next| *next < left) {
                Some(next) => sleep(next).await,
                None => return self.lose(),
            }
            pause *= 2;
        }
    }

    async fn bring(&mut self) -> Result<(), Refusal> {
        let request = self.request();
        let fetched = self.pool.fetch(request, self.tasks, ANSWER_BYTES, TRY).await;
        let answer =
            fetched.map_err(|error| Refusal { cause: error.into(), again: Some(PAUSE) })?;
        if !answer.status().is_success() {
            let again = again(answer.status(), answer.headers());
            return Err(Refusal { cause: Answered(answer.status()).into(), again });
        }
        if std::mem::take(&mut self.is_away) {
            info!(collector = %self.pool.target(), "spans are taken again");
        }
        let rejected = rejected(answer.body()).min(self.spans);
        let taken = std::mem::take(&mut self.spans) - rejected;
        self.tracer.metrics.spans(SpanOutcome::Exported, taken);
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

    /// Gives up what it carries.
    fn lose(&mut self) {
        self.tracer.metrics.spans(SpanOutcome::Failed, std::mem::take(&mut self.spans));
    }
}

/// When a batch that was answered so may be sent again.
fn again(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let may_be = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    let asked = headers.get(RETRY_AFTER).and_then(|line| line.to_str().ok()?.parse().ok());
    may_be.then(|| asked.map_or(PAUSE, Duration::from_secs))
}

/// How many spans of a batch the collector will not have, though it has taken the others.
fn rejected(answer: &[u8]) -> usize {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let count = answer.pointer("/partialSuccess/rejectedSpans");
    // 64-bit integers are strings in this JSON, or numbers.
    let count = count.and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_sent_again_is_what_the_protocol_says() {
        let mut headers = HeaderMap::new();
        for (status, may_be) in
            [(429, true), (502, true), (503, true), (504, true), (400, false), (500, false)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(again(status, &headers).is_some(), may_be, "{status}");
        }
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(again(StatusCode::SERVICE_UNAVAILABLE, &headers), Some(Duration::from_secs(7)));
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
