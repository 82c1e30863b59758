//! One connection from accept to close: PROXY header, TLS handshake, protocol, and a response for each request.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::batch::{BatchIo, Batched};
use super::builder;
use super::drive::{Drive, Driver, drain_grace_elapsed};
use super::io::{ClientIo, Pressure};
use super::proxy_header::{self, Proxied};
use super::response_body::{InFlight, ResponseBody};
use super::sniff::{Sniffed, sniff};
use super::state::{ConnectionState, Upload};
use super::streams::{Stall, Streams};
use super::tls::{Handshake, NegotiatedProtocol, Tls};
use super::{ConnectionLimit, Handler, Peer, Protocol, Settings};
use crate::body::Body;
use crate::metrics::{AbortReason, ListenerMetrics};
use crate::net::socket::Socket;
use crate::tasks::{self, Tasks};

/// Shared by the connections that one worker accepts on one listener.
pub(super) struct Server<H> {
    settings: Settings,
    handler: Arc<H>,
    tasks: Tasks,
    pressure: Pressure,
    http1: http1::Builder,
    http2: http2::Builder<Streams>,
}

/// Why a connection did not get as far as its first request.
enum TooLate {
    HeaderTimeout,
    Draining,
}

impl<H: Handler> Server<H> {
    pub(super) fn new(
        settings: Settings,
        handler: Arc<H>,
        tasks: Tasks,
        limit: &ConnectionLimit,
    ) -> Self {
        let http1 = builder::http1(&settings.limits);
        let stall_timeout = settings.limits.body_idle_timeout;
        let metrics = settings.metrics.clone();
        let streams = Streams::new(tasks.clone(), stall_timeout, limit.stalled(), metrics);
        let http2 = builder::http2(&settings.limits, streams);
        let pressure = Pressure::new(limit.clone(), tasks.clone());
        Self { settings, handler, tasks, pressure, http1, http2 }
    }

    pub(super) fn leaves_descriptors(&self) -> bool {
        self.settings.leaves_descriptors
    }

    pub(super) fn metrics(&self) -> &ListenerMetrics {
        &self.settings.metrics
    }

    /// Reads the PROXY header if the connection comes from a proxy that sends one, and updates `peer` from it.
    /// Returns `false` if there is none or it is invalid.
    pub(super) async fn read_proxy_header(&self, socket: &mut Socket, peer: &mut Peer) -> bool {
        let proxy = peer.address.map(|proxy| proxy.ip());
        match &self.settings.proxy_header_from {
            Some(trust) if trust.trusts_peer(proxy) => {}
            // Any other peer could claim any address, so its bytes are read as HTTP.
            Some(_) | None => return true,
        }
        match self.before_first_request(proxy_header::read(socket)).await {
            Ok(Ok(Proxied::Unknown)) => {
                peer.is_unknown = true;
                true
            }
            Ok(Ok(Proxied::Client { address, scheme })) => {
                peer.address = Some(address);
                peer.scheme = scheme.unwrap_or(peer.scheme);
                true
            }
            Ok(Err(error)) => {
                let reason = AbortReason::ProxyHeader;
                tracing::info!(%error, ?proxy, reason = reason.as_str(), "invalid or missing PROXY protocol header");
                self.metrics().connection_aborted(reason);
                false
            }
            Err(TooLate::HeaderTimeout) => {
                let reason = AbortReason::HeaderTimeout;
                tracing::debug!(reason = reason.as_str(), "PROXY protocol header timed out");
                self.metrics().connection_aborted(reason);
                false
            }
            Err(TooLate::Draining) => false,
        }
    }

    /// Resets a connection whose address has reached its limit.
    pub(super) fn reject(&self, socket: &Socket, peer: &Peer) {
        let client = peer.address;
        let reason = AbortReason::AddressLimit;
        tracing::debug!(
            ?client,
            reason = reason.as_str(),
            "connection rejected: limit per address reached"
        );
        self.metrics().connection_aborted(reason);
        socket.reset_on_drop();
    }

    /// Serves one connection until it closes.
    pub(super) async fn serve(self: &Arc<Self>, mut socket: Socket, mut peer: Peer) {
        let sniffed = match &self.settings.protocol {
            Protocol::Http1 => Some(Sniffed::Http1(Bytes::new())),
            Protocol::Http1AndH2c => self.sniff(&mut socket).await,
            Protocol::Tls(tls) => {
                // Boxed: the handshake's buffers are large, and this future lives as long as the connection.
                let Some((secured, handshake)) = Box::pin(self.tls_handshake(tls, socket)).await
                else {
                    return;
                };
                socket = secured;
                peer.server_name = handshake.server_name;
                match handshake.protocol {
                    NegotiatedProtocol::Http1 => Some(Sniffed::Http1(Bytes::new())),
                    // The preface has to follow ALPN all the same (RFC 9113, section 3.2).
                    NegotiatedProtocol::Http2 => {
                        self.sniff(&mut socket).await.filter(Sniffed::is_http2)
                    }
                }
            }
        };
        match sniffed {
            Some(Sniffed::Http1(first)) => self.serve_http1(socket, first, peer).await,
            Some(Sniffed::Http2(first)) => self.serve_http2(socket, first, peer).await,
            None => {}
        }
    }

