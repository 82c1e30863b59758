//! The connections of one worker to one upstream: sends each request on a kept or a new one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::attempt::{Failure, Settings, attempt};
use super::connection::Connection;
use super::dial::DialTarget;
use super::error::{Error, ErrorKind};
use super::kept::KeptConnections;
use super::outgoing::{Outgoing, Reuse, UpstreamUrl};
use super::reaper::reap;
use super::retry::Retry;
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
    /// The target as text, for the log.
    url: UpstreamUrl,
    config: Config,
    settings: Settings,
    kept: Arc<KeptConnections>,
    /// Whether the reaper was started.
    has_reaper: AtomicBool,
}

impl Pool {
    /// Creates a pool without connections.
    pub fn new(target: Target, config: Config) -> Self {
        let settings = Settings {
            host: HeaderValue::from_str(&target.authority())
                .unwrap_or_else(|_| HeaderValue::from_static("localhost")),
            response_timeout: config.response_timeout,
            stream_idle_timeout: config.stream_idle_timeout,
        };
        let kept = Arc::new(KeptConnections::new(config.idle_timeout, config.max_idle));
        Self(Arc::new(Shared {
            url: Arc::new(target.to_string().into()),
            target,
            config,
            settings,
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
    /// There is no response; see [`ErrorKind`]. [`Outgoing::can_be_sent`] returns whether the request may be sent to another
    /// upstream.
    pub(super) async fn send(
        &self,
        outgoing: &mut Outgoing,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let Config { request_limit, metrics, .. } = &self.0.config;
        let (started, in_flight) = (outgoing.begin_visit(&self.0.url), metrics.request_started());
        let permit = match request_limit {
            Some(limit) => Box::pin(self.acquire(limit)).await.map(Some),
            None => Ok(None),
        };
        let sent = match permit {
            Ok(permit) => {
                let sent = pin!(self.send_on_connection(outgoing, retry, tasks)).await;
                sent.map(|response| response.map(|body| body.holding((in_flight, permit))))
            }
            Err(busy) => Err(busy),
        };
        let outcome = match &sent {
            Ok(_) => UpstreamOutcome::Responded,
            Err(error) if error.kind() == ErrorKind::Busy => UpstreamOutcome::Busy,
            Err(error) if error.is_timeout() => UpstreamOutcome::TimedOut,
            Err(_) => UpstreamOutcome::Failed,
        };
        metrics.request_finished(outcome, outgoing.end_visit(started));
        sent.map_err(|error| error.at(self.target()))
    }

    /// Waits until fewer requests than the limit are in flight.
    async fn acquire(&self, limit: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
        let permit = Arc::clone(limit).acquire_owned();
        match timeout(self.0.config.connect_timeout, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(closed)) => Err(Error::with(ErrorKind::Busy, closed)),
            Err(elapsed) => Err(Error::with(ErrorKind::Busy, elapsed)),
        }
    }

    /// Sends on kept connections while those turn out to be closed, then on a new one; on that alone if the request asks
    /// for it.
    async fn send_on_connection(
        &self,
        outgoing: &mut Outgoing,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let protocol = outgoing.protocol(self.0.config.protocol);
        while let Some(connection) = self.take_kept(protocol, outgoing.reuse()) {
            let sent = pin!(self.attempt(connection, outgoing, Retry::OnNewConnection)).await;
            match sent {
                Ok(response) => return Ok(response),
                Err(Failure::Unsent(_)) => {}
                // Once, and on a new connection: another kept one may be closed too.
                Err(Failure::Closed(_)) if outgoing.can_be_sent() => break,
                Err(Failure::Closed(error) | Failure::Failed(error)) => {
                    outgoing.clear();
                    return Err(error);
                }
            }
        }
        // Boxed, since most requests need none.
        let connection = Box::pin(self.open(protocol, tasks)).await?;
        outgoing.set_opened();
        let sent = Box::pin(self.attempt(connection, outgoing, retry)).await;
        match sent {
            Ok(response) => Ok(response),
            Err(Failure::Unsent(error)) => Err(Error::with(ErrorKind::Response, error)),
            Err(Failure::Closed(error)) => Err(error),
            Err(Failure::Failed(error)) => {
                outgoing.clear();
                Err(error)
            }
        }
    }

    fn take_kept(&self, protocol: UpstreamProtocol, reuse: Reuse) -> Option<Connection> {
        match reuse {
            Reuse::Kept => self.0.kept.take(protocol),
            Reuse::Never => None,
        }
    }

    fn attempt<'a>(
        &'a self,
        connection: Connection,
        outgoing: &'a mut Outgoing,
        retry: Retry,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + Send + 'a {
        let Shared { settings, kept, .. } = &*self.0;
        let kept = Arc::clone(kept);
        attempt(connection, outgoing, retry, settings, move |connection| kept.keep(connection))
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
        self.fetch_outgoing(Outgoing::new(request), tasks, limit, deadline).await
    }

    /// Does the same with a prepared request.
    pub(super) async fn fetch_outgoing(
        &self,
        mut outgoing: Outgoing,
        tasks: &Tasks,
        limit: usize,
        deadline: Duration,
    ) -> Result<Response<Bytes>, Error> {
        let end = Instant::now() + deadline;
        let sent = timeout_at(end, self.send(&mut outgoing, Retry::Never, tasks)).await;
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
}
