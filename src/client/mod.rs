//! The one way out: connections to upstreams, kept for the next request, each with its deadlines.
//!
//! It speaks HTTP/1.1 or HTTP/2 over TCP, with TLS or without, and Unix sockets, and knows nothing of sessions or
//! routes.

mod balancer;
mod carrier;
mod connection;
mod error;
mod framing;
mod health;
mod pool;
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

pub use balancer::Balancer;
pub use error::{Error, ErrorKind};
pub use health::{Health, HealthCheck};
pub use pool::{Config, Pool};
pub use target::{InvalidTarget, Target};
pub use tls::{ServerTrust, Tls, TlsConfig, TlsError, UpstreamProtocol};

/// One GET on a connection of its own: the whole response, of at most `limit` bytes, within `deadline`.
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
