//! One attempt to send a request on a connection.

use std::pin::pin;
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::connection::{Connection, NoResponse};
use super::error::{Error, ErrorKind};
use super::framing;
use super::request_body::{Progress, RequestBody};
use crate::body::{Body, End};

/// Bytes of a response's body that are buffered, so that its connection is free while the client is slow.
const BUFFERED_BYTES: u64 = 2048;

pub(super) enum Attempt {
    Response(Response<Body>),
    /// Nothing of the request was written.
    Unsent(Request<RequestBody>, hyper::Error),
    /// The connection closed before a byte of the response.
    Closed(Error),
    Failed(Error),
}

/// Whether a request asks for an upgrade to another protocol, such as WebSocket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    Requested,
    None,
}

impl Upgrade {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::UPGRADE) { Self::Requested } else { Self::None }
    }
}

/// Timeouts of an attempt.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) response: Duration,
    /// For the body of the response; `None` is no timeout.
    pub(super) stream_idle: Option<Duration>,
}

/// Sends `request` on `connection`. Once the response's body was read to its end, `keep` receives the connection.
pub(super) async fn attempt(
    mut connection: Connection,
    request: Request<RequestBody>,
    timeouts: Timeouts,
    keep: impl FnOnce(Connection) + Send + 'static,
) -> Attempt {
    let progress = request.body().progress();
    let progress = progress.as_deref();
    let upgrade = Upgrade::of(request.headers());
    let sent = within_timeout(connection.send(request), timeouts.response, progress).await;
    let mut response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(NoResponse { unsent: Some(request), error })) => {
            return Attempt::Unsent(request, error);
        }
        Ok(Err(NoResponse { unsent: None, error })) => return failed(&connection, error),
        Err(elapsed) => return Attempt::Failed(elapsed),
    };
    if let Err(error) = framing::settle(response.headers_mut()) {
        return Attempt::Failed(Error::with(ErrorKind::Response, error));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch_protocols(response, connection, upgrade);
    }
    let mut response = response.map(|incoming| {
        let mut body = Body::streaming(incoming, timeouts.stream_idle);
        if let Some(progress) = progress {
            body = body.with_response_activity(progress.activity());
        }
        body.with_guard(move |end| {
            // After an early response to a request that is still being sent, the connection is not ready.
            if end == End::Complete && connection.is_ready() {
                keep(connection);
            }
        })
        .buffered(BUFFERED_BYTES)
    });
    // The version is that of this hop (RFC 9110, section 2.5). Passed on, 1.0 would close the client's connection.
    *response.version_mut() = Version::HTTP_11;
    Attempt::Response(response)
}

fn switch_protocols(
    response: Response<Incoming>,
    connection: Connection,
    upgrade: Upgrade,
) -> Attempt {
    match upgrade {
        Upgrade::Requested => {
            connection.release();
            Attempt::Response(response.map(|_nothing| Body::empty()))
        }
        Upgrade::None => {
            // RFC 9110, section 7.8, allows only a protocol that the request has named.
            let cause = "the upstream switched protocols without being asked to";
            Attempt::Failed(Error::with(ErrorKind::Response, cause))
        }
    }
}

fn failed(connection: &Connection, error: hyper::Error) -> Attempt {
    let error = Error::of_exchange(error);
    // Only before the first byte of a response may the request be sent again; see `retry`.
    if error.kind() == ErrorKind::Response && !connection.has_received() {
        Attempt::Closed(error)
    } else {
        Attempt::Failed(error)
    }
}

/// Waits for the head of a response. While the client sends its request, the timeout of that body holds; `timeout`
/// bounds how long the upstream then takes.
async fn within_timeout<T>(
    sent: impl Future<Output = T>,
    timeout: Duration,
    progress: Option<&Progress>,
) -> Result<T, Error> {
    let mut sent = pin!(sent);
    let mut deadline = Instant::now() + timeout;
    loop {
        let elapsed = match timeout_at(deadline, sent.as_mut()).await {
            Ok(outcome) => return Ok(outcome),
            Err(elapsed) => elapsed,
        };
        let now = Instant::now();
        deadline = match progress {
            // While the upstream waits for the client, its own time has not begun.
            Some(progress) => progress.upstream_since().unwrap_or(now) + timeout,
            None => now,
        };
        if deadline <= now {
            return Err(Error::with(ErrorKind::ResponseTimeout, elapsed));
        }
    }
}
