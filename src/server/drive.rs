//! Drives a connection of hyper: until it closes, misses a deadline, is idle, or the drain is over.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::time::sleep;

use super::batch::{BatchIo, Batched};
use super::io::ClientIo;
use super::response_body::ResponseBody;
use super::state::{ConnectionState, Timeout};
use super::streams::Streams;
use super::{Limits, Settings};
use crate::body::End;
use crate::log::ACCESS;
use crate::metrics::AbortReason;
use crate::tasks::Tasks;

/// Time that a client without requests in flight has to close after a GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that a drain gives new connections to send their first request.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Idle time after which an HTTP/1 connection releases its buffers: 16 KiB, which hyper holds as long as it
/// has the socket.
const RELEASE_BUFFERS_AFTER: Duration = Duration::from_millis(50);

/// Outcome of driving a connection.
pub(super) enum Drive {
    /// It was closed, or is to be closed now.
    Finished,
    /// It is idle and may release its buffers.
    Idle,
    /// The body of a response failed.
    BodyFailed,
}

/// The connections of hyper, which have no trait in common.
pub(super) trait Connection: Future<Output = hyper::Result<()>> {
    /// Whether the protocol can announce a shutdown (GOAWAY), so that the client loses no request that it sends
    /// in the meantime.
    const ANNOUNCES_SHUTDOWN: bool;

    /// Closes the connection once the requests in flight are answered.
    fn shut_down(self: Pin<&mut Self>);
}

impl<S, F> Connection for http1::UpgradeableConnection<TokioIo<ClientIo>, S>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<ResponseBody>,
            Error = Infallible,
            Future = F,
        >,
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    const ANNOUNCES_SHUTDOWN: bool = false;

    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, F> Connection for http2::Connection<TokioIo<BatchIo>, S, Streams>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<ResponseBody>,
            Error = Infallible,
            Future = F,
        >,
    F: Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + 'static,
{
    const ANNOUNCES_SHUTDOWN: bool = true;

    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<C: Connection + Unpin> Connection for Batched<C> {
    const ANNOUNCES_SHUTDOWN: bool = C::ANNOUNCES_SHUTDOWN;

    fn shut_down(mut self: Pin<&mut Self>) {
        Pin::new(self.connection_mut()).shut_down();
    }
}

/// What bounds one connection.
pub(super) struct Driver<'a> {
    pub(super) settings: &'a Settings,
    pub(super) tasks: &'a Tasks,
    pub(super) state: &'a ConnectionState,
    pub(super) client: Option<SocketAddr>,
}

impl Driver<'_> {
    /// Runs a connection until it closes, misses a deadline, is drained, or has been idle for a while.
    pub(super) async fn drive<C: Connection>(&self, mut connection: Pin<&mut C>) -> Drive {
        let limits = &self.settings.limits;
        let mut expired = pin!(self.state.expired(limits));
        let drain_timeout = tokio::select! {
            biased;
            result = connection.as_mut() => return self.finished(result),
            expired = expired.as_mut() => {
                self.record_timeout(expired);
                // An idle HTTP/2 connection gets a GOAWAY first: it says that a request which
                // crosses it was not processed (RFC 9113, section 6.8).
                if !(C::ANNOUNCES_SHUTDOWN && expired == Timeout::Idle) {
                    return Drive::Finished;
                }
                None
            }
            () = self.state.idle_for(RELEASE_BUFFERS_AFTER), if !C::ANNOUNCES_SHUTDOWN => {
                return Drive::Idle;
            }
            () = self.tasks.draining() => Some(limits.drain_timeout),
        };
        if !C::ANNOUNCES_SHUTDOWN && self.state.is_fresh() {
            // A request may be on its way. Its response will carry `Connection: close`.
            tokio::select! {
                result = connection.as_mut() => return self.finished(result),
                () = sleep(FIRST_REQUEST_GRACE) => {}
            }
        }
        // HTTP/1 cannot announce it: an idle connection is closed (RFC 9112, section 9.5).
        if !C::ANNOUNCES_SHUTDOWN && self.state.is_idle() {
            return Drive::Finished;
        }
        // hyper requires that a connection was polled before it is shut down; the select above did.
        connection.as_mut().shut_down();
        self.state.shutdown_announced();
        // After the GOAWAY, the idle timeout is the time that the client has to close.
        let goaway = Limits { idle_timeout: GOAWAY_TIMEOUT, ..limits.clone() };
        tokio::select! {
            // In this order, so that a connection that ends at a deadline does not count as
            // aborted.
            biased;
            result = connection => return self.finished(result),
            expired = self.state.expired(&goaway) => self.record_timeout(expired),
            () = sleep_or_pending(drain_timeout) => {
                let reason = AbortReason::Drain;
                tracing::warn!(reason = reason.as_str(), "connection aborted at the drain deadline");
                self.settings.metrics.connection_aborted(reason);
                self.state.abort(End::Drained);
                self.tasks.record_aborted();
            }
        }
        Drive::Finished
    }

    /// Waits for the next request of a connection that has released its buffers. Returns `false` if the
    /// connection is to be closed instead.
    pub(super) async fn wait_for_request(&self, io: &mut ClientIo) -> bool {
        tokio::select! {
            readable = io.wait_readable() => readable,
            expired = self.state.expired(&self.settings.limits) => {
                self.record_timeout(expired);
                false
            }
            () = self.tasks.draining() => false,
        }
    }

    fn record_timeout(&self, expired: Timeout) {
        let reason = match expired {
            Timeout::Head => Some(AbortReason::HeaderTimeout),
            Timeout::Write => Some(AbortReason::WriteTimeout),
            // The usual end of a connection that is kept alive.
            Timeout::Idle => None,
        };
        let word = reason.map_or("idle_timeout", AbortReason::as_str);
        tracing::debug!(reason = word, "connection timed out");
        if let Some(reason) = reason {
            self.settings.metrics.connection_aborted(reason);
        }
        if let Timeout::Write = expired {
            self.state.abort(End::Stalled);
        }
    }

    /// Logs and counts the requests that hyper refused before there was one to handle. All else was logged with
    /// the request that it concerns.
    fn finished(&self, result: hyper::Result<()>) -> Drive {
        let Err(error) = result else { return Drive::Finished };
        let source = &error as &dyn std::error::Error;
        tracing::debug!(error = source, "connection ended with an error");
        let violates_http2 = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref().is_some_and(h2::Error::is_library)
        };
        let reason = if error.is_parse_too_large() {
            AbortReason::TooLarge
        } else if error.is_parse() {
            AbortReason::Malformed
        } else if source.source().is_some_and(violates_http2) {
            AbortReason::Http2
        } else if error.is_user() {
            return Drive::BodyFailed;
        } else {
            return Drive::Finished;
        };
        self.settings.metrics.connection_aborted(reason);
        let client = self.client.map(|client| tracing::field::display(client.ip()));
        tracing::info!(target: ACCESS, client, reason = reason.as_str(), error = source, "refused");
        Drive::Finished
    }
}

/// Completes when the drain has lasted so long that no client's first request is still on its way.
pub(super) async fn drain_grace_elapsed(tasks: &Tasks) {
    tasks.draining().await;
    sleep(FIRST_REQUEST_GRACE).await;
}

/// Sleeps for `duration`; `None` never completes.
async fn sleep_or_pending(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => pending().await,
    }
}
