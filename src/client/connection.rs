//! One connection to an upstream: dialled, driven by a task, and ended with its handle.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::carrier::{Carrier, as_prepared};
use super::error::{Error, ErrorKind};
use super::target::Target;
use super::tls::{Agreed, Tls, UpstreamProtocol};
use crate::body::{Activity, Body, BodyError};
use crate::metrics::UpstreamMetrics;
use crate::net::descriptors::{self, Use};
use crate::net::scheme::Scheme;
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Bytes of a response's head, or of its trailers.
pub(super) const RESPONSE_HEAD_BYTES: usize = 128 * 1024;

/// Fields of a response's head, or of its trailers: far more than any page has within
/// [`RESPONSE_HEAD_BYTES`].
///
/// For each head hyper reserves two tables of this many entries of 32 bytes. Above 128 KiB for both, the
/// allocator returns them to the system each time, which costs more than the request.
const RESPONSE_FIELDS: usize = 2000;

/// What a request is sent on.
#[derive(Debug)]
pub(super) enum Connection {
    /// A connection of HTTP/1.1, for this request alone.
    Http1(Http1),
    /// One of HTTP/2, which others use too.
    Http2(Arc<Carrier>),
}

/// A connection that carries one request at a time. Dropping it closes it, whatever it carries.
#[derive(Debug)]
pub(super) struct Http1 {
    sender: http1::SendRequest<Outgoing>,
    received: Arc<AtomicBool>,
    /// Ends it; `None` once it belongs to whoever has upgraded it.
    task: Option<AbortHandle>,
}

/// Who is dialled, and how.
pub(super) struct Dialled<'a> {
    pub(super) target: &'a Target,
    pub(super) tls: Option<&'a Tls>,
    pub(super) metrics: &'a UpstreamMetrics,
}

impl Connection {
    /// Dials `target` within `deadline`, the handshake of TLS with it. When the drain begins, the
    /// connection's task calls `drain` once.
    pub(super) async fn open(
        Dialled { target, tls, metrics }: Dialled<'_>,
        speaks: UpstreamProtocol,
        deadline: Duration,
        tasks: &Tasks,
        drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let secured = secured(target, tls, speaks, deadline);
        let (socket, agreed) = match timeout(deadline, secured).await {
            Ok(dialled) => dialled.map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => Error::with(ErrorKind::ConnectTimeout, error),
                io::ErrorKind::QuotaExceeded => Error::with(ErrorKind::Busy, error),
                _ => Error::with(ErrorKind::Connect, error),
            })?,
            Err(elapsed) => return Err(Error::with(ErrorKind::ConnectTimeout, elapsed)),
        };
        let open = metrics.connection_opened();
        // The connection's task has this until it ends, or the drain begins.
        let drain = move || {
            drop(open);
            drain();
        };
        Ok(match agreed {
            Agreed::Http1 => Self::Http1(Http1::begin(socket, tasks, drain).await?),
            Agreed::Http2 => {
                let carrier = Carrier::begin(socket, target.scheme(), tasks, drain);
                let carrier = timeout(deadline, carrier).await;
                let late = |elapsed| Error::with(ErrorKind::ConnectTimeout, elapsed);
                Self::Http2(Arc::new(carrier.map_err(late)??))
            }
        })
    }

    /// Sends a request; where nothing of it was written, it is given back.
    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, NotSent> {
        let mut error = match self {
            Self::Http1(connection) => match connection.send(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            },
            Self::Http2(carrier) => match carrier.send(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            },
        };
        let request = error.take_message().map(|request| match self {
            Self::Http1(_) => request,
            Self::Http2(_) => as_prepared(request),
        });
        Err(NotSent { request, error: error.into_error() })
    }

    /// Leaves it to the upgrade that its response has begun.
    pub(super) fn release(self) {
        if let Self::Http1(mut connection) = self {
            connection.task = None;
        }
    }

    /// Whether anything came of the response, as far as that is known.
    pub(super) fn has_received(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.received.load(Ordering::Relaxed),
            Self::Http2(_) => true,
        }
    }

    /// Whether it takes another request.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            // All of the last request was written, and all of its response was read.
            Self::Http1(connection) => connection.sender.is_ready(),
            Self::Http2(carrier) => carrier.is_open(),
        }
    }
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) struct NotSent {
    /// The request, where nothing of it was written.
    pub(super) request: Option<Request<Outgoing>>,
    pub(super) error: hyper::Error,
}

impl Http1 {
    async fn begin(
        socket: Socket,
        tasks: &Tasks,
        drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let received = Arc::new(AtomicBool::new(false));
        let io = TokioIo::new(Io { socket, received: Arc::clone(&received), broken: false });
        let (sender, connection) = http1::Builder::new()
            .max_header_size(RESPONSE_HEAD_BYTES)
            .max_buf_size(RESPONSE_HEAD_BYTES + 4096)
            .max_headers(RESPONSE_FIELDS)
            // White space between a name and its colon is left out (RFC 9112, section 5.1).
            .allow_spaces_after_header_name_in_responses(true)
            .handshake(io)
            .await
            .map_err(|error| Error::with(ErrorKind::Connect, error))?;
        let task = tasks.run(drive(connection.with_upgrades(), tasks.sibling(), drain));
        Ok(Self { sender, received, task: Some(task.abort_handle()) })
    }

