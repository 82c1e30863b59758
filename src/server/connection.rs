//! The life of one connection: which protocol it speaks, its service, its clocks and its end.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::time::{sleep, timeout};

use super::clocks::{Clocks, Expired};
use super::io::{Io, Pressure};
use super::proxy_header::{self, Proxied};
use super::response_body::{InFlight, Tail};
use super::streams::{Stall, Streams};
use super::tls::{Agreed, Handshake, Tls};
use super::{ConnectionLimit, Handler, Limits, Peer, Protocol, Settings};
use crate::body::{Body, End};
use crate::log::ACCESS;
use crate::metrics::{AbortReason, ListenerMetrics};
use crate::net::socket::Socket;
use crate::tasks::{self, Tasks};

/// What a client that speaks HTTP/2 without asking begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What hyper may buffer of a connection in either direction, where a head may not be larger.
const BUFFER: usize = 64 * 1024;

/// hyper's own limit of fields, for which it keeps them on the stack.
const USUAL_HEADERS: usize = 100;

/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 100;

/// How often an HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// How long a client that has nothing in flight may take to say that it knows of a connection's end.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a connection that was just accepted is waited for at the drain.
const FIRST: Duration = Duration::from_millis(500);

/// After how long without a request a connection of HTTP/1 gives its buffers back: 16 KiB that hyper holds as
/// long as it has the socket.
const REST: Duration = Duration::from_millis(50);

/// How far a connection was driven.
enum Drove {
    ToItsEnd,
    ToARest,
    /// Until the body of a response failed.
    Broken,
}

/// What the connections of one listener have in common, for one worker.
pub(super) struct Server<H> {
    settings: Settings,
    handler: Arc<H>,
    tasks: Tasks,
    pressure: Pressure,
    http1: http1::Builder,
    http2: http2::Builder<Streams>,
}

impl<H: Handler> Server<H> {
    pub(super) fn new(
        settings: Settings,
        handler: Arc<H>,
        tasks: Tasks,
        room: &ConnectionLimit,
    ) -> Self {
        let http1 = http1(&settings.limits);
        let (patience, metrics) = (settings.limits.body_idle_timeout, settings.metrics.clone());
        let streams = Streams::new(tasks.clone(), patience, room.stalled(), metrics);
        let http2 = http2(&settings.limits, streams);
        let pressure = Pressure::new(room.clone(), tasks.clone());
        Self { settings, handler, tasks, pressure, http1, http2 }
    }

    pub(super) fn leaves_descriptors(&self) -> bool {
        self.settings.leaves_descriptors
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.settings.metrics
    }

    /// Asks the proxy that passes a connection on whose it is, where there is one; whether that is known.
    pub(super) async fn learn_of_client(&self, socket: &mut Socket, peer: &mut Peer) -> bool {
        let proxy = peer.address.map(|proxy| proxy.ip());
        match &self.settings.proxy_header_from {
            Some(trust) if trust.trusts_peer(proxy) => {}
            _ => return true,
        }
        let read = tokio::select! {
            read = timeout(self.settings.limits.header_timeout, proxy_header::read(socket)) => read,
            () = self.late() => return false,
        };
        match read {
            Ok(Ok(Proxied::Itself)) => {
                peer.is_unknown = true;
                true
            }
            Ok(Ok(Proxied::Client { address, scheme })) => {
                peer.address = Some(address);
                peer.scheme = scheme.unwrap_or(peer.scheme);
                true
            }
            Ok(Err(error)) => {
                tracing::info!(%error, ?proxy, "a proxy did not say whose a connection is");
                self.metrics().connection_aborted(AbortReason::ProxyHeader);
                false
            }
            Err(_elapsed) => {
                self.metrics().connection_aborted(AbortReason::HeaderTimeout);
                false
            }
        }
    }

    /// Ends a connection for which there is no room.
    pub(super) fn turn_away(&self, socket: &Socket, peer: &Peer) {
        let client = peer.address;
        tracing::debug!(?client, "an address has as many connections as it may have");
        self.metrics().connection_aborted(AbortReason::AddressLimit);
        socket.reset_on_drop();
    }

    /// Serves one connection to its end.
    pub(super) async fn connection(&self, mut socket: Socket, mut peer: Peer) {
        let agreed = match &self.settings.protocol {
            Protocol::Http1 => Some(Agreed::Http1),
            Protocol::Http1AndH2c => None,
            // Its buffers are needed for a moment.
            Protocol::Tls(tls) => match Box::pin(self.handshake(tls, socket)).await {
                Some((secured, handshake)) => {
                    socket = secured;
                    peer.server_name = handshake.server_name;
                    Some(handshake.agreed)
                }
                None => return,
            },
        };
        if agreed == Some(Agreed::Http1) {
            return self.http1(socket, Bytes::new(), peer).await;
        }
        let Some(first) = self.first_bytes(&mut socket).await else { return };
        if *first == *PREFACE {
            self.http2(socket, first, peer).await;
        } else if agreed.is_none() {
            self.http1(socket, first, peer).await;
        }
    }

