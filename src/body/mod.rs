//! Bodies of messages: none, whole, or on their way, with a deadline on every wait for more of them.
//!
//! A body buffers nothing: a frame is asked of the peer when the reader asks for it. A body that its peer cut
//! off ends with an error, never as if it were complete.

mod idle;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::metrics::ResponseEnd;
use idle::Idle;
pub(crate) use idle::Traffic;

/// The body of a request or a response.
///
/// Dropping it before its end tells its sender that the rest is unwanted.
#[must_use]
pub struct Body {
    source: Source,
    idle: Option<Box<Idle>>,
    /// How many bytes may still come.
    room: Option<u64>,
    trailers: Option<TrailerFilter>,
    guard: Option<Guard>,
    interrupt: Option<oneshot::Receiver<()>>,
    /// What was polled of its source already.
    ahead: Option<Box<Polled>>,
    rest: Option<Rest>,
}

type Rest = Box<dyn FnOnce(Incoming) + Send>;

/// How long a client that still sends a request is read from after its answer: between two reads, and in all.
///
/// Clients that read their answer only when they have sent everything would not see it otherwise.
pub(crate) const READ_ON: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

type Polled = Option<Result<Frame<Bytes>, hyper::Error>>;

/// Ends a body before its time; see [`Body::interruptible`].
#[derive(Debug)]
pub struct Interrupt(oneshot::Sender<()>);

impl Interrupt {
    /// Completes when the body is over.
    pub async fn over(&mut self) {
        self.0.closed().await;
    }

    /// Ends the body with [`BodyError::Interrupted`], unless it is over.
    pub fn end(self) {
        // A body that is over has no receiver.
        let _ = self.0.send(());
    }
}

enum Source {
    Ended,
    Full(Bytes),
    Streaming(Incoming),
}

type Guard = Box<dyn FnOnce(End) + Send>;

type TrailerFilter = Box<dyn Fn(&mut HeaderMap) + Send>;

/// How a body came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was read to its end.
    Complete,
    /// It broke off, was malformed or too large.
    Broken,
    /// Its sender was silent for too long, or too slow.
    Idle,
    /// It was ended from outside; see [`Body::interruptible`].
    Interrupted,
    /// Its receiver took nothing of it for too long.
    Stalled,
    /// The drain's time was over.
    Drained,
    /// It was dropped before its end: its receiver is gone.
    Dropped,
}

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender sent nothing for as long as it may, or too little.
    #[error("the body's sender was silent for too long, or too slow")]
    Idle,
    /// It is larger than it may be.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It was ended from outside; see [`Body::interruptible`].
    #[error("the body was ended before its time")]
    Interrupted,
    /// The connection ended in the midst of it, or what came was malformed.
    #[error("the body was cut short or is malformed")]
    Broken(#[source] hyper::Error),
}

impl BodyError {
    fn end(&self) -> End {
        match self {
            Self::Idle => End::Idle,
            Self::Interrupted => End::Interrupted,
            Self::TooLarge | Self::Broken(_) => End::Broken,
        }
    }
}

/// Why a body could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It is larger than the limit.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It had not ended by the deadline, or its sender was silent for too long.
    #[error("the body took too long")]
    TimedOut,
    /// The connection ended in the midst of it, or what came was malformed.
    #[error(transparent)]
    Broken(BodyError),
}

