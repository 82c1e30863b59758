//! The idle connections of one worker to one upstream, and how a request finds one.
//!
//! What may be sent twice: a request of which hyper wrote nothing, and once, on a new connection, a safe one
//! without a body whose connection had served before and closed without a byte of a response. That is the
//! race with the upstream's own idle timeout (RFC 9112, section 9.3.1). Nothing else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::carrier::Carrier;
use super::connection::{Connection, Dialled, NotSent, Outgoing, Progress};
use super::error::{Error, ErrorKind};
use super::framing;
use super::target::Target;
use super::tls::{Tls, UpstreamProtocol};
use crate::body::{self, Body, CollectError, End};
use crate::metrics::{UpstreamMetrics, UpstreamOutcome};
use crate::tasks::Tasks;

/// Bytes of a response's body that are taken in at once, so that its connection is free while the client is slow.
const SMALL: u64 = 2048;

/// How an upstream is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// For a connection, names resolved.
    pub connect_timeout: Duration,
    /// From the end of the request to the response's head. It also bounds how long the upstream may take
    /// nothing of the request's body.
    pub response_timeout: Duration,
    /// How long nothing may come in either direction while the response's body is on its way; `None` is any time.
    pub stream_idle_timeout: Option<Duration>,
    /// How long a connection is kept for the next request: less than the upstream keeps it.
    pub idle_timeout: Duration,
    /// Connections that are kept so, for each worker.
    pub max_idle: usize,
    /// For a target with TLS.
    pub tls: Option<Arc<Tls>>,
    /// Room for requests at a time, shared with other pools of the same upstream; `None` is any number.
    pub request_limit: Option<Arc<Semaphore>>,
    /// Where its requests and connections are counted.
    pub metrics: UpstreamMetrics,
    /// The protocol; a request that asks for another one, as WebSocket is, goes by HTTP/1.1.
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
/// It is used on one runtime: the tasks of its connections live there.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    target: Target,
    authority: HeaderValue,
    config: Config,
    idle: Mutex<VecDeque<Idle>>,
    /// The connection of HTTP/2 that all requests share, where there is one.
    carrier: Mutex<Option<(Arc<Carrier>, Instant)>>,
    /// Since the drain began, no connection is kept.
    draining: AtomicBool,
    /// Whether a task closes what is kept for too long.
    reaped: AtomicBool,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// Whether a request asks for another protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Upgrades {
    Asked,
    Not,
}

impl Upgrades {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::UPGRADE) { Self::Asked } else { Self::Not }
    }
}

/// Whether a request that may be repeated is kept until it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    Kept,
    None,
}

/// A request without an answer.
pub(super) struct Failed {
    pub(super) error: Error,
    /// The request, where another upstream may have it.
    pub(super) request: Option<Request<Outgoing>>,
}

impl Failed {
    fn unsent(
        kind: ErrorKind,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
        request: Request<Outgoing>,
    ) -> Self {
        Self { error: Error::with(kind, cause), request: Some(request) }
    }
}

/// What became of one attempt.
enum Attempt {
    Answered(Response<Body>),
    /// Nothing was written.
    Unsent(Request<Outgoing>, hyper::Error),
    /// The connection ended without a byte of a response.
    Unanswered(Error),
    Failed(Error),
}

impl Pool {
    /// A pool without connections.
    pub fn new(target: Target, config: Config) -> Self {
        let authority = HeaderValue::from_str(&target.authority())
            .unwrap_or_else(|_| HeaderValue::from_static("localhost"));
        Self(Arc::new(Shared {
            target,
            authority,
            config,
            idle: Mutex::default(),
            carrier: Mutex::default(),
            draining: AtomicBool::new(false),
            reaped: AtomicBool::new(false),
        }))
    }

    /// Where its connections go.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Sends a request and waits for the head of its response; interim responses are dropped.
    ///
    /// A response that switches protocols, where the request asked for that, has hyper's `OnUpgrade` among
    /// its extensions. The request goes in origin form as HTTP/1.1, with a Host where it has none, and
    /// framed as its body is: a Content-Length or Transfer-Encoding that says otherwise is replaced. When the response's body was read
    /// to its end, its connection serves the next request; when the future or the body is dropped before, it
    /// is closed. `tasks` gets the tasks of new connections.
    pub async fn send(
        &self,
        request: Request<Body>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let request = self.prepare(request);
        self.try_send(request, Copies::None, tasks).await.map_err(|failed| failed.error)
    }

