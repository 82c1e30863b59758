//! An HTTP/2 connection to an upstream. It carries many requests at a time.

use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Uri, Version, uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use super::drive::{MAX_HEAD_BYTES, drive};
use super::error::{Error, ErrorKind};
use super::request_body::RequestBody;
use crate::net::scheme::Scheme;
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Interval of pings, and the time that an upstream has to answer one.
const PING: Duration = Duration::from_secs(20);

/// An HTTP/2 connection. Dropping it aborts its requests.
#[derive(Debug)]
pub(super) struct Http2Connection {
    sender: http2::SendRequest<RequestBody>,
    scheme: Scheme,
    task: AbortHandle,
}

impl Http2Connection {
    /// Starts HTTP/2 on `socket`. When the drain begins, the connection's task calls `on_drain` once.
    pub(super) async fn start(
        socket: Socket,
        scheme: Scheme,
        tasks: &Tasks,
        on_drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let head_bytes = u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX);
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .max_header_list_size(head_bytes)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Error::with(ErrorKind::Connect, error))?;
        let task = tasks.run(drive(connection, tasks.sibling(), on_drain));
        Ok(Self { sender, scheme, task: task.abort_handle() })
    }

    /// Returns whether it accepts another request.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request. If nothing of it was written, the error contains it.
    pub(super) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>
    + Send
    + use<> {
        self.sender.clone().try_send_request(into_http2(request, self.scheme))
    }
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Converts a request from HTTP/1.1: Host becomes the authority, and connection-specific fields are removed (RFC 9113,
/// sections 8.2.2 and 8.3.1). `TE: trailers` stays.
fn into_http2(request: Request<RequestBody>, scheme: Scheme) -> Request<RequestBody> {
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

/// Converts a request that was not sent back to HTTP/1.1, since the next connection may speak that.
pub(super) fn into_http1(request: Request<RequestBody>) -> Request<RequestBody> {
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
