//! Bodies of messages: none, whole, or on their way, with a deadline on every wait for more of them.
//!
//! A body buffers nothing: a frame is asked of the peer when the reader asks for it. A body that its peer cut
//! off ends with an error, never as if it were complete.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

/// The body of a request or a response.
///
/// Dropping it before its end tells its sender that the rest is unwanted.
#[must_use]
pub struct Body {
    source: Source,
    idle: Option<Idle>,
    /// How many bytes may still come.
    room: Option<u64>,
    trailers: Option<TrailerFilter>,
    guard: Option<Guard>,
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
    /// It ended with an error.
    Broken,
    /// It was dropped before its end.
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
    /// The connection ended in the midst of it, or what came was malformed.
    #[error("the body was cut short or is malformed")]
    Broken(#[source] hyper::Error),
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
        body.idle = idle.map(Idle::new);
        body
    }

    /// Demands so many bytes a second, where it has a limit of waiting: those that come buy time, of which there is
    /// never more than that limit. No sender gains by being slow evenly.
    pub fn with_rate(mut self, bytes: u64) -> Self {
        if let Some(idle) = &mut self.idle {
            idle.rate = Some(bytes.max(1));
        }
        self
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
        Self { source, idle: None, room: None, trailers: None, guard: None }
    }

    fn end(&mut self, end: End) {
        self.source = Source::Ended;
        if let Some(guard) = self.guard.take() {
            guard(end);
        }
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Ended => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Streaming(incoming) => match Pin::new(incoming).poll_frame(cx) {
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
                self.end(End::Broken);
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
            Source::Streaming(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streaming(incoming) => incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let end = if self.is_end_stream() { End::Complete } else { End::Dropped };
        self.end(end);
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

/// How long a sender is waited for. The timer exists from the first wait on, so a body that is all there costs none.
struct Idle {
    limit: Duration,
    /// Bytes that buy a second; `None` where any buy all of the limit.
    rate: Option<u64>,
    left: Duration,
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, rate: None, left: limit, waiting: None, timer: None }
    }

    fn came(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.left = match self.rate {
            None => self.limit,
            Some(rate) => {
                let millis = (bytes as u64).saturating_mul(1000) / rate;
                let left = self.left.saturating_sub(waited);
                left.saturating_add(Duration::from_millis(millis)).min(self.limit)
            }
        };
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_new = self.waiting.is_none();
        let deadline = *self.waiting.get_or_insert_with(Instant::now) + self.left;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if is_new {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
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
            broken @ BodyError::Broken(_) => CollectError::Broken(broken),
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
