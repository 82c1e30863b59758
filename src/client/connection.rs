//! A connection to an upstream, of either protocol.

use std::sync::Arc;

use tokio::time::timeout;

use super::dial::DialTarget;
use super::error::{Error, ErrorKind};
use super::http1::Http1Connection;
use super::http2::Http2Connection;
use super::tls::NegotiatedProtocol;
use crate::metrics::UpstreamMetrics;
use crate::tasks::Tasks;

/// A connection on which a request is sent.
#[derive(Debug)]
pub(super) enum Connection {
    /// For this request alone.
    Http1(Http1Connection),
    /// Shared with other requests.
    Http2(Arc<Http2Connection>),
}

impl Connection {
    /// Opens a connection. When the drain begins, the connection's task calls `on_drain` once.
    pub(super) async fn open(
        to: DialTarget<'_>,
        metrics: &UpstreamMetrics,
        tasks: &Tasks,
        on_drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let (socket, protocol) = to.dial().await.inspect_err(|_| metrics.connect_failed())?;
        let open = metrics.connection_opened();
        // The connection's task owns this until it ends, or the drain begins.
        let on_drain = move || {
            drop(open);
            on_drain();
        };
        Ok(match protocol {
            NegotiatedProtocol::Http1 => {
                Self::Http1(Http1Connection::start(socket, tasks, on_drain).await?)
            }
            NegotiatedProtocol::Http2 => {
                let started = Http2Connection::start(socket, to.target.scheme(), tasks, on_drain);
                let started = timeout(to.timeout, started).await;
                let too_late = |elapsed| Error::with(ErrorKind::ConnectTimeout, elapsed);
                Self::Http2(Arc::new(started.map_err(too_late)??))
            }
        })
    }

    /// Leaves the connection to the upgrade that its response has started.
    pub(super) fn release(self) {
        match self {
            Self::Http1(connection) => connection.release(),
            // HTTP/2 has no upgrade (RFC 9113, section 8.6).
            Self::Http2(_) => {}
        }
    }

    /// Returns whether a byte of the response has arrived. For HTTP/2 this is not known, and `true`, so that its requests are
    /// never repeated.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.has_received(),
            Self::Http2(_) => true,
        }
    }

    /// Returns whether it accepts another request.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_ready(),
            Self::Http2(connection) => connection.is_open(),
        }
    }
}