    /// The same with a request that was prepared, and given back where it may be sent again.
    pub(super) async fn try_send(
        &self,
        request: Request<Outgoing>,
        copies: Copies,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Failed> {
        let Config { request_limit, metrics, .. } = &self.0.config;
        let (started, in_flight) = (Instant::now(), metrics.request_started());
        let sent = self.send_in_turn(request_limit.as_ref(), request, copies, tasks).await;
        let outcome = match &sent {
            Ok(_) => UpstreamOutcome::Responded,
            Err(failed) if failed.error.kind() == ErrorKind::Busy => UpstreamOutcome::Busy,
            Err(failed) if failed.error.is_timeout() => UpstreamOutcome::TimedOut,
            Err(_) => UpstreamOutcome::Failed,
        };
        metrics.request_finished(outcome, started.elapsed());
        sent.map(|response| response.map(|body| body.with_guard(move |_end| drop(in_flight))))
            .map_err(|failed| Failed { error: failed.error.at(self.target()), ..failed })
    }

    async fn send_in_turn(
        &self,
        room: Option<&Arc<Semaphore>>,
        request: Request<Outgoing>,
        copies: Copies,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Failed> {
        let Some(room) = room else {
            return self.send_now(request, copies, tasks).await;
        };
        let permit = Arc::clone(room).acquire_owned();
        let permit = match timeout(self.0.config.connect_timeout, permit).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(closed)) => return Err(Failed::unsent(ErrorKind::Busy, closed, request)),
            Err(elapsed) => return Err(Failed::unsent(ErrorKind::Busy, elapsed, request)),
        };
        let response = self.send_now(request, copies, tasks).await?;
        Ok(response.map(|body| body.with_guard(move |_end| drop(permit))))
    }