    fn send(
        &mut self,
        mut request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>> + Send + use<>
    {
        self.received.store(false, Ordering::Relaxed);
        if request.body().size_hint().exact().is_none() {
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
        }
        self.sender.try_send_request(request)
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        // hyper would go on with a request whose response is already over, for as long as the upstream takes it.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Drives a connection to its end; calls `drain` when that begins.
pub(super) async fn drive(
    connection: impl Future<Output = hyper::Result<()>>,
    tasks: Tasks,
    drain: impl FnOnce() + Send + 'static,
) {
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = tasks.draining() => {
            drain();
            connection.await
        }
    };
    if let Err(error) = ended {
        // The request's sender hears of it, or there is none: an idle connection that broke.
        let error = &error as &dyn std::error::Error;
        tracing::debug!(error, "an upstream connection ended");
    }
}

async fn secured(
    target: &Target,
    tls: Option<&Tls>,
    speaks: UpstreamProtocol,
    deadline: Duration,
) -> io::Result<(Socket, Agreed)> {
    let socket = dial(target, deadline).await?;
    if descriptors::are_scarce(&socket, Use::Upstream) {
        let message = "the process has too few descriptors left";
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
    }
    match (target, tls) {
        (Target::Http { scheme: Scheme::Https, host, .. }, Some(tls)) => {
            tls.connect(host, socket, speaks).await
        }
        (Target::Http { scheme: Scheme::Https, .. }, None) => {
            Err(io::Error::other("TLS to this upstream was not set up"))
        }
        (Target::Http { scheme: Scheme::Http, .. } | Target::Unix(_), _) => Ok((
            socket,
            match speaks {
                UpstreamProtocol::Http1 => Agreed::Http1,
                UpstreamProtocol::Http2 | UpstreamProtocol::Alpn => Agreed::Http2,
            },
        )),
    }
}

async fn dial(target: &Target, deadline: Duration) -> io::Result<Socket> {
    let (host, port) = match target {
        Target::Unix(path) => return Ok(UnixStream::connect(path).await?.into()),
        Target::Http { host, port, .. } => (host.as_str(), *port),
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(TcpStream::connect((address, port)).await?.into());
    }
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    // Each address has its share of the time, so that one which swallows packets does not hide the next.
    let share = deadline / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream.into()),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// An upstream's socket, which remembers that something was read from it.
///
/// A write that fails because the upstream has closed is no error yet: an answer may have arrived before, and hyper would
/// drop it unread. The write waits, and the reads tell the end.
#[derive(Debug)]
struct Io {
    socket: Socket,
    received: Arc<AtomicBool>,
    /// Whether a write has failed.
    broken: bool,
}

impl Io {
    fn written<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if has_closed(&error) => {
                self.broken = true;
                Poll::Pending
            }
            written => written,
        }
    }
}

fn has_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.received.store(true, Ordering::Relaxed);
        } else if self.broken && matches!(read, Poll::Ready(Ok(()))) {
            // The reset was told to the write; its trace here is an end.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buffer);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, buffers);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.written(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Body,
    progress: Option<Arc<Progress>>,
}

impl Outgoing {
    pub(super) fn new(body: Body) -> Self {
        if body.is_end_stream() {
            return Self { body, progress: None };
        }
        let progress = Arc::new(Progress::new());
        Self { body: body.with_request_activity(&progress.activity), progress: Some(progress) }
    }

    /// How far it is; `None` for one without bytes.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(progress) = &self.progress {
            match &polled {
                Poll::Ready(_) => progress.upstream(),
                Poll::Pending => progress.client(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whose turn it is while a request has a body: the client's to send more of it, or, since some instant, the
/// upstream's to take what there is or to answer.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    upstream_since: AtomicU64,
    activity: Arc<Activity>,
}

const CLIENTS_TURN: u64 = u64::MAX;

impl Progress {
    fn new() -> Self {
        let (start, upstream_since) = (Instant::now(), AtomicU64::new(0));
        Self { start, upstream_since, activity: Arc::new(Activity::new()) }
    }

    /// Returns what the response's body is to share with the request's.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    fn upstream(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(CLIENTS_TURN - 1);
        self.upstream_since.store(since, Ordering::Relaxed);
    }

    fn client(&self) {
        self.upstream_since.store(CLIENTS_TURN, Ordering::Relaxed);
    }

    /// Since when the upstream has been silent; `None` where it waits for the client.
    pub(super) fn upstream_since(&self) -> Option<Instant> {
        match self.upstream_since.load(Ordering::Relaxed) {
            CLIENTS_TURN => None,
            since => Some(self.start + Duration::from_millis(since)),
        }
    }
}
