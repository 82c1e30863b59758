//! The body of a response on its way to the client, and the request in flight that lasts as long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::clocks::Clocks;
use super::streams::Stall;
use crate::body::{Body, BodyError, End};

/// A request in flight: from its head to the end of its response, or to where either is dropped.
pub(super) struct InFlight(Arc<Clocks>);

impl InFlight {
    pub(super) fn begin(clocks: &Arc<Clocks>, is_whole: bool) -> Self {
        clocks.begin(is_whole);
        Self(Arc::clone(clocks))
    }

    pub(super) fn clocks(&self) -> &Clocks {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// A response's body; hyper drops it as soon as it has its end.
///
/// An error of the body is held back until the head, and what came of the body, was written to the client: hyper
/// drops what it has buffered of a response as soon as its body fails.
pub(super) struct Tail {
    body: Body,
    stall: Option<Arc<Stall>>,
    held: Option<Held>,
    in_flight: InFlight,
}

/// An error of the body that waits for what was written before it.
struct Held {
    error: BodyError,
    /// Flushes of the connection until then.
    flushes: u64,
}

impl Tail {
    /// Wraps the body of the response to a request in flight; `stall` is that of its stream.
    pub(super) fn new(body: Body, stall: Option<Arc<Stall>>, in_flight: InFlight) -> Self {
        if let Some(stall) = &stall {
            stall.begin();
        }
        Self { body, stall, held: None, in_flight }
    }

    fn hold(&mut self, error: BodyError, cx: &Context<'_>) {
        self.held = Some(Held { error, flushes: self.in_flight.clocks().flushes() });
        // The connection's turn: in HTTP/2 it was woken before this stream is.
        cx.waker().wake_by_ref();
    }

    fn poll_held(&mut self, held: Held, cx: &Context<'_>) -> Poll<BodyError> {
        let clocks = self.in_flight.clocks();
        let is_written = clocks.flushes() != held.flushes;
        // A stream whose frames were written before is not flushed again.
        let has_nothing_to_write = self.stall.is_some() && !clocks.is_blocked();
        if is_written || has_nothing_to_write {
            return Poll::Ready(held.error);
        }
        clocks.wake_at_flush(cx.waker());
        self.held = Some(held);
        Poll::Pending
    }
}

impl http_body::Body for Tail {
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

impl Drop for Tail {
    fn drop(&mut self) {
        let stalled = self.stall.as_ref().is_some_and(|stall| stall.has_lasted());
        let cut = self.in_flight.clocks().cut_for();
        self.body.abandon(if stalled { End::Stalled } else { cut.unwrap_or(End::Dropped) });
    }
}