impl End {
    /// Returns how a response with this end is logged and counted.
    pub(crate) fn reason(self) -> ResponseEnd {
        match self {
            Self::Complete => ResponseEnd::Complete,
            Self::Broken => ResponseEnd::Broken,
            Self::Idle => ResponseEnd::Idle,
            Self::Interrupted => ResponseEnd::SessionEnded,
            Self::Stalled => ResponseEnd::Stalled,
            Self::Drained => ResponseEnd::Drained,
            Self::Dropped => ResponseEnd::Dropped,
        }
    }
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::from_source(Source::Ended)
    }

    /// All of a body at once.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::from_source(if bytes.is_empty() { Source::Ended } else { Source::Full(bytes) })
    }

    /// A body as it comes from a connection. Waiting longer than `idle` for its next frame ends it with
    /// [`BodyError::Idle`]; the time in which nobody asks for a frame and one is there does not count.
    pub fn streaming(incoming: Incoming, idle: Option<Duration>) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let mut body = Self::from_source(Source::Streaming(incoming));
        body.idle = idle.map(|limit| Box::new(Idle::new(limit)));
        body
    }

    /// Demands so many bytes a second, where it has a limit of waiting: those that come buy time, of which there is
    /// never more than that limit. No sender gains by being slow evenly.
    pub fn with_rate(mut self, bytes: u64) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.demand(bytes);
        }
        self
    }

    /// Makes it the request's body of an exchange. Its limit of waiting does not hold while the response's body is
    /// on its way.
    pub(crate) fn asking(mut self, traffic: &Arc<Traffic>) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.asks(Arc::clone(traffic));
        }
        self
    }

    /// Makes it the response's body of an exchange, whose head has arrived. Its limit of waiting bounds the time in
    /// which nothing comes in either direction.
    pub(crate) fn answering(mut self, traffic: Arc<Traffic>) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.answers(traffic);
        }
        self
    }

    /// Takes the body in if all of it is there and is at most `limit` bytes: nothing of its connection is held then while
    /// its receiver is slow. Guards that it has are called at once.
    pub(crate) fn taken_in(mut self, limit: u64) -> Self {
        let Source::Streaming(incoming) = &mut self.source else { return self };
        if incoming.size_hint().exact().is_none_or(|size| size > limit) {
            return self;
        }
        // It is asked again, with a waker, if there is nothing yet.
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(polled) = Pin::new(&mut *incoming).poll_frame(&mut cx) else { return self };
        match polled {
            // A copy, since the frame is a part of a larger buffer.
            Some(Ok(frame)) if incoming.is_end_stream() && frame.is_data() => {
                let data = frame.into_data().unwrap_or_default();
                Self::full(Bytes::copy_from_slice(&data))
            }
            polled => {
                self.ahead = Some(Box::new(polled));
                self
            }
        }
    }

    /// Makes it possible to end it from outside.
    pub fn interruptible(mut self) -> (Self, Interrupt) {
        let (sender, receiver) = oneshot::channel();
        self.interrupt = Some(receiver);
        (self, Interrupt(sender))
    }

    /// Ends it with [`BodyError::TooLarge`] where more than `limit` bytes of it come.
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.room = Some(limit);
        self
    }

    /// Has `guard` called once, as soon as the body is over: when its last frame was handed out, at an error,
    /// or when it is dropped. A body that is empty calls it at once. Guards add up; the first is called first.
    pub fn with_guard(mut self, guard: impl FnOnce(End) + Send + 'static) -> Self {
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

    /// Has `filter` change the trailers before they are passed on; where it leaves none, none are.
    /// A later filter replaces an earlier one.
    pub fn with_trailers(mut self, filter: impl Fn(&mut HeaderMap) + Send + 'static) -> Self {
        self.trailers = Some(Box::new(filter));
        self
    }

    fn from_source(source: Source) -> Self {
        Self {
            source,
            idle: None,
            room: None,
            trailers: None,
            guard: None,
            interrupt: None,
            ahead: None,
            rest: None,
        }
    }

    /// Has `rest` called with what is still to come if nobody wants it any more.
    pub(crate) fn with_rest(mut self, rest: impl FnOnce(Incoming) + Send + 'static) -> Self {
        self.rest = Some(Box::new(rest));
        self
    }

    /// Ends it before its time, for a reason that its guards are given.
    pub(crate) fn abandon(&mut self, reason: End) {
        let end = if self.is_end_stream() { End::Complete } else { reason };
        self.end(end);
    }

    fn end(&mut self, end: End) {
        let source = std::mem::replace(&mut self.source, Source::Ended);
        if let (Source::Streaming(incoming), Some(rest)) = (source, self.rest.take())
            && !incoming.is_end_stream()
        {
            rest(incoming);
        }
        self.interrupt = None;
        if let Some(idle) = self.idle.take() {
            idle.over();
        }
        if let Some(guard) = self.guard.take() {
            guard(end);
        }
    }

    fn poll_interrupt(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(interrupt) = &mut self.interrupt else { return Poll::Pending };
        let interrupted = std::task::ready!(Pin::new(interrupt).poll(cx));
        self.interrupt = None;
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
            Source::Ended => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Streaming(incoming) => match poll_next(self.ahead.take(), incoming, cx) {
                Poll::Ready(frame) => {
                    if let (Some(idle), Some(Ok(frame))) = (&mut self.idle, &frame) {
                        idle.came(frame.data_ref().map_or(0, Bytes::len));
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

    /// Takes note of what a frame adds.
    fn measure(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        match &mut self.room {
            None => {}
            Some(room) if *room >= bytes => *room -= bytes,
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
        let polled = polled.map(|frame| frame.and_then(|frame| self.measure(frame)));
        Poll::Ready(match polled {
            Some(Ok(frame)) => {
                // A reader that knows the length does not ask again after the last frame.
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
            Source::Ended => true,
            Source::Full(bytes) => bytes.is_empty(),
            Source::Streaming(incoming) => self.ahead.is_none() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streaming(incoming) => match self.ahead.as_deref() {
                Some(Some(Ok(frame))) => {
                    let ahead = frame.data_ref().map_or(0, Bytes::len) as u64;
                    let exact = incoming.size_hint().exact();
                    exact.map_or_else(SizeHint::new, |rest| SizeHint::with_exact(rest + ahead))
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
    ahead: Option<Box<Polled>>,
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Polled> {
    match ahead {
        Some(polled) => Poll::Ready(*polled),
        None => Pin::new(incoming).poll_frame(cx),
    }
}

/// Reads what is left of a request that is answered already, for as long as [`READ_ON`] says.
pub(crate) async fn discard(mut rest: Incoming) {
    let (between, in_all) = READ_ON;
    let read = async {
        let next = async |rest: &mut Incoming| {
            std::future::poll_fn(|cx| Pin::new(&mut *rest).poll_frame(cx)).await
        };
        while let Ok(Some(Ok(_))) = timeout(between, next(&mut rest)).await {}
    };
    // The sender was given its time.
    let _ = timeout(in_all, read).await;
}

/// Reads all of `body`, at most `limit` bytes of it, within `deadline` from now; trailers are dropped.
///
/// One that announces a greater length is refused before anything of it is read.
pub async fn collect(
    mut body: Body,
    limit: usize,
    deadline: Duration,
) -> Result<Bytes, CollectError> {
    let size = body.size_hint().lower();
    if usize::try_from(size).map_or(true, |size| size > limit) {
        return Err(CollectError::TooLarge);
    }
    match timeout(deadline, read_all(&mut body, limit)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(CollectError::TimedOut),
    }
}

async fn read_all(body: &mut Body, limit: usize) -> Result<Bytes, CollectError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| match error {
            BodyError::Idle => CollectError::TimedOut,
            BodyError::TooLarge => CollectError::TooLarge,
            broken @ (BodyError::Broken(_) | BodyError::Interrupted) => {
                CollectError::Broken(broken)
            }
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.len() > limit.saturating_sub(first.len() + rest.len()) {
            return Err(CollectError::TooLarge);
        }
        // A body in one piece is not copied.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}
