//! One attempt to send a request on a connection.

use std::pin::{Pin, pin};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::{Instant, timeout_at};

use super::connection::Connection;
use super::error::{Error, ErrorKind};
use super::framing;
use super::http2::into_http1;
use super::outgoing::{Outgoing, Upgrade};
use super::request_body::{Progress, RequestBody};
use super::retry::Retry;
use crate::body::{Body, End, Received};

/// Bytes of a response's body that are buffered, so that its connection is free while the client is slow.
const BUFFERED_BYTES: u64 = 2048;

/// Why an attempt has failed.
pub(super) enum Failure {
    /// Nothing of the request was written; it can be sent again.
    Unsent(hyper::Error),
    /// The connection closed before a byte of the response.
    Closed(Error),
    Failed(Error),
}

/// What an attempt needs to know of its pool.
#[derive(Debug)]
pub(super) struct Settings {
    /// The Host of requests that have none.
    pub(super) host: HeaderValue,
    /// Time for the head of the response.
    pub(super) response_timeout: Duration,
    /// For the body of the response; `None` is no timeout.
    pub(super) stream_idle_timeout: Option<Duration>,
}

/// Error of a send.
enum NoResponse {
    /// Nothing of the request was written.
    Unsent(hyper::Error),
    /// Part of it may have been written.
    Lost(hyper::Error),
}

impl NoResponse {
    /// Classifies an error. If nothing of the request was written, returns it to `outgoing`, converted to HTTP/1.
    fn classify(
        mut failed: TrySendError<Request<RequestBody>>,
        outgoing: &mut Outgoing,
        to_http1: impl FnOnce(Request<RequestBody>) -> Request<RequestBody>,
    ) -> Self {
        match failed.take_message() {
            Some(request) => {
                outgoing.put_back(to_http1(request));
                Self::Unsent(failed.into_error())
            }
            None => Self::Lost(failed.into_error()),
        }
    }
}

/// Sends `outgoing` on `connection`. Once the response's body was read to its end, `keep` receives the connection.
pub(super) async fn attempt(
    mut connection: Connection,
    outgoing: &mut Outgoing,
    retry: Retry,
    settings: &Settings,
    keep: impl FnOnce(Connection) + Send + 'static,
) -> Result<Response<Body>, Failure> {
    let progress = outgoing.progress();
    let progress = progress.as_deref();
    let timeout = settings.response_timeout;
    // The request is large: it is passed on directly, so that this future does not store it a second time.
    let sent = match &mut connection {
        Connection::Http1(connection) => {
            let sending = pin!(connection.send(outgoing.take(&settings.host, retry)));
            let sent = within_timeout(sending, timeout, progress).await;
            sent.map(|sent| {
                sent.map_err(|failed| NoResponse::classify(failed, outgoing, |http1| http1))
            })
        }
        Connection::Http2(connection) => {
            let sending = pin!(connection.send(outgoing.take(&settings.host, retry)));
            let sent = within_timeout(sending, timeout, progress).await;
            sent.map(|sent| {
                sent.map_err(|failed| NoResponse::classify(failed, outgoing, into_http1))
            })
        }
    };
    let response = match sent {
        Ok(Ok(response)) => response,
        Ok(Err(NoResponse::Unsent(error))) => return Err(Failure::Unsent(error)),
        Ok(Err(NoResponse::Lost(error))) => return Err(lost(&connection, error)),
        Err(elapsed) => return Err(Failure::Failed(elapsed)),
    };
    receive(response, connection, outgoing.upgrade(), progress, settings, keep)
}

/// Returns the response of an upstream, which releases its connection at its end.
fn receive(
    mut response: Response<Incoming>,
    connection: Connection,
    upgrade: Upgrade,
    progress: Option<&Progress>,
    settings: &Settings,
    keep: impl FnOnce(Connection) + Send + 'static,
) -> Result<Response<Body>, Failure> {
    if let Err(error) = framing::settle(response.headers_mut()) {
        return Err(Failure::Failed(Error::with(ErrorKind::Response, error)));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch_protocols(response, connection, upgrade);
    }
    let release = move |end| {
        // After an early response to a request that is still being sent, the connection is not ready.
        if end == End::Complete && connection.is_ready() {
            keep(connection);
        }
    };
    let mut response = response.map(|incoming| {
        match Body::receive(incoming, BUFFERED_BYTES, settings.stream_idle_timeout) {
            Received::Complete(body) => {
                release(End::Complete);
                body
            }
            Received::Partly(body) => match progress {
                Some(progress) => body.with_response_activity(progress.activity()),
                None => body,
            }
            .with_guard(release),
        }
    });
    // The version is that of this hop (RFC 9110, section 2.5). Passed on, 1.0 would close the client's connection.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

fn switch_protocols(
    response: Response<Incoming>,
    connection: Connection,
    upgrade: Upgrade,
) -> Result<Response<Body>, Failure> {
    match upgrade {
        Upgrade::Requested => {
            connection.release();
            Ok(response.map(|_nothing| Body::empty()))
        }
        Upgrade::None => {
            // RFC 9110, section 7.8, allows only a protocol that the request has named.
            let cause = "the upstream switched protocols without being asked to";
            Err(Failure::Failed(Error::with(ErrorKind::Response, cause)))
        }
    }
}

fn lost(connection: &Connection, error: hyper::Error) -> Failure {
    let error = Error::of_exchange(error);
    // Only before the first byte of a response may the request be sent again; see `retry`.
    if error.kind() == ErrorKind::Response && !connection.has_received() {
        Failure::Closed(error)
    } else {
        Failure::Failed(error)
    }
}

/// Waits for the head of a response. `timeout` counts only while the upstream has data to read or a response to send; a
/// slow client is bounded by the timeout of its body.
async fn within_timeout<T>(
    mut sent: Pin<&mut impl Future<Output = T>>,
    timeout: Duration,
    progress: Option<&Progress>,
) -> Result<T, Error> {
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
