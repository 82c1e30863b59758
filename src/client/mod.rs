//! Upstream connections: pooling, TLS, deadlines, balancing and health checks.
//!
//! It sends HTTP/1.1 or HTTP/2 over TCP, TLS or Unix sockets, and knows nothing of sessions or routes.

mod attempt;
mod balancer;
mod connection;
mod dial;
mod drive;
mod error;
mod framing;
mod health;
mod http1;
mod http2;
mod io;
mod kept;
mod outgoing;
mod pool;
mod reaper;
mod request_body;
mod retry;
mod target;
mod tls;

#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};

use crate::body::Body;
use crate::tasks::Tasks;

pub(crate) use balancer::Balancer;
pub use error::Error;
pub(crate) use error::ErrorKind;
pub(crate) use health::Health;
pub(crate) use health::HealthCheck;
pub(crate) use outgoing::{Outgoing, Visited};
pub use pool::{Config, Pool};
pub(crate) use target::InvalidTarget;
pub use target::Target;
pub(crate) use tls::{ServerTrust, Tls, TlsConfig, TlsError, UpstreamProtocol};

/// Sends a GET request on a new connection and reads the whole response, at most `limit` bytes, within `deadline`.
///
/// # Errors
/// There is no response, or its body is too large or failed; see [`ErrorKind`].
pub async fn get(
    target: &Target,
    path: PathAndQuery,
    tasks: &Tasks,
    limit: usize,
    deadline: Duration,
) -> Result<Response<Bytes>, Error> {
    let pool = Pool::new(target.clone(), Config { max_idle: 0, ..Config::default() });
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from(path);
    pool.fetch(request, tasks, limit, deadline).await
}