    async fn send_now(
        &self,
        mut request: Request<Outgoing>,
        copies: Copies,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Failed> {
        let speaks = match Upgrades::of(request.headers()) {
            Upgrades::Asked => UpstreamProtocol::Http1,
            Upgrades::Not => self.0.config.protocol,
        };
        while let Some(connection) = self.take(speaks) {
            let copy = repeatable(&request).then(|| copy(&request));
            match (self.attempt(connection, request).await, copy) {
                (Attempt::Answered(response), _) => return Ok(response),
                (Attempt::Unsent(unsent, _), _) => request = unsent,
                (Attempt::Unanswered(_), Some(copy)) => {
                    request = copy;
                    break;
                }
                (Attempt::Unanswered(error) | Attempt::Failed(error), _) => {
                    return Err(Failed { error, request: None });
                }
            }
        }
        let connection = match self.open(speaks, tasks).await {
            Ok(connection) => connection,
            Err(error) => return Err(Failed { error, request: Some(request) }),
        };
        let copy =
            (copies == Copies::Kept && repeatable_elsewhere(&request)).then(|| copy(&request));
        match self.attempt(connection, request).await {
            Attempt::Answered(response) => Ok(response),
            Attempt::Unsent(request, error) => {
                let error = Error::with(ErrorKind::Response, error);
                Err(Failed { error, request: Some(request) })
            }
            Attempt::Unanswered(error) => Err(Failed { error, request: copy }),
            Attempt::Failed(error) => Err(Failed { error, request: None }),
        }
    }

    /// Sends a request and reads all of its response's body, at most `limit` bytes, all within `deadline`.
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

    /// The request as it goes to the upstream.
    pub(super) fn prepare(&self, request: Request<Body>) -> Request<Outgoing> {
        let (mut parts, body) = request.into_parts();
        parts.version = Version::HTTP_11;
        if parts.uri.authority().is_some() {
            parts.uri = origin_form(parts.uri);
        }
        if !parts.headers.contains_key(header::HOST) {
            parts.headers.insert(header::HOST, self.0.authority.clone());
        }
        // hyper believes these headers rather than the body, and would let a length without a body pass.
        parts.headers.remove(header::TRANSFER_ENCODING);
        match body.size_hint().exact() {
            Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => {}
            Some(length) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            None => drop(parts.headers.remove(header::CONTENT_LENGTH)),
        }
        Request::from_parts(parts, Outgoing::new(body))
    }

    async fn open(&self, speaks: UpstreamProtocol, tasks: &Tasks) -> Result<Connection, Error> {
        let pool = Arc::downgrade(&self.0);
        let drain = move || {
            if let Some(pool) = pool.upgrade() {
                pool.drain();
            }
        };
        let Config { connect_timeout, tls, metrics, .. } = &self.0.config;
        let to = Dialled { target: &self.0.target, tls: tls.as_deref(), metrics };
        let connection = Connection::open(to, speaks, *connect_timeout, tasks, drain).await?;
        if let Connection::Http2(carrier) = &connection {
            self.0.share(carrier);
        }
        if !self.0.config.idle_timeout.is_zero() && !self.0.reaped.swap(true, Ordering::Relaxed) {
            let pool = Arc::downgrade(&self.0);
            tasks.run(reap(pool, self.0.config.idle_timeout, tasks.sibling())).detach();
        }
        Ok(connection)
    }

    async fn attempt(&self, mut connection: Connection, request: Request<Outgoing>) -> Attempt {
        let progress = request.body().progress();
        let upgrades = Upgrades::of(request.headers());
        let sent = self.in_time(connection.send(request), progress.as_deref()).await;
        match sent {
            Ok(Ok(response)) => self.answered(response, connection, upgrades, progress.as_deref()),
            Ok(Err(NotSent { request: Some(request), error })) => Attempt::Unsent(request, error),
            Ok(Err(NotSent { request: None, error })) => failed(&connection, error),
            Err(elapsed) => Attempt::Failed(elapsed),
        }
    }

    /// What comes of a request within the upstream's time. While the client sends, the body's own
    /// deadline holds; then the upstream's begins anew.
    async fn in_time<T>(
        &self,
        sent: impl Future<Output = T>,
        progress: Option<&Progress>,
    ) -> Result<T, Error> {
        let timeout = self.0.config.response_timeout;
        let mut sent = std::pin::pin!(sent);
        let mut deadline = Instant::now() + timeout;
        loop {
            let elapsed = match timeout_at(deadline, sent.as_mut()).await {
                Ok(outcome) => return Ok(outcome),
                Err(elapsed) => elapsed,
            };
            let now = Instant::now();
            deadline = match progress {
                Some(progress) => progress.upstream_since().unwrap_or(now) + timeout,
                None => now,
            };
            if deadline <= now {
                return Err(Error::with(ErrorKind::ResponseTimeout, elapsed));
            }
        }
    }

    /// The response, whose body returns the connection at its end.
    fn answered(
        &self,
        mut response: Response<Incoming>,
        connection: Connection,
        upgrades: Upgrades,
        progress: Option<&Progress>,
    ) -> Attempt {
        if let Err(error) = framing::settle(response.headers_mut()) {
            return Attempt::Failed(Error::with(ErrorKind::Response, error));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if upgrades == Upgrades::Asked {
                connection.release();
                return Attempt::Answered(response.map(|_nothing| Body::empty()));
            }
            let cause = "the upstream switched protocols, which nobody asked for";
            return Attempt::Failed(Error::with(ErrorKind::Response, cause));
        }
        let pool = Arc::clone(&self.0);
        let mut response = response.map(|incoming| {
            let mut body = Body::streaming(incoming, pool.config.stream_idle_timeout);
            if let Some(progress) = progress {
                body = body.with_response_activity(progress.activity());
            }
            body.with_guard(move |end| {
                // An early response to a request that is still being sent leaves the connection unready.
                if end == End::Complete && connection.is_ready() {
                    pool.keep(connection);
                }
            })
            .buffered(SMALL)
        });
        // The version tells of this hop only; passed on, 1.0 would cost the client its connection.
        *response.version_mut() = Version::HTTP_11;
        Attempt::Answered(response)
    }

    /// The connection that was used last, so that few are kept busy and the others expire; or the one
    /// that carries all.
    fn take(&self, speaks: UpstreamProtocol) -> Option<Connection> {
        if speaks != UpstreamProtocol::Http1
            && let Some(carrier) = self.0.shared()
        {
            return Some(Connection::Http2(carrier));
        }
        loop {
            let Idle { connection, since } = self.0.idle().pop_back()?;
            if since.elapsed() < self.0.config.idle_timeout && connection.is_ready() {
                return Some(connection);
            }
        }
    }
}

/// Closes connections that nobody uses, until the pool is gone or the drain begins.
async fn reap(pool: Weak<Shared>, timeout: Duration, tasks: Tasks) {
    let mut next = Instant::now() + timeout;
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            () = sleep_until(next) => {}
        }
        let Some(pool) = pool.upgrade() else { return };
        next = pool.close_expired();
    }
}

