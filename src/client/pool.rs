//! The connections of one worker to one upstream: sends each request on a kept or a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, Version, header};
use http_body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::attempt::{Attempt, Timeouts, Upgrade, attempt};
use super::connection::Connection;
use super::dial::DialTarget;
use super::error::{Error, ErrorKind};
use super::kept::KeptConnections;
use super::reaper::reap;
use super::request_body::RequestBody;
use super::retry::{Retry, copy_for_another_upstream, copy_for_new_connection};
use super::target::Target;
use super::tls::{Tls, UpstreamProtocol};
use crate::body::{self, Body, CollectError};
use crate::metrics::{UpstreamMetrics, UpstreamOutcome};
use crate::tasks::Tasks;

/// Settings of a pool.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time to open a connection, name resolution and TLS handshake included.
    pub connect_timeout: Duration,
    /// Time from the end of the request to the head of the response; also, for how long the upstream may leave the
    /// request's body unread.
    pub response_timeout: Duration,
    /// Time without a frame in either direction while the response's body is streamed; `None` is no timeout.
    pub stream_idle_timeout: Option<Duration>,
    /// Time for which a connection is kept between requests. It has to be shorter than the upstream's own.
    pub idle_timeout: Duration,
    /// Idle connections that are kept by each worker.
    pub max_idle: usize,
    /// TLS settings, for an `https` target.
    pub tls: Option<Arc<Tls>>,
    /// Limit on concurrent requests, shared with other pools of the same upstream; `None` is no limit.
    pub request_limit: Option<Arc<Semaphore>>,
    /// Metrics of its requests and connections.
    pub metrics: UpstreamMetrics,
    /// Protocol of the upstream. A request for an upgrade, such as WebSocket, is always sent by HTTP/1.1.
    pub protocol: UpstreamProtocol,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_mins(1),
            stream_idle_timeout: None,
            idle_timeout: Duration::from_secs(4),
            max_idle: 256,
            tls: None,
            request_limit: None,
            metrics: UpstreamMetrics::default(),
            protocol: UpstreamProtocol::Http1,
        }
    }
}

/// The connections of one worker to one upstream. A clone is the same pool.
///
/// It must be used on one runtime, where the tasks of its connections run.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    target: Target,
    authority: HeaderValue,
    config: Config,
    kept: Arc<KeptConnections>,
    /// Whether the reaper was started.
    has_reaper: AtomicBool,
}

/// A request without a response.
pub(super) struct SendError {
    pub(super) error: Error,
    /// The request, if it may be sent to another upstream.
    pub(super) request: Option<Request<RequestBody>>,
}

impl SendError {
    fn new(error: Error, request: Option<Request<RequestBody>>) -> Self {
        Self { error, request }
    }
}

impl Pool {
    /// Creates a pool without connections.
    pub fn new(target: Target, config: Config) -> Self {
        let authority = HeaderValue::from_str(&target.authority())
            .unwrap_or_else(|_| HeaderValue::from_static("localhost"));
        let kept = Arc::new(KeptConnections::new(config.idle_timeout, config.max_idle));
        Self(Arc::new(Shared {
            target,
            authority,
            config,
            kept,
            has_reaper: AtomicBool::new(false),
        }))
    }

    pub(crate) fn target(&self) -> &Target {
        &self.0.target
    }

