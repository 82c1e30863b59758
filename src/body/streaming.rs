//! A body that is read from a connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::end::BodyError;
use super::idle::{Activity, IdleTimeout};

/// A body that is read from a connection, and what bounds it.
pub(super) struct Streaming {
    incoming: Incoming,
    idle: Option<IdleTimeout>,
    /// Bytes of data that were received.
    received: u64,
    /// Bytes left of the limit.
    remaining: Option<u64>,
    trailers: Option<TrailerFilter>,
    interrupt: Option<oneshot::Receiver<()>>,
    /// Result of a poll that was not returned yet.
    peeked: Option<Polled>,
    remainder: Option<Remainder>,
}

pub(super) type Polled = Option<Result<Frame<Bytes>, hyper::Error>>;

type TrailerFilter = Box<dyn Fn(&mut HeaderMap) + Send>;

type Remainder = Box<dyn FnOnce(Incoming) + Send>;

impl Streaming {
    /// Reads `incoming`, after what was read of it before. Waiting longer than `idle` for a frame ends it.
    pub(super) fn new(incoming: Incoming, peeked: Option<Polled>, idle: Option<Duration>) -> Self {
        Self {
            incoming,
            idle: idle.map(IdleTimeout::new),
            received: 0,
            remaining: None,
            trailers: None,
            interrupt: None,
            peeked,
            remainder: None,
        }
    }

    pub(super) fn set_min_rate(&mut self, bytes_per_second: u64) {
        if let Some(idle) = &mut self.idle {
            idle.set_min_rate(bytes_per_second);
        }
    }

    pub(super) fn set_request(&mut self, activity: &Arc<Activity>) {
        if let Some(idle) = &mut self.idle {
            idle.set_request(Arc::clone(activity));
        }
    }

    pub(super) fn set_response(&mut self, activity: Arc<Activity>) {
        if let Some(idle) = &mut self.idle {
            idle.set_response(activity);
        }
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.remaining = Some(limit);
    }

    pub(super) fn set_trailers(&mut self, filter: TrailerFilter) {
        self.trailers = Some(filter);
    }

    pub(super) fn set_remainder(&mut self, remainder: Remainder) {
        self.remainder = Some(remainder);
    }

    pub(super) fn set_interrupt(&mut self, interrupt: oneshot::Receiver<()>) {
        self.interrupt = Some(interrupt);
    }

    /// Stops reading, and returns the bytes of data that were received. Dropping the receiver of the interrupt reports
    /// the end to its handle.
    pub(super) fn end(self: Box<Self>) -> u64 {
        let Self { incoming, received, idle, remainder, .. } = *self;
        if let Some(remainder) = remainder
            && !incoming.is_end_stream()
        {
            remainder(incoming);
        }
        if let Some(idle) = idle {
            idle.finish();
        }
        received
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.poll_interrupt(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::Interrupted)));
        }
        let polled = match self.poll_incoming(cx) {
            Poll::Ready(polled) => polled,
            Poll::Pending => match &mut self.idle {
                Some(idle) => {
                    ready!(idle.poll_expired(cx));
                    return Poll::Ready(Some(Err(BodyError::Idle)));
                }
                None => return Poll::Pending,
            },
        };
        Poll::Ready(match polled {
            Some(Ok(frame)) => self.receive(frame).transpose(),
            Some(Err(error)) => Some(Err(BodyError::Broken(error))),
            None => None,
        })
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(interrupt) = &mut self.interrupt else { return Poll::Pending };
        let interrupted = ready!(Pin::new(interrupt).poll(cx));
        self.interrupt = None;
        // An error means that the handle was dropped: the body is no longer interruptible.
        if interrupted.is_ok() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        match self.peeked.take() {
            Some(polled) => Poll::Ready(polled),
            None => Pin::new(&mut self.incoming).poll_frame(cx),
        }
    }

    /// Counts a frame against the limit, and filters trailers; `None` if the filter removes all of them.
    fn receive(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, BodyError> {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if let Some(idle) = &mut self.idle {
            idle.record_frame(bytes);
        }
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(bytes as u64).ok_or(BodyError::TooLarge)?;
        }
        self.received += bytes as u64;
        let Some(filter) = &self.trailers else { return Ok(Some(frame)) };
        Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                filter(&mut trailers);
                (!trailers.is_empty()).then(|| Frame::trailers(trailers))
            }
            Err(frame) => Some(frame),
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.peeked.is_none() && self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.peeked {
            Some(Some(Ok(frame))) => {
                let peeked = frame.data_ref().map_or(0, Bytes::len) as u64;
                let exact = self.incoming.size_hint().exact();
                exact.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + peeked))
            }
            _ => self.incoming.size_hint(),
        }
    }
}
