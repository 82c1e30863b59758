//! HTTP server: listening sockets, TLS, the accept loop, and connections with their limits.
//!
//! It serves any [`Handler`] and knows nothing of sessions, routes or upstreams.

mod accept;
mod address;
mod batch;
mod builder;
mod connection;
mod connection_limit;
mod drive;
mod io;
mod listener;
mod proxy_header;
mod reloadable;
mod response_body;
mod sniff;
mod state;
mod streams;
mod tls;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::body::Body;
use crate::metrics::ListenerMetrics;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

pub use crate::tasks::Tasks;
pub use accept::serve;
pub use address::Address;
pub use connection_limit::ConnectionLimit;
pub(crate) use listener::Inherited;
pub use listener::{BoundListener, bind};
pub(crate) use reloadable::Reloadable;
pub(crate) use tls::Certificates;
pub(crate) use tls::{ServerName, Tls, TlsConfig, TlsError};

/// An HTTP service.
pub trait Handler: Send + Sync + 'static {
    /// Returns the response to a request. The future is dropped if the client disconnects first, so work that must not be
    /// lost belongs in a task of its own. A panic affects this request only: the client gets a plain 500.
    ///
    /// The future is in a box of its own, since hyper stores it inline for as long as the connection, or the stream, lasts.
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding;
}

/// The future response of a [`Handler`].
pub type Responding = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

impl<F, R> Handler for F
where
    F: Fn(Request<Incoming>, Peer) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        Box::pin(self(request, peer))
    }
}

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The client's address: from the PROXY header if there is one, and otherwise the socket's; `None` over a Unix socket.
    /// An IPv4-mapped IPv6 address is converted to IPv4.
    pub(crate) address: Option<SocketAddr>,
    /// The listener that accepted the connection.
    pub(crate) listener: Arc<Address>,
    /// The scheme that the client used, according to the PROXY header if that has it, and otherwise the listener's.
    pub(crate) scheme: Scheme,
    /// The server name in the client's TLS handshake, if any (SNI).
    pub(crate) server_name: Option<Arc<ServerName>>,
    /// Whether the address is that of a proxy, whose PROXY header says nothing of the client (`UNKNOWN`, `LOCAL`).
    pub(crate) is_unknown: bool,
}

impl Peer {
    /// Creates the peer of a connection that was just accepted.
    fn new(address: Option<SocketAddr>, listener: Arc<Address>, scheme: Scheme) -> Self {
        Self { address, listener, scheme, server_name: None, is_unknown: false }
    }
}

/// Protocols of a listener.
#[derive(Clone, Debug, Default)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    #[default]
    Http1,
    /// HTTP/1, or HTTP/2 in cleartext with prior knowledge.
    Http1AndH2c,
    /// HTTP/1 or HTTP/2 over TLS, negotiated by ALPN.
    Tls(Arc<Tls>),
}

impl Protocol {
    /// Returns the scheme of the listener's URLs.
    pub(crate) fn scheme(&self) -> Scheme {
        match self {
            Self::Http1 | Self::Http1AndH2c => Scheme::Http,
            Self::Tls(_) => Scheme::Https,
        }
    }
}

/// Settings of a listener.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Protocols that it accepts.
    pub protocol: Protocol,
    /// Limits of its connections.
    pub limits: Limits,
    /// Proxies whose connections begin with a PROXY header. Connections of other peers have none.
    pub proxy_header_from: Option<Trust>,
    /// Whether it stops accepting while the last descriptors of the process are left for other listeners and the store.
    pub leaves_descriptors: bool,
    /// Metrics of its connections.
    pub metrics: ListenerMetrics,
}

/// Limits of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of all workers. The caller creates the [`ConnectionLimit`] of this size.
    pub connections: usize,
    /// Open connections per client address; `None` is no limit.
    pub connections_per_address: Option<usize>,
    /// Time for a request's head, from its first byte; also for the first byte of a connection, the TLS handshake and the
    /// PROXY header.
    pub header_timeout: Duration,
    /// Bytes of a request's head, or of its trailers. A larger head is refused with 431.
    pub header_bytes: usize,
    /// Fields of a request's head. One with more is refused with 431.
    pub headers: usize,
    /// Time for which a client may leave its response unread.
    pub body_idle_timeout: Duration,
    /// Time for which a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// Time between the announcement of a shutdown and the drain.
    pub predrain: Duration,
    /// Time that a drain gives requests in flight to finish.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: None,
            header_timeout: Duration::from_secs(10),
            header_bytes: 32 * 1024,
            headers: 100,
            body_idle_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(1),
            predrain: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