    /// Sends a request and waits for the head of its response. Interim responses are dropped.
    ///
    /// The request is sent as HTTP/1.1 in origin form, with a Host if it has none, and framed as its body requires: a
    /// Content-Length or Transfer-Encoding that says otherwise is replaced. The response to an upgrade that was
    /// requested has hyper's `OnUpgrade` among its extensions.
    ///
    /// The connection serves further requests once the response's body was read to its end. It is closed if this future
    /// or the body is dropped before. `tasks` runs new connections.
    ///
    /// # Errors
    /// There is no response; see [`ErrorKind`].
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let request = self.prepare(request);
        self.try_send(request, Retry::Never, tasks).await.map_err(|failed| failed.error)
    }

    /// Sends a prepared request. The error contains it if it may be sent to another upstream.
    pub(super) async fn try_send(
        &self,
        request: Request<RequestBody>,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, SendError> {
        let Config { request_limit, metrics, .. } = &self.0.config;
        let (started, in_flight) = (Instant::now(), metrics.request_started());
        let sent = match request_limit {
            Some(limit) => self.send_within_limit(limit, request, retry, tasks).await,
            None => self.send_on_connection(request, retry, tasks).await,
        };
        let outcome = match &sent {
            Ok(_) => UpstreamOutcome::Responded,
            Err(failed) if failed.error.kind() == ErrorKind::Busy => UpstreamOutcome::Busy,
            Err(failed) if failed.error.is_timeout() => UpstreamOutcome::TimedOut,
            Err(_) => UpstreamOutcome::Failed,
        };
        metrics.request_finished(outcome, started.elapsed());
        sent.map(|response| response.map(|body| body.with_guard(move |_end| drop(in_flight))))
            .map_err(|failed| SendError { error: failed.error.at(self.target()), ..failed })
    }

    /// Waits until fewer requests than the limit are in flight.
    async fn send_within_limit(
        &self,
        limit: &Arc<Semaphore>,
        request: Request<RequestBody>,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, SendError> {
        let permit = Arc::clone(limit).acquire_owned();
        let busy = match timeout(self.0.config.connect_timeout, permit).await {
            Ok(Ok(permit)) => {
                let response = self.send_on_connection(request, retry, tasks).await?;
                return Ok(response.map(|body| body.with_guard(move |_end| drop(permit))));
            }
            Ok(Err(closed)) => Error::with(ErrorKind::Busy, closed),
            Err(elapsed) => Error::with(ErrorKind::Busy, elapsed),
        };
        Err(SendError::new(busy, Some(request)))
    }

    /// Sends on kept connections while those turn out to be closed, then on a new one.
    async fn send_on_connection(
        &self,
        mut request: Request<RequestBody>,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, SendError> {
        let protocol = match Upgrade::of(request.headers()) {
            Upgrade::Requested => UpstreamProtocol::Http1,
            Upgrade::None => self.0.config.protocol,
        };
        while let Some(connection) = self.0.kept.take(protocol) {
            let copy = copy_for_new_connection(&request);
            match (self.attempt(connection, request).await, copy) {
                (Attempt::Response(response), _) => return Ok(response),
                (Attempt::Unsent(unsent, _), _) => request = unsent,
                // Once, and on a new connection: another kept one may be closed too.
                (Attempt::Closed(_), Some(copy)) => {
                    request = copy;
                    break;
                }
                (Attempt::Closed(error) | Attempt::Failed(error), _) => {
                    return Err(SendError::new(error, None));
                }
            }
        }
        let connection = match self.open(protocol, tasks).await {
            Ok(connection) => connection,
            Err(error) => return Err(SendError::new(error, Some(request))),
        };
        let copy = copy_for_another_upstream(&request, retry);
        match self.attempt(connection, request).await {
            Attempt::Response(response) => Ok(response),
            Attempt::Unsent(request, error) => {
                let error = Error::with(ErrorKind::Response, error);
                Err(SendError::new(error, Some(request)))
            }
            Attempt::Closed(error) => Err(SendError::new(error, copy)),
            Attempt::Failed(error) => Err(SendError::new(error, None)),
        }
    }

    async fn attempt(&self, connection: Connection, request: Request<RequestBody>) -> Attempt {
        let Config { response_timeout, stream_idle_timeout, .. } = self.0.config;
        let timeouts = Timeouts { response: response_timeout, stream_idle: stream_idle_timeout };
        let kept = Arc::clone(&self.0.kept);
        attempt(connection, request, timeouts, move |connection| kept.keep(connection)).await
    }

    async fn open(&self, protocol: UpstreamProtocol, tasks: &Tasks) -> Result<Connection, Error> {
        let Shared { target, config, kept, has_reaper, .. } = &*self.0;
        // Weak, so that the connections' tasks do not keep the pool alive.
        let weak = Arc::downgrade(kept);
        let on_drain = move || {
            if let Some(kept) = weak.upgrade() {
                kept.drain();
            }
        };
        let tls = config.tls.as_deref();
        let to = DialTarget { target, tls, protocol, timeout: config.connect_timeout };
        let connection = Connection::open(to, &config.metrics, tasks, on_drain).await?;
        match &connection {
            Connection::Http1(_) => {}
            Connection::Http2(connection) => kept.share(connection),
        }
        let idle_timeout = config.idle_timeout;
        if !idle_timeout.is_zero() && !has_reaper.swap(true, Ordering::Relaxed) {
            tasks.run(reap(Arc::downgrade(kept), idle_timeout, tasks.sibling())).detach();
        }
        Ok(connection)
    }

    /// Sends a request and reads the whole body of its response, at most `limit` bytes, all within `deadline`.
    ///
    /// # Errors
    /// There is no response, or its body is too large or failed; see [`ErrorKind`].
    pub async fn fetch(
        &self,
        request: Request<Body>,
        tasks: &Tasks,
        limit: usize,
        deadline: Duration,
    ) -> Result<Response<Bytes>, Error> {
        let end = Instant::now() + deadline;
        let sent = timeout_at(end, self.send(request, tasks)).await;
        let response =
            sent.map_err(|elapsed| Error::with(ErrorKind::ResponseTimeout, elapsed))??;
        let (parts, body) = response.into_parts();
        let left = end.saturating_duration_since(Instant::now());
        let bytes = body::collect(body, limit, left).await.map_err(|error| {
            let kind = match error {
                CollectError::TimedOut => ErrorKind::ResponseBodyTimeout,
                CollectError::TooLarge | CollectError::Broken(_) => ErrorKind::ResponseBody,
            };
            Error::with(kind, error)
        })?;
        Ok(Response::from_parts(parts, bytes))
    }

    /// Converts a request to the form in which it is sent.
    pub(super) fn prepare(&self, request: Request<Body>) -> Request<RequestBody> {
        let (mut parts, body) = request.into_parts();
        parts.version = Version::HTTP_11;
        if parts.uri.authority().is_some() {
            parts.uri = origin_form(parts.uri);
        }
        if !parts.headers.contains_key(header::HOST) {
            parts.headers.insert(header::HOST, self.0.authority.clone());
        }
        // hyper trusts these fields more than the body, and would send a length without a body.
        parts.headers.remove(header::TRANSFER_ENCODING);
        match body.size_hint().exact() {
            Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => {}
            Some(length) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            None => drop(parts.headers.remove(header::CONTENT_LENGTH)),
        }
        Request::from_parts(parts, RequestBody::new(body))
    }
}

fn origin_form(uri: Uri) -> Uri {
    uri.into_parts().path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from)
}
