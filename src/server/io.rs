//! A client's socket as hyper reads and writes it: it tells the connection's clocks what happens, gives back
//! the bytes that were read to tell the protocols apart, and closes without losing the last response.

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
use super::clocks::{Clocks, Phase};
use crate::body::READ_ON;
use crate::net::socket::Socket;
use crate::tasks::Tasks;

/// How long a closed connection is read from if no upload is answered, or under pressure: between two reads, and in all.
const GOODBYE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));

/// Bytes that are read then.
const GOODBYE_BYTES: usize = 256 * 1024;

/// How often it is checked, without a read, whether that time is over.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Io {
    socket: Socket,
    prefix: Bytes,
    clocks: Arc<Clocks>,
    closing: Closing,
    pressure: Pressure,
}

/// What shortens the time that a closed connection is read from: few free connections, or the drain.
#[derive(Clone, Debug)]
pub(super) struct Pressure {
    room: ConnectionLimit,
    tasks: Tasks,
}

impl Pressure {
    pub(super) fn new(room: ConnectionLimit, tasks: Tasks) -> Self {
        Self { room, tasks }
    }

    fn is_on(&self) -> bool {
        self.tasks.is_draining() || self.room.is_scarce()
    }
}

#[derive(Debug)]
enum Closing {
    Open,
    /// Our side is closed; the client's bytes are dropped for a time.
    Lingering(Linger),
    /// Nothing more will come, or nothing more is wanted.
    Done,
}

#[derive(Debug)]
struct Linger {
    began: Instant,
    /// When the client last sent something.
    last: Instant,
    bytes: usize,
    timer: Pin<Box<Sleep>>,
}

impl Linger {
    fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, bytes: 0, timer: Box::pin(sleep_until(now + LOOK)) }
    }

    fn read(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.last = Instant::now();
    }

    fn is_over(&self, may_upload: bool) -> bool {
        let (between, in_all) = if may_upload { READ_ON } else { GOODBYE };
        self.last.elapsed() >= between
            || self.began.elapsed() >= in_all
            || (!may_upload && self.bytes >= GOODBYE_BYTES)
    }
}

impl Io {
    /// `prefix` was read from the socket already, and is read again first.
    pub(super) fn new(
        socket: Socket,
        prefix: Bytes,
        clocks: Arc<Clocks>,
        pressure: Pressure,
    ) -> Self {
        Self { socket, prefix, clocks, closing: Closing::Open, pressure }
    }

    /// Closes it after a response that broke off: what was written of that arrives. A client that would take the end
    /// for that of a whole response gets a reset instead, by the drop.
    pub(super) async fn close(mut self) {
        if !self.clocks.would_end_response() {
            // A client that is gone needs no end.
            let _ = poll_fn(|cx| Pin::new(&mut self).poll_shutdown(cx)).await;
        }
    }

    /// Gives back what was read too much.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.prefix = bytes;
    }

    /// Waits until more comes, which is read again; whether it does.
    pub(super) async fn wait(&mut self) -> bool {
        poll_fn(|cx| {
            let mut few = [0; 64];
            let mut buffer = ReadBuf::new(&mut few);
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer));
            self.prefix = Bytes::copy_from_slice(buffer.filled());
            Poll::Ready(read.is_ok() && !self.prefix.is_empty())
        })
        .await
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => self.clocks.wrote(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.clocks.blocked(),
        }
        written
    }

    /// Drops what the client still sends. A socket that is closed while unread bytes are there is reset, and a
    /// reset can take the response from the client before it has read it (RFC 9112, section 9.6).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 8192];
        while let Closing::Lingering(linger) = &mut self.closing {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    linger.read(buffer.filled().len());
                }
                Poll::Ready(_) => {
                    self.closing = Closing::Done;
                    break;
                }
                Poll::Pending => {
                    ready!(linger.timer.as_mut().poll(cx));
                    linger.timer.as_mut().reset(Instant::now() + LOOK);
                }
            }
            if linger.is_over(self.clocks.is_uploading() && !self.pressure.is_on()) {
                self.closing = Closing::Done;
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.prefix.is_empty() {
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, buffer));
            if read.is_err() || buffer.filled().len() == before {
                self.closing = Closing::Done;
                return Poll::Ready(read);
            }
        } else {
            let count = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix.split_to(count));
        }
        self.clocks.read();
        Poll::Ready(Ok(()))
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
        // What TLS holds was written, and waits for the client all the same.
        match &flushed {
            Poll::Ready(Ok(())) => self.clocks.flushed(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.clocks.blocked(),
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.clocks.has_left_http() {
            return Pin::new(&mut self.socket).poll_shutdown(cx);
        }
        if self.clocks.phase() != Phase::Closing {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.clocks.enter(Phase::Closing);
        }
        if let Closing::Open = self.closing {
            self.closing = Closing::Lingering(Linger::begin());
        }
        self.poll_linger(cx).map(Ok)
    }
}

impl Drop for Io {
    /// What is dropped before it was shut down was cut. To a client of HTTP/1.0 that may look like the end of
    /// a whole body, which a cache would keep; a reset does not (RFC 9112, section 8).
    fn drop(&mut self) {
        if self.clocks.would_end_response() {
            self.socket.reset_on_drop();
        }
    }
}
