//! A connection of HTTP/2 to an upstream: it carries many requests at a time.

use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Uri, Version, uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::connection::{Outgoing, RESPONSE_HEAD_BYTES, drive};
use super::error::{Error, ErrorKind};
use crate::net::scheme::Scheme;
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// How often an upstream is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// A connection of HTTP/2. Dropping it closes it, whatever it carries.
#[derive(Debug)]
pub(super) struct Carrier {
    sender: http2::SendRequest<Outgoing>,
    scheme: Scheme,
    task: AbortHandle,
}

impl Carrier {
    /// When the drain begins, the connection's task calls `drain` once.
    pub(super) async fn begin(
        socket: Socket,
        scheme: Scheme,
        tasks: &Tasks,
        drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let head_bytes = u32::try_from(RESPONSE_HEAD_BYTES).unwrap_or(u32::MAX);
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .max_header_list_size(head_bytes)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Error::with(ErrorKind::Connect, error))?;
        let task = tasks.run(drive(connection, tasks.sibling(), drain));
        Ok(Self { sender, scheme, task: task.abort_handle() })
    }

    /// Whether it takes another request.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request; where nothing of it was written, the error gives it back.
    pub(super) fn send(
        &self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>> + Send + use<>
    {
        self.sender.clone().try_send_request(as_http2(request, self.scheme))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Host becomes the authority, and what says how HTTP/1.1 frames it goes (RFC 9113, sections 8.2.2 and
/// 8.3.1). `TE: trailers` stays.
fn as_http2(request: Request<Outgoing>, scheme: Scheme) -> Request<Outgoing> {
    let (mut parts, body) = request.into_parts();
    parts.version = Version::HTTP_2;
    let host = parts.headers.remove(HOST);
    let authority = host.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    let mut target = parts.uri.into_parts();
    target.scheme = uri::Scheme::try_from(scheme.as_str()).ok();
    target.authority = Some(authority.unwrap_or_else(|| uri::Authority::from_static("localhost")));
    parts.uri = Uri::from_parts(target).unwrap_or_default();
    parts.headers.remove(CONNECTION);
    parts.headers.remove(TRANSFER_ENCODING);
    Request::from_parts(parts, body)
}

/// A request that was not sent, as it was before.
pub(super) fn as_prepared(request: Request<Outgoing>) -> Request<Outgoing> {
    let (mut parts, body) = request.into_parts();
    parts.version = Version::HTTP_11;
    if let Some(host) =
        parts.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        parts.headers.insert(HOST, host);
    }
    let path = parts.uri.into_parts().path_and_query;
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    Request::from_parts(parts, body)
}
