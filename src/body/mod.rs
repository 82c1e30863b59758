//! Bodies of requests and responses: empty, in memory, or streamed, with a timeout on every wait for the next frame.
//!
//! A body buffers nothing: it polls the connection only when it is polled. One that the peer truncated ends with an
//! error, never as if it were complete.

mod end;
mod idle;
mod read;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use self::idle::IdleTimeout;

pub(crate) use self::end::{BodyError, CollectError, End};
pub(crate) use self::idle::Activity;
pub use self::read::collect;
pub(crate) use self::read::{DiscardTimeouts, UPLOAD_TIMEOUTS, discard};

/// The body of a request or a response.
///
/// Dropping it before its end closes its connection, or resets its stream.
#[must_use]
pub struct Body {
    source: Source,
    idle: Option<Box<IdleTimeout>>,
    /// Bytes left of the limit.
    remaining: Option<u64>,
    trailers: Option<TrailerFilter>,
    guard: Option<Guard>,
    interrupt: Option<oneshot::Receiver<()>>,
    /// Result of a poll that was not returned yet.
    peeked: Option<Box<Polled>>,
    remainder: Option<Remainder>,
}

type Polled = Option<Result<Frame<Bytes>, hyper::Error>>;

type Guard = Box<dyn FnOnce(End) + Send>;

type TrailerFilter = Box<dyn Fn(&mut HeaderMap) + Send>;

type Remainder = Box<dyn FnOnce(Incoming) + Send>;

/// Handle to end a body early; see [`Body::interruptible`].
#[derive(Debug)]
pub(crate) struct Interrupt(oneshot::Sender<()>);

impl Interrupt {
    /// Completes when the body has ended.
    pub(crate) async fn body_ended(&mut self) {
        self.0.closed().await;
    }

    /// Ends the body with [`BodyError::Interrupted`], unless it has ended already.
    pub(crate) fn interrupt(self) {
        // A body that has ended has dropped its receiver.
        let _ = self.0.send(());
    }
}

/// The outcome of [`Body::receive`].
pub(crate) enum Received {
    /// All of it is in memory.
    Complete(Body),
    Partly(Body),
}

enum Source {
    Empty,
    Full(Bytes),
    Streaming(Incoming),
}

impl Body {
    /// Creates an empty body.
    pub fn empty() -> Self {
        Self::from_source(Source::Empty)
    }

