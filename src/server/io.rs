//! A client's socket as hyper reads and writes it: records what happens in the connection's state, returns sniffed
//! bytes first, and closes without losing the last response.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::ConnectionLimit;
use super::state::{ConnectionState, Phase};
use crate::body::{DiscardTimeouts, UPLOAD_TIMEOUTS};
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// Timeouts of a lingering close if the client is not uploading, or under pressure.
const LINGER_TIMEOUTS: DiscardTimeouts =
    DiscardTimeouts { between_reads: Duration::from_secs(2), total: Duration::from_secs(2) };

/// Bytes that are discarded in that case before the connection is closed.
const LINGER_BYTES: usize = 256 * 1024;

/// Interval at which the timeouts are checked while nothing is read.
const LINGER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A client's socket.
#[derive(Debug)]
pub(super) struct ClientIo {
    socket: Socket,
    /// Bytes that were read from the socket already.
    prefix: Bytes,
    state: Arc<ConnectionState>,
    closing: Closing,
    pressure: Pressure,
}

/// Reasons to shorten a lingering close: few free connections, or the drain.
#[derive(Clone, Debug)]
pub(super) struct Pressure {
    limit: ConnectionLimit,
    tasks: Tasks,
}

impl Pressure {
    pub(super) fn new(limit: ConnectionLimit, tasks: Tasks) -> Self {
        Self { limit, tasks }
    }

    fn is_on(&self) -> bool {
        self.tasks.is_draining() || self.limit.is_scarce()
    }
}

#[derive(Debug)]
enum Closing {
    Open,
    /// This side is closed; what the client still sends is discarded for a while.
    Lingering(Linger),
    /// The client has closed too, or its time is over.
    Done,
}

#[derive(Debug)]
struct Linger {
    start: Instant,
    last_read: Instant,
    bytes: usize,
    timer: Pin<Box<Sleep>>,
}

/// Length of a lingering close.
#[derive(Clone, Copy, Debug)]
enum Patience {
    /// The client may still be uploading and read its response only after that.
    Upload,
    Short,
}

impl Linger {
    fn start() -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + LINGER_CHECK_INTERVAL));
        Self { start: now, last_read: now, bytes: 0, timer }
    }

    fn record_read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.last_read = Instant::now();
    }

    fn is_over(&self, patience: Patience) -> bool {
        let (timeouts, max_bytes) = match patience {
            Patience::Upload => (UPLOAD_TIMEOUTS, usize::MAX),
            Patience::Short => (LINGER_TIMEOUTS, LINGER_BYTES),
        };
        self.last_read.elapsed() >= timeouts.between_reads
            || self.start.elapsed() >= timeouts.total
            || self.bytes >= max_bytes
    }
}

impl ClientIo {
    /// Wraps a socket from which `prefix` was read already.
    pub(super) fn new(
        socket: Socket,
        prefix: Bytes,
        state: Arc<ConnectionState>,
        pressure: Pressure,
    ) -> Self {
        Self { socket, prefix, state, closing: Closing::Open, pressure }
    }

    /// Closes the connection after the body of a response failed, so that what was written of it arrives. A client that
    /// would mistake the close for the end of a complete response gets a reset instead, on drop.
    pub(super) async fn close_after_failed_body(mut self) {
        if !self.state.close_would_end_response() {
            // An error means that the client is gone.
            let _ = poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx)).await;
        }
    }

    /// Has `bytes` read again.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.prefix = bytes;
    }

    /// Waits until the client sends more, which is then read again. Returns `false` if it closes instead.
    pub(super) async fn wait_readable(&mut self) -> bool {
        poll_fn(|cx| {
            // Small, since it is held by every idle connection. A read is needed: with TLS, a readable socket need not
            // mean that there is data.
            let mut bytes = [0; 64];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer));
            self.prefix = Bytes::copy_from_slice(buffer.filled());
            Poll::Ready(read.is_ok() && !self.prefix.is_empty())
        })
        .await
    }

    fn record_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => self.state.record_write(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.record_blocked(),
        }
        written
    }

    /// Discards what the client still sends. A socket that is closed with unread bytes is reset, and a reset can destroy
    /// the response before the client has read it (RFC 9112, section 9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 8192];
        while let Closing::Lingering(linger) = &mut self.closing {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.record_read(buffer.filled().len());
                }
                Poll::Ready(_) => {
                    self.closing = Closing::Done;
                    break;
                }
                Poll::Pending => {
                    ready!(linger.timer.as_mut().poll(cx));
                    linger.timer.as_mut().reset(Instant::now() + LINGER_CHECK_INTERVAL);
                }
            }
            // Decided after each read, since the pressure may change in the meantime.
            let patience = if self.state.is_uploading() && !self.pressure.is_on() {
                Patience::Upload
            } else {
                Patience::Short
            };
            if linger.is_over(patience) {
                self.closing = Closing::Done;
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.prefix.is_empty() {
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, buffer));
            // The client sends nothing more, so the close need not linger.
            if read.is_err() || buffer.filled().len() == before {
                self.closing = Closing::Done;
                return Poll::Ready(read);
            }
        } else {
            let count = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix.split_to(count));
        }
        self.state.record_read();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buffer);
        self.record_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, buffers);
        self.record_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        // TLS accepts writes into a buffer of its own, so only the flush shows that the client does not read.
        match &flushed {
            Poll::Ready(Ok(())) => self.state.record_flush(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.record_blocked(),
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The directions of a tunnel close one by one: what the client still sends is not
        // discarded.
        if self.state.is_upgraded() {
            return Pin::new(&mut self.socket).poll_shutdown(cx);
        }
        if self.state.phase() != Phase::Closing {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.state.enter(Phase::Closing);
        }
        if let Closing::Open = self.closing {
            self.closing = Closing::Lingering(Linger::start());
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl Drop for ClientIo {
    /// Resets a connection whose response is incomplete if its close would look like the end of the body: a cache could
    /// store the truncated response as a complete one (RFC 9112, section 8).
    fn drop(&mut self) {
        if self.state.close_would_end_response() {
            self.socket.reset_on_drop();
        }
    }
}