    /// `None` where it fails, or its time ends before.
    async fn handshake(&self, tls: &Arc<Tls>, socket: Socket) -> Option<(Socket, Handshake)> {
        let accepted = tokio::select! {
            accepted = timeout(self.settings.limits.header_timeout, tls.accept(socket)) => accepted,
            () = self.late() => return None,
        };
        match accepted {
            Ok(Ok((socket, handshake))) => {
                self.metrics().tls_handshake(handshake.version, handshake.resumed);
                return Some((socket, handshake));
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                self.metrics().connection_aborted(AbortReason::TlsHandshake);
            }
            Err(_elapsed) => {
                tracing::debug!("a handshake took too long");
                self.metrics().connection_aborted(AbortReason::HeaderTimeout);
            }
        }
        None
    }

    /// Reads as much as tells the protocols apart; `None` where the connection, or its time, ends before.
    async fn first_bytes(&self, socket: &mut Socket) -> Option<Bytes> {
        let read = async {
            let mut first = BytesMut::with_capacity(PREFACE.len());
            let mut socket = socket.take(PREFACE.len() as u64);
            while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
                if socket.read_buf(&mut first).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            io::Result::Ok(first.freeze())
        };
        tokio::select! {
            read = timeout(self.settings.limits.header_timeout, read) => read.ok()?.ok(),
            () = self.late() => None,
        }
    }

    /// Completes when the drain has lasted for so long that nobody's first request is on its way any more.
    async fn late(&self) {
        self.tasks.draining().await;
        sleep(FIRST).await;
    }

    fn io(&self, socket: Socket, first: Bytes, clocks: &Arc<Clocks>) -> Io {
        Io::new(socket, first, Arc::clone(clocks), self.pressure.clone())
    }

    async fn http1(&self, socket: Socket, first: Bytes, peer: Peer) {
        let clocks = Arc::new(Clocks::http1());
        let mut io = self.io(socket, first, &clocks);
        loop {
            let service = service_fn(|request| self.answer(request, &peer, &clocks));
            let connection = self.http1.serve_connection(TokioIo::new(io), service);
            let mut connection = Box::new(connection.with_upgrades());
            match self.drive(Pin::new(&mut *connection), &clocks, peer.address).await {
                Drove::ToItsEnd => return,
                Drove::ToARest => {}
                Drove::Broken => {
                    if let Some(parts) = connection.into_parts() {
                        parts.io.into_inner().close().await;
                    }
                    return;
                }
            }
            // hyper's buffers go, and come back with the next request.
            let Some(parts) = connection.into_parts() else { return };
            io = parts.io.into_inner();
            if parts.read_buf.is_empty() {
                if !self.rest(&mut io, &clocks).await {
                    return;
                }
            } else {
                io.unread(parts.read_buf);
            }
        }
    }

    /// Waits for the next request; whether one comes.
    async fn rest(&self, io: &mut Io, clocks: &Clocks) -> bool {
        tokio::select! {
            comes = io.wait() => comes,
            expired = clocks.expired(&self.settings.limits) => {
                self.ran_out(expired, clocks);
                false
            }
            () = self.tasks.draining() => false,
        }
    }

    async fn http2(&self, socket: Socket, first: Bytes, peer: Peer) {
        let clocks = Arc::new(Clocks::http2());
        let io = TokioIo::new(self.io(socket, first, &clocks));
        let service = service_fn(|request| self.answer(request, &peer, &clocks));
        let mut connection = Box::new(self.http2.serve_connection(io, service));
        self.drive(Pin::new(&mut *connection), &clocks, peer.address).await;
    }

