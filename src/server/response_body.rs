//! The body of a response on its way to the client, and the request in flight that lasts as long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::state::{ConnectionState, Upload};
use super::streams::Stall;
use crate::body::{Body, BodyError, End};

/// A request in flight: from its head to the end of its response, or until either is dropped.
pub(super) struct InFlight(Arc<ConnectionState>);

impl InFlight {
    pub(super) fn start(connection: &Arc<ConnectionState>, upload: Upload) -> Self {
        connection.request_started(upload);
        Self(Arc::clone(connection))
    }

    pub(super) fn connection(&self) -> &ConnectionState {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.request_finished();
    }
}

/// A response's body; hyper drops it as soon as it has ended.
///
/// An error of the body is held back until the head, and the body so far, were written to the client: hyper
/// drops what it has buffered of a response as soon as its body fails.
pub(super) struct ResponseBody {
    body: Body,
    stall: Option<Arc<Stall>>,
    held: Option<HeldError>,
    in_flight: InFlight,
}

/// An error of the body that waits until what precedes it is written.
struct HeldError {
    error: BodyError,
    /// Flushes of the connection at the time of the error.
    flushes: u64,
}

impl ResponseBody {
    /// Wraps the body of the response to a request in flight; `stall` is that of its HTTP/2 stream.
    pub(super) fn new(body: Body, stall: Option<Arc<Stall>>, in_flight: InFlight) -> Self {
        if let Some(stall) = &stall {
            stall.begin();
        }
        Self { body, stall, held: None, in_flight }
    }

    fn hold(&mut self, error: BodyError, cx: &Context<'_>) {
        self.held = Some(HeldError { error, flushes: self.in_flight.connection().flushes() });
        // Lets the connection's task run first. In HTTP/2 it was woken before this stream.
        cx.waker().wake_by_ref();
    }

    fn poll_held(&mut self, held: HeldError, cx: &Context<'_>) -> Poll<BodyError> {
        let connection = self.in_flight.connection();
        let is_written = connection.flushes() != held.flushes;
        // A stream whose frames were written earlier causes no further flush.
        let has_nothing_to_write = self.stall.is_some() && !connection.is_blocked();
        if is_written || has_nothing_to_write {
            return Poll::Ready(held.error);
        }
        connection.wake_at_flush(cx.waker());
        self.held = Some(held);
        Poll::Pending
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(held) = self.held.take() {
            return self.poll_held(held, cx).map(|error| Some(Err(error)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(stall) = &self.stall {
            match &polled {
                Poll::Ready(Some(Ok(_))) => stall.begin(),
                Poll::Ready(None | Some(Err(_))) | Poll::Pending => stall.end(),
            }
        }
        match polled {
            Poll::Ready(Some(Err(error))) => {
                self.hold(error, cx);
                Poll::Pending
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let stalled = self.stall.as_ref().is_some_and(|stall| stall.has_timed_out());
        let aborted = self.in_flight.connection().abort_reason();
        self.body.abandon(if stalled { End::Stalled } else { aborted.unwrap_or(End::Dropped) });
    }
}