impl Shared {
    /// The connection that carries all requests, unless it has closed, or has carried none for long.
    fn shared(&self) -> Option<Arc<Carrier>> {
        let mut place = self.carrier();
        self.let_go_expired(&mut place);
        let (carrier, used) = place.as_mut()?;
        *used = Instant::now();
        Some(Arc::clone(carrier))
    }

    fn let_go_expired(&self, place: &mut Option<(Arc<Carrier>, Instant)>) {
        let is_over = |(carrier, used): &mut (Arc<Carrier>, Instant)| {
            let is_idle = Arc::strong_count(carrier) == 1;
            (is_idle && used.elapsed() >= self.config.idle_timeout) || !carrier.is_open()
        };
        drop(place.take_if(is_over));
    }

    /// Has the requests to come share a connection.
    fn share(&self, carrier: &Arc<Carrier>) {
        if !self.draining.load(Ordering::Relaxed) {
            *self.carrier() = Some((Arc::clone(carrier), Instant::now()));
        }
    }

    fn carrier(&self) -> MutexGuard<'_, Option<(Arc<Carrier>, Instant)>> {
        // Nothing panics while it is held.
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection for the next request.
    fn keep(&self, connection: Connection) {
        if self.draining.load(Ordering::Relaxed) {
            return;
        }
        if matches!(connection, Connection::Http2(_)) || self.config.idle_timeout.is_zero() {
            return;
        }
        let mut idle = self.idle();
        idle.push_back(Idle { connection, since: Instant::now() });
        let gone = if idle.len() > self.config.max_idle { idle.pop_front() } else { None };
        drop(idle);
        drop(gone);
    }

    /// Closes what was kept for as long as connections are; answers when the next one is.
    fn close_expired(&self) -> Instant {
        self.let_go_expired(&mut self.carrier());
        let (now, timeout) = (Instant::now(), self.config.idle_timeout);
        let mut idle = self.idle();
        let expired = idle.partition_point(|idle| now.duration_since(idle.since) >= timeout);
        let gone: Vec<Idle> = idle.drain(..expired).collect();
        let next = idle.front().map_or(now, |oldest| oldest.since) + timeout;
        drop(idle);
        drop(gone);
        next
    }

    /// Called by the task of each connection, so none that is kept before that call outlives it.
    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle());
        let carrier = self.carrier().take();
        drop((idle, carrier));
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        // Nothing panics while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(connection: &Connection, error: hyper::Error) -> Attempt {
    let error = Error::of_exchange(error);
    if error.kind() == ErrorKind::Response && !connection.has_received() {
        Attempt::Unanswered(error)
    } else {
        Attempt::Failed(error)
    }
}

fn repeatable(request: &Request<Outgoing>) -> bool {
    request.method().is_safe() && request.body().is_end_stream()
}

/// Whether it does no more when it is done twice (RFC 9110, section 9.2.2).
fn repeatable_elsewhere(request: &Request<Outgoing>) -> bool {
    request.method().is_idempotent() && request.body().is_end_stream()
}

/// The same request again; it has no body.
fn copy(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing::new(Body::empty()));
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    copy
}

fn origin_form(uri: Uri) -> Uri {
    uri.into_parts().path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from)
}