    /// Bounds what precedes the first request: by the header timeout, and by the drain, which waits for no client
    /// that has sent nothing.
    async fn before_first_request<T>(&self, future: impl Future<Output = T>) -> Result<T, TooLate> {
        tokio::select! {
            output = timeout(self.settings.limits.header_timeout, future) => {
                output.map_err(|_elapsed| TooLate::HeaderTimeout)
            }
            () = drain_grace_elapsed(&self.tasks) => Err(TooLate::Draining),
        }
    }

    /// Returns `None` if the handshake failed or took too long.
    async fn tls_handshake(&self, tls: &Arc<Tls>, socket: Socket) -> Option<(Socket, Handshake)> {
        match self.before_first_request(tls.accept(socket)).await {
            Ok(Ok((socket, handshake))) => {
                self.metrics().tls_handshake(handshake.version, handshake.resumed);
                return Some((socket, handshake));
            }
            Ok(Err(error)) => {
                let reason = AbortReason::TlsHandshake;
                tracing::debug!(%error, reason = reason.as_str(), "TLS handshake failed");
                self.metrics().connection_aborted(reason);
            }
            Err(TooLate::HeaderTimeout) => {
                let reason = AbortReason::HeaderTimeout;
                tracing::debug!(reason = reason.as_str(), "TLS handshake timed out");
                self.metrics().connection_aborted(reason);
            }
            Err(TooLate::Draining) => {}
        }
        None
    }

    /// Returns `None` if the connection closed, or its time was over, before its protocol was known.
    async fn sniff(&self, socket: &mut Socket) -> Option<Sniffed> {
        self.before_first_request(sniff(socket)).await.ok()?.ok()
    }

    fn driver<'a>(&'a self, state: &'a ConnectionState, peer: &Peer) -> Driver<'a> {
        let Self { settings, tasks, .. } = self;
        Driver { settings, tasks, state, client: peer.address }
    }

    async fn serve_http1(self: &Arc<Self>, socket: Socket, first: Bytes, peer: Peer) {
        let state = Arc::new(ConnectionState::http1());
        let driver = self.driver(&state, &peer);
        let mut io = ClientIo::new(socket, first, Arc::clone(&state), self.pressure.clone());
        loop {
            let service = service_fn(|request| self.respond(request, &peer, &state));
            let connection = self.http1.serve_connection(TokioIo::new(io), service);
            let mut connection = Box::new(connection.with_upgrades());
            match driver.drive(Pin::new(&mut *connection)).await {
                Drive::Finished => return,
                Drive::Idle => {}
                Drive::BodyFailed => {
                    if let Some(parts) = connection.into_parts() {
                        // Boxed: this future lives as long as the connection, and few come here.
                        Box::pin(parts.io.into_inner().close_after_failed_body()).await;
                    }
                    return;
                }
            }
            // hyper frees its buffers with the connection; the next request gets a new one.
            let Some(parts) = connection.into_parts() else { return };
            let read = parts.read_buf;
            io = parts.io.into_inner();
            if read.is_empty() {
                // Empty as it is, it holds the buffer.
                drop(read);
                if !driver.wait_for_request(&mut io).await {
                    return;
                }
            } else {
                // hyper has read ahead, e.g. of a pipelined request (RFC 9112, section 9.3.2).
                io.unread(read);
            }
        }
    }

    async fn serve_http2(self: &Arc<Self>, socket: Socket, first: Bytes, peer: Peer) {
        let state = Arc::new(ConnectionState::http2());
        let io = ClientIo::new(socket, first, Arc::clone(&state), self.pressure.clone());
        let io = BatchIo::new(io);
        let service = service_fn(|request| self.respond(request, &peer, &state));
        let connection = self.http2.serve_connection(TokioIo::new(io.clone()), service);
        let mut connection = Box::new(Batched::new(connection, io));
        match self.driver(&state, &peer).drive(Pin::new(&mut *connection)).await {
            // A failed body resets its stream, not the connection.
            Drive::Finished | Drive::Idle | Drive::BodyFailed => {}
        }
    }

    /// Returns the future of one response. It owns what it needs, since HTTP/2 runs it as a task of its own.
    fn respond(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: &Peer,
        state: &Arc<ConnectionState>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + use<H> {
        let server = Arc::clone(self);
        let upload =
            if request.body().is_end_stream() { Upload::Complete } else { Upload::Pending };
        let in_flight = InFlight::start(state, upload);
        let version = request.version();
        let handler = Arc::clone(&self.handler);
        let responding = tasks::catch_call(|| handler.handle(request, peer.clone()));
        async move {
            let responded = match responding {
                Ok(responding) => pin!(tasks::catch(responding)).await,
                Err(failed) => Err(failed),
            };
            let mut response = responded.unwrap_or_else(|_panicked| internal_server_error());
            // HTTP/2 has no Connection field (RFC 9113, section 8.2.2): a GOAWAY announces the
            // shutdown.
            if server.tasks.is_shutdown_announced() && version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                // If the header map is full, the client notices when the connection closes.
                let _ = response.headers_mut().try_insert(header::CONNECTION, close);
            }
            // HTTP/1.0 has no chunked coding: the close of the connection ends a body of unknown length (RFC 9112,
            // section 6.3).
            if version < Version::HTTP_11 && response.body().size_hint().exact().is_none() {
                in_flight.connection().set_close_delimited();
            }
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                in_flight.connection().set_upgraded();
            }
            Ok(response.map(|body| ResponseBody::new(body, Stall::of_stream(), in_flight)))
        }
    }
}

/// Returns the response for a handler that panicked.
fn internal_server_error() -> Response<Body> {
    let mut response = Response::new(Body::full("Internal Server Error\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
