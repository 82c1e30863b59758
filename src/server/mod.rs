//! What listens: sockets, the accept loop, a connection's limits and clocks, the tasks and their drain.
//!
//! It takes a [`Handler`] and knows nothing of sessions, routes or upstreams.

mod accept;
mod address;
mod clocks;
mod connection;
mod connection_limit;
mod io;
mod listener;
mod proxy_header;
mod reloadable;
mod response_body;
mod streams;
mod tls;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::body::Body;
use crate::metrics::ListenerMetrics;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

pub use crate::tasks::{TaskFailed, TaskHandle, Tasks};
pub use accept::serve;
pub use address::{Address, InvalidAddress};
pub use connection_limit::ConnectionLimit;
pub use listener::{BoundListener, Inherited, bind};
pub use reloadable::Reloadable;
pub use tls::{Certificates, ServerName, Tls, TlsConfig, TlsError};

/// What answers the requests of a listener.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. The future is dropped where the client hangs up first, so work that must not be
    /// lost belongs in a task of its own. A panic in it costs this request only: the client gets a plain 500.
    fn handle(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>> + Send;
}

impl<F, R> Handler for F
where
    F: Fn(Request<Incoming>, Peer) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send,
{
    fn handle(
        &self,
        request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response<Body>> + Send {
        self(request, peer)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address the connection came from, an IPv4 one as such even on a listener for both, or
    /// that which its PROXY header names; `None` over a Unix socket without one.
    pub address: Option<SocketAddr>,
    /// The listener that it came to.
    pub listener: Arc<Address>,
    /// What that speaks, or what the PROXY header says that the client spoke.
    pub scheme: Scheme,
    /// The host that the client named in its TLS handshake; `None` without TLS or a name.
    pub server_name: Option<Arc<ServerName>>,
    /// Whether the client may be anybody although the address is a proxy's: its PROXY header says
    /// `UNKNOWN` or `LOCAL`.
    pub is_unknown: bool,
}

impl Peer {
    /// Creates the peer of a connection that was just accepted.
    fn new(address: Option<SocketAddr>, listener: Arc<Address>, scheme: Scheme) -> Self {
        Self { address, listener, scheme, server_name: None, is_unknown: false }
    }
}

/// What a listener speaks.
#[derive(Clone, Debug, Default)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    #[default]
    Http1,
    /// HTTP/1 and, of clients that begin with its preface, HTTP/2 in clear text.
    Http1AndH2c,
    /// HTTP/1 or HTTP/2 over TLS, as the client chooses.
    Tls(Arc<Tls>),
}

impl Protocol {
    /// How URLs write it.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Http1 | Self::Http1AndH2c => Scheme::Http,
            Self::Tls(_) => Scheme::Https,
        }
    }
}

/// How a listener is served.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What it speaks.
    pub protocol: Protocol,
    /// What a connection may take.
    pub limits: Limits,
    /// Who begins each connection with a PROXY header, which says for whom it is; nobody else does.
    pub proxy_header_from: Option<Trust>,
    /// Whether it leaves the last descriptors of the process to other listeners, and to the store.
    pub leaves_descriptors: bool,
    /// Where its connections are counted.
    pub metrics: ListenerMetrics,
}

/// What connections may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections, over all workers. The caller makes the [`ConnectionLimit`] of this size that [`serve`] takes.
    pub connections: usize,
    /// Open connections from one address; `None` is any number.
    pub connections_per_address: Option<usize>,
    /// For a request's head, from its first byte; also for the first byte of a new connection, and for
    /// the handshake of TLS.
    pub header_timeout: Duration,
    /// Bytes of a request's head, or of its trailers; more is answered with 431.
    pub header_bytes: usize,
    /// Fields of a request's head; more is answered with 431.
    pub headers: usize,
    /// How long a client may take none of the bytes that wait for it.
    pub body_idle_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub idle_timeout: Duration,
    /// How long before a drain it is said that there will be one.
    pub predrain: Duration,
    /// How long a drain waits for requests in flight.
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