    /// Creates a body of `bytes`.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::from_source(if bytes.is_empty() { Source::Empty } else { Source::Full(bytes) })
    }

    /// Creates a body that is read from a connection. Waiting longer than `idle` for the next frame ends it with
    /// [`BodyError::Idle`]. Only time spent waiting for the sender counts, not that in which the body is not polled.
    pub fn streaming(incoming: Incoming, idle: Option<Duration>) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self::partly(incoming, None, idle) }
    }

    fn partly(incoming: Incoming, peeked: Option<Polled>, idle: Option<Duration>) -> Self {
        let mut body = Self::from_source(Source::Streaming(incoming));
        body.peeked = peeked.map(Box::new);
        body.idle = idle.map(|limit| Box::new(IdleTimeout::new(limit)));
        body
    }

    /// Requires a minimum rate, if the body has an idle timeout. Each byte extends the deadline by its share of a second,
    /// up to the idle timeout, so a sender cannot hold the connection by sending a byte at a time.
    pub(crate) fn with_min_rate(mut self, bytes_per_second: u64) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.set_min_rate(bytes_per_second);
        }
        self
    }

    /// Makes it the request half of an exchange: its idle timeout is suspended while the response's body is streamed.
    pub(crate) fn with_request_activity(mut self, activity: &Arc<Activity>) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.set_request(Arc::clone(activity));
        }
        self
    }

    /// Makes it the response half of an exchange: its idle timeout bounds the time without a frame in either direction.
    pub(crate) fn with_response_activity(mut self, activity: Arc<Activity>) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.set_response(activity);
        }
        self
    }

    /// Copies a body into memory if it has arrived completely and is at most `limit` bytes. Its connection is then free
    /// even if the receiver is slow.
    pub(crate) fn receive(mut incoming: Incoming, limit: u64, idle: Option<Duration>) -> Received {
        if incoming.is_end_stream() {
            return Received::Complete(Self::empty());
        }
        if incoming.size_hint().exact().is_none_or(|size| size > limit) {
            return Received::Partly(Self::partly(incoming, None, idle));
        }
        // If nothing has arrived yet, the next poll registers the task's waker.
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut incoming).poll_frame(&mut cx) {
            // Copied, since the frame would keep the connection's whole read buffer alive.
            Poll::Ready(Some(Ok(frame))) if incoming.is_end_stream() && frame.is_data() => {
                let data = frame.into_data().unwrap_or_default();
                Received::Complete(Self::full(Bytes::copy_from_slice(&data)))
            }
            Poll::Ready(polled) => Received::Partly(Self::partly(incoming, Some(polled), idle)),
            Poll::Pending => Received::Partly(Self::partly(incoming, None, idle)),
        }
    }

    /// Returns the body with a handle to end it early.
    pub(crate) fn interruptible(mut self) -> (Self, Interrupt) {
        let (sender, receiver) = oneshot::channel();
        self.interrupt = Some(receiver);
        (self, Interrupt(sender))
    }

    /// Ends it with [`BodyError::TooLarge`] if it exceeds `limit` bytes.
    pub(crate) fn with_limit(mut self, limit: u64) -> Self {
        self.remaining = Some(limit);
        self
    }

    /// Calls `guard` once, as soon as the body ends: when its last frame is returned, on an error, or when it is dropped.
    /// If the body is empty, that is now. Guards are called in the order in which they were added.
    pub(crate) fn with_guard(mut self, guard: impl FnOnce(End) + Send + 'static) -> Self {
        if self.is_end_stream() {
            guard(End::Complete);
        } else {
            self.guard = Some(match self.guard.take() {
                None => Box::new(guard),
                Some(first) => Box::new(move |end| {
                    first(end);
                    guard(end);
                }),
            });
        }
        self
    }

    /// Drops `held` once the body has arrived: now if it is in memory, or else when it ends.
    pub(crate) fn holding(self, held: impl Send + 'static) -> Self {
        match self.source {
            Source::Streaming(_) => self.with_guard(move |_end| drop(held)),
            Source::Empty | Source::Full(_) => self,
        }
    }

    /// Passes the trailers through `filter`, and drops them if it removes all fields. A later filter replaces an earlier
    /// one.
    pub(crate) fn with_trailers(
        mut self,
        filter: impl Fn(&mut HeaderMap) + Send + 'static,
    ) -> Self {
        // Bodies in memory have none.
        if let Source::Streaming(_) = self.source {
            self.trailers = Some(Box::new(filter));
        }
        self
    }

    fn from_source(source: Source) -> Self {
        Self {
            source,
            idle: None,
            remaining: None,
            trailers: None,
            guard: None,
            interrupt: None,
            peeked: None,
            remainder: None,
        }
    }

    /// Calls `remainder` with the unread part if the body ends early.
    pub(crate) fn with_remainder(
        mut self,
        remainder: impl FnOnce(Incoming) + Send + 'static,
    ) -> Self {
        self.remainder = Some(Box::new(remainder));
        self
    }

    /// Ends it; guards receive `reason`, unless it was complete.
    pub(crate) fn abandon(&mut self, reason: End) {
        let end = if self.is_end_stream() { End::Complete } else { reason };
        self.end(end);
    }

    fn end(&mut self, end: End) {
        let source = std::mem::replace(&mut self.source, Source::Empty);
        if let (Source::Streaming(incoming), Some(remainder)) = (source, self.remainder.take())
            && !incoming.is_end_stream()
        {
            remainder(incoming);
        }
        // Dropping the receiver reports the end to the handle.
        self.interrupt = None;
        if let Some(idle) = self.idle.take() {
            idle.finish();
        }
        if let Some(guard) = self.guard.take() {
            guard(end);
        }
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(interrupt) = &mut self.interrupt else { return Poll::Pending };
        let interrupted = std::task::ready!(Pin::new(interrupt).poll(cx));
        self.interrupt = None;
        // An error means that the handle was dropped: the body is no longer interruptible.
        if interrupted.is_ok() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.poll_interrupt(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::Interrupted)));
        }
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Streaming(incoming) => match poll_next(self.peeked.take(), incoming, cx) {
                Poll::Ready(frame) => {
                    if let (Some(idle), Some(Ok(frame))) = (&mut self.idle, &frame) {
                        idle.record_frame(frame.data_ref().map_or(0, Bytes::len));
                    }
                    Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
                }
                Poll::Pending => match &mut self.idle {
                    Some(idle) => idle.poll_expired(cx).map(|()| Some(Err(BodyError::Idle))),
                    None => Poll::Pending,
                },
            },
        }
    }

    /// Counts a frame against the limit.
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        match &mut self.remaining {
            None => {}
            Some(remaining) if *remaining >= bytes => *remaining -= bytes,
            Some(_) => return Err(BodyError::TooLarge),
        }
        Ok(frame)
    }

    fn filter(&self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let Some(filter) = &self.trailers else {
            return Some(frame);
        };
        match frame.into_trailers() {
            Ok(mut trailers) => {
                filter(&mut trailers);
                (!trailers.is_empty()).then(|| Frame::trailers(trailers))
            }
            Err(frame) => Some(frame),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = std::task::ready!(self.poll_source(cx));
        let polled = polled.map(|frame| frame.and_then(|frame| self.count(frame)));
        Poll::Ready(match polled {
            Some(Ok(frame)) => {
                // A reader that knows the length does not poll again after the last frame.
                let last = frame.is_trailers() || self.is_end_stream();
                let frame = self.filter(frame);
                if last {
                    self.end(End::Complete);
                }
                frame.map(Ok)
            }
            Some(Err(error)) => {
                self.end(error.end());
                Some(Err(error))
            }
            None => {
                self.end(End::Complete);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Streaming(incoming) => self.peeked.is_none() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streaming(incoming) => match self.peeked.as_deref() {
                Some(Some(Ok(frame))) => {
                    let peeked = frame.data_ref().map_or(0, Bytes::len) as u64;
                    let exact = incoming.size_hint().exact();
                    exact.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + peeked))
                }
                _ => incoming.size_hint(),
            },
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.abandon(End::Dropped);
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

fn poll_next(
    peeked: Option<Box<Polled>>,
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Polled> {
    match peeked {
        Some(polled) => Poll::Ready(*polled),
        None => Pin::new(incoming).poll_frame(cx),
    }
}
