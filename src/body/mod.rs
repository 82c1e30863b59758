//! Bodies of requests and responses: empty, in memory, or streamed, with a timeout on every wait for the next frame.
//!
//! A body buffers nothing: it polls the connection only when it is polled. One that the peer truncated ends with an
//! error, never as if it were complete.

mod end;
mod idle;
mod read;
mod streaming;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use self::streaming::{Polled, Streaming};

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
    guard: Option<Guard>,
}

/// Receives the end, and the bytes of data that were returned before it.
type Guard = Box<dyn FnOnce(End, u64) + Send>;

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

/// A body moves through memory often, and most are empty or small: only what is streamed is boxed.
enum Source {
    Empty,
    Full(Bytes),
    Streaming(Box<Streaming>),
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
        let streaming = Streaming::new(incoming, peeked, idle);
        Self::from_source(Source::Streaming(Box::new(streaming)))
    }

    fn from_source(source: Source) -> Self {
        Self { source, guard: None }
    }

    /// Applies `set` to a body that is streamed. Bodies in memory have no peer that they would have to be protected from,
    /// and no trailers.
    fn when_streaming(mut self, set: impl FnOnce(&mut Streaming)) -> Self {
        if let Source::Streaming(streaming) = &mut self.source {
            set(streaming);
        }
        self
    }

    /// Requires a minimum rate, if the body has an idle timeout. Each byte extends the deadline by its share of a second,
    /// up to the idle timeout, so a sender cannot hold the connection by sending a byte at a time.
    pub(crate) fn with_min_rate(self, bytes_per_second: u64) -> Self {
        self.when_streaming(|streaming| streaming.set_min_rate(bytes_per_second))
    }

    /// Makes it the request half of an exchange: its idle timeout is suspended while the response's body is streamed.
    pub(crate) fn with_request_activity(self, activity: &Arc<Activity>) -> Self {
        self.when_streaming(|streaming| streaming.set_request(activity))
    }

    /// Makes it the response half of an exchange: its idle timeout bounds the time without a frame in either direction.
    pub(crate) fn with_response_activity(self, activity: Arc<Activity>) -> Self {
        self.when_streaming(|streaming| streaming.set_response(activity))
    }

    /// Ends a streamed body with [`BodyError::TooLarge`] if it exceeds `limit` bytes.
    pub(crate) fn with_limit(self, limit: u64) -> Self {
        self.when_streaming(|streaming| streaming.set_limit(limit))
    }

    /// Passes the trailers through `filter`, and drops them if it removes all fields. A later filter replaces an earlier
    /// one.
    pub(crate) fn with_trailers(self, filter: impl Fn(&mut HeaderMap) + Send + 'static) -> Self {
        self.when_streaming(|streaming| streaming.set_trailers(Box::new(filter)))
    }

    /// Calls `remainder` with the unread part if a streamed body ends early.
    pub(crate) fn with_remainder(self, remainder: impl FnOnce(Incoming) + Send + 'static) -> Self {
        self.when_streaming(|streaming| streaming.set_remainder(Box::new(remainder)))
    }

    /// Returns the body with a handle to end it early. A body in memory counts as ended.
    pub(crate) fn interruptible(self) -> (Self, Interrupt) {
        let (sender, receiver) = oneshot::channel();
        (self.when_streaming(|streaming| streaming.set_interrupt(receiver)), Interrupt(sender))
    }

    /// Takes a body into memory if it has arrived completely and is at most `limit` bytes. Its connection is then free
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
            // Not copied: the next read of the connection gets a buffer of its own.
            Poll::Ready(Some(Ok(frame))) if incoming.is_end_stream() && frame.is_data() => {
                Received::Complete(Self::full(frame.into_data().unwrap_or_default()))
            }
            Poll::Ready(polled) => Received::Partly(Self::partly(incoming, Some(polled), idle)),
            Poll::Pending => Received::Partly(Self::partly(incoming, None, idle)),
        }
    }

    /// Calls `guard` once, as soon as the body ends: when its last frame is returned, on an error, or when it is dropped.
    /// If the body is empty, that is now. Guards are called in the order in which they were added.
    pub(crate) fn with_guard(self, guard: impl FnOnce(End) + Send + 'static) -> Self {
        self.with_counting_guard(move |end, _bytes| guard(end))
    }

    /// Like [`Self::with_guard`]. The guard also receives the bytes of data that were returned before the end.
    pub(crate) fn with_counting_guard(
        mut self,
        guard: impl FnOnce(End, u64) + Send + 'static,
    ) -> Self {
        if self.is_end_stream() {
            guard(End::Complete, 0);
        } else {
            self.guard = Some(match self.guard.take() {
                None => Box::new(guard),
                Some(first) => Box::new(move |end, bytes| {
                    first(end, bytes);
                    guard(end, bytes);
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

    /// Ends it; guards receive `reason`, unless it was complete.
    pub(crate) fn abandon(&mut self, reason: End) {
        let end = if self.is_end_stream() { End::Complete } else { reason };
        self.end(end, 0);
    }

    /// Ends it, after `last` bytes of data that were returned by this poll.
    fn end(&mut self, end: End, last: u64) {
        let before = match std::mem::replace(&mut self.source, Source::Empty) {
            Source::Streaming(streaming) => streaming.end(),
            Source::Empty | Source::Full(_) => 0,
        };
        if let Some(guard) = self.guard.take() {
            guard(end, before + last);
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
        let polled = match &mut self.source {
            Source::Empty => None,
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                let last = bytes.len() as u64;
                self.end(End::Complete, last);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::Streaming(streaming) => ready!(streaming.poll_frame(cx)),
        };
        match &polled {
            Some(Ok(frame)) if !frame.is_trailers() && !self.is_end_stream() => {}
            // A reader that knows the length does not poll again after the last frame.
            Some(Ok(_)) | None => self.end(End::Complete, 0),
            Some(Err(error)) => self.end(error.end(), 0),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Streaming(streaming) => streaming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streaming(streaming) => streaming.size_hint(),
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