    /// The future of one answer. It owns what it needs: HTTP/2 runs it as a task of its own.
    fn answer(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        clocks: &Arc<Clocks>,
    ) -> impl Future<Output = Result<Response<Tail>, Infallible>> + Send + use<H> {
        let handler = Arc::clone(&self.handler);
        let peer = peer.clone();
        let in_flight = InFlight::begin(clocks, request.body().is_end_stream());
        let leaves = self.tasks.clone();
        let version = request.version();
        // hyper keeps room for the future of an answer as long as the connection, or the stream, lasts; so most of it is
        // elsewhere, and the request with it.
        let handled = Box::pin(async move { handler.handle(request, peer).await });
        async move {
            let answered = tasks::catch(handled).await;
            let mut response = answered.unwrap_or_else(|_lost| failure());
            if leaves.is_shutdown_announced() && version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                // Without room it hears of the end when that comes.
                let _ = response.headers_mut().try_insert(header::CONNECTION, close);
            }
            // Chunks came with HTTP/1.1; before, the connection's end is that of a body without a length.
            if version < Version::HTTP_11 && response.body().size_hint().exact().is_none() {
                in_flight.clocks().ends_response();
            }
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                in_flight.clocks().leave_http();
            }
            Ok(response.map(|body| Tail::new(body, Stall::of_stream(), in_flight)))
        }
    }

    /// Runs a connection until it ends, misses a deadline, has been drained, or has nothing to do for a while.
    async fn drive<C: Connection>(
        &self,
        mut connection: Pin<&mut C>,
        clocks: &Clocks,
        client: Option<SocketAddr>,
    ) -> Drove {
        let ended = |result| self.ended(result, client);
        let limits = &self.settings.limits;
        let mut expired = pin!(clocks.expired(limits));
        let left = tokio::select! {
            biased;
            result = connection.as_mut() => return ended(result),
            expired = expired.as_mut() => {
                self.ran_out(expired, clocks);
                if !(C::ANNOUNCES_ITS_END && expired == Expired::Idle) {
                    return Drove::ToItsEnd;
                }
                None
            }
            () = clocks.rests(REST), if !C::ANNOUNCES_ITS_END => return Drove::ToARest,
            () = self.tasks.draining() => Some(limits.drain_timeout),
        };
        if !C::ANNOUNCES_ITS_END && clocks.is_fresh() {
            // Its request may be on the way; the answer will say that it is the last.
            tokio::select! {
                result = connection.as_mut() => return ended(result),
                () = sleep(FIRST) => {}
            }
        }
        if !C::ANNOUNCES_ITS_END && clocks.is_idle() {
            return Drove::ToItsEnd;
        }
        // It was polled in the select, as hyper requires of a connection that is shut down.
        connection.as_mut().shut_down();
        clocks.shut_down();
        let goodbye = Limits { idle_timeout: GOODBYE, ..limits.clone() };
        tokio::select! {
            biased;
            result = connection => return ended(result),
            expired = clocks.expired(&goodbye) => self.ran_out(expired, clocks),
            () = wait(left) => {
                tracing::warn!("a connection was cut at the drain's deadline");
                self.metrics().connection_aborted(AbortReason::Drain);
                clocks.cut(End::Drained);
                self.tasks.record_aborted();
            }
        }
        Drove::ToItsEnd
    }

    fn ran_out(&self, expired: Expired, clocks: &Clocks) {
        tracing::debug!(?expired, "a connection ran out of time");
        match expired {
            Expired::Head => self.metrics().connection_aborted(AbortReason::HeaderTimeout),
            Expired::Write => {
                self.metrics().connection_aborted(AbortReason::WriteTimeout);
                clocks.cut(End::Stalled);
            }
            // As long as that, and no longer, was agreed.
            Expired::Idle => {}
        }
    }

    /// Clients come, err and go; what concerns a request was said where it was answered. Of what hyper
    /// answered by itself, before there was a request, this is the line in the log.
    fn ended(&self, result: hyper::Result<()>, client: Option<SocketAddr>) -> Drove {
        let Err(error) = result else { return Drove::ToItsEnd };
        let source = &error as &dyn std::error::Error;
        tracing::debug!(error = source, "a connection ended with an error");
        let broke_rules = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref().is_some_and(h2::Error::is_library)
        };
        let cut = if error.is_parse_too_large() {
            AbortReason::TooLarge
        } else if error.is_parse() {
            AbortReason::Malformed
        } else if source.source().is_some_and(broke_rules) {
            AbortReason::Http2
        } else if error.is_user() {
            return Drove::Broken;
        } else {
            return Drove::ToItsEnd;
        };
        self.metrics().connection_aborted(cut);
        let client = client.map(|client| tracing::field::display(client.ip()));
        tracing::info!(target: ACCESS, client, reason = cut.as_str(), error = source, "refused");
        Drove::ToItsEnd
    }
}

/// For so long, or for ever.
async fn wait(long: Option<Duration>) {
    match long {
        Some(long) => sleep(long).await,
        None => pending().await,
    }
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // A client that closes its side is gone; its handler is dropped.
        .half_close(false)
        // The connection's clocks tell the wait for a request from that for its head; hyper's cannot.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.saturating_add(4096).max(BUFFER));
    if limits.headers != USUAL_HEADERS {
        builder.max_headers(limits.headers);
    }
    builder
}

fn http2(limits: &Limits, streams: Streams) -> http2::Builder<Streams> {
    let header_bytes = u32::try_from(limits.header_bytes.max(BUFFER)).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(header_bytes)
        // WebSocket over a stream (RFC 8441).
        .enable_connect_protocol()
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

fn failure() -> Response<Body> {
    let mut response = Response::new(Body::full("Internal Server Error\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The connections of hyper, which have no trait in common.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Whether the client hears of a shutdown before it sends its next request, and so does not lose that.
    const ANNOUNCES_ITS_END: bool;

    /// Has it end after the requests in flight.
    fn shut_down(self: Pin<&mut Self>);
}

impl<S, F> Connection for http1::UpgradeableConnection<TokioIo<Io>, S>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Tail>,
            Error = Infallible,
            Future = F,
        >,
    F: Future<Output = Result<Response<Tail>, Infallible>>,
{
    const ANNOUNCES_ITS_END: bool = false;

    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, F> Connection for http2::Connection<TokioIo<Io>, S, Streams>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Tail>,
            Error = Infallible,
            Future = F,
        >,
    F: Future<Output = Result<Response<Tail>, Infallible>> + Send + 'static,
{
    const ANNOUNCES_ITS_END: bool = true;

    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
