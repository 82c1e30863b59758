//! One connection to an upstream: dialled, driven by a task, and ended with its handle.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::error::{Error, Kind};
use super::target::Target;
use super::tls::Tls;
use crate::body::{Body, BodyError};
use crate::scheme::Scheme;
use crate::socket::Socket;
use crate::tasks::Tasks;

/// Bytes of a response's head, or of its trailers.
const RESPONSE_HEAD_BYTES: usize = 128 * 1024;

/// A connection that carries one request at a time. Dropping it closes it, whatever it carries.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Outgoing>,
    received: Arc<AtomicBool>,
    /// Ends it; `None` once it belongs to whoever has upgraded it.
    task: Option<AbortHandle>,
}

impl Connection {
    /// Dials `target` within `deadline`, the handshake of TLS with it. When the drain begins, the connection's task calls `drain` once.
    pub(super) async fn open(
        (target, tls): (&Target, Option<&Tls>),
        deadline: Duration,
        tasks: &Tasks,
        drain: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let socket = match timeout(deadline, secured(target, tls, deadline)).await {
            Ok(dialled) => dialled.map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => Error::with(Kind::ConnectTimeout, error),
                _ => Error::with(Kind::Connect, error),
            })?,
            Err(elapsed) => return Err(Error::with(Kind::ConnectTimeout, elapsed)),
        };
        let received = Arc::new(AtomicBool::new(false));
        let io = TokioIo::new(Io { socket, received: Arc::clone(&received) });
        let (sender, connection) = http1::Builder::new()
            .max_header_size(RESPONSE_HEAD_BYTES)
            .max_buf_size(RESPONSE_HEAD_BYTES + 4096)
            .handshake(io)
            .await
            .map_err(|error| Error::with(Kind::Connect, error))?;
        let drained = tasks.sibling();
        let task = tasks.run(async move {
            let mut connection = std::pin::pin!(connection.with_upgrades());
            let ended = tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = drained.draining() => {
                    drain();
                    connection.await
                }
            };
            if let Err(error) = ended {
                // The request's sender hears of it, or there is none: an idle connection that broke.
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "an upstream connection ended"
                );
            }
        });
        Ok(Self { sender, received, task: Some(task.abort_handle()) })
    }

    /// Sends a request; where nothing of it was written, the error gives it back.
    pub(super) fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>> + Send + use<>
    {
        self.received.store(false, Ordering::Relaxed);
        self.sender.try_send_request(request)
    }

    /// Leaves it to the upgrade that its response has begun.
    pub(super) fn release(mut self) {
        self.task = None;
    }

    /// Whether anything came of the response.
    pub(super) fn has_received(&self) -> bool {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it is open, all of the last request was written and all of its response was read.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // hyper would go on with a request whose response is already over, for as long as the upstream takes it.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn secured(target: &Target, tls: Option<&Tls>, deadline: Duration) -> io::Result<Socket> {
    let socket = dial(target, deadline).await?;
    match (target, tls) {
        (Target::Http { scheme: Scheme::Https, host, .. }, Some(tls)) => {
            tls.connect(host, socket).await
        }
        (Target::Http { scheme: Scheme::Https, .. }, None) => {
            Err(io::Error::other("TLS to this upstream was not set up"))
        }
        (Target::Http { scheme: Scheme::Http, .. } | Target::Unix(_), _) => Ok(socket),
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
#[derive(Debug)]
struct Io {
    socket: Socket,
    received: Arc<AtomicBool>,
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
        Pin::new(&mut self.socket).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
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
        let progress = (!body.is_end_stream()).then(Arc::default);
        Self { body, progress }
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
}

const CLIENTS_TURN: u64 = u64::MAX;

impl Default for Progress {
    fn default() -> Self {
        Self { start: Instant::now(), upstream_since: AtomicU64::new(0) }
    }
}

impl Progress {
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
