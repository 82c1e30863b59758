//! One direction of a tunnel.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::Instant;

use super::frames::Frames;

/// What a direction holds of bytes that were read and not written.
const BUFFER: usize = 8 * 1024;

/// Which side of a direction failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("reading failed")]
    Sender(#[source] io::Error),
    #[error("writing failed")]
    Receiver(#[source] io::Error),
}

/// One direction of a tunnel. A call that is dropped loses nothing: the next goes on.
pub(super) struct Pipe {
    from: ReadHalf<TokioIo<Upgraded>>,
    to: WriteHalf<TokioIo<Upgraded>>,
    activity: Side,
    /// Of what was written.
    frames: Frames,
    buffer: Box<[u8]>,
    unwritten: Range<usize>,
}

impl Pipe {
    pub(super) fn new(
        from: ReadHalf<TokioIo<Upgraded>>,
        to: WriteHalf<TokioIo<Upgraded>>,
        activity: Side,
    ) -> Self {
        let buffer = vec![0; BUFFER].into();
        Self { from, to, activity, frames: Frames::new(), buffer, unwritten: 0..0 }
    }

    /// Passes everything until the sender closes; then the other side is closed too.
    pub(super) async fn pass(&mut self) -> Result<(), Broken> {
        while self.fill().await.map_err(Broken::Sender)? {
            self.write(usize::MAX).await.map_err(Broken::Receiver)?;
        }
        self.to.shutdown().await.map_err(Broken::Receiver)
    }

    /// Passes the rest of the frame that has begun, then `frame`.
    pub(super) async fn close(&mut self, frame: &[u8]) -> io::Result<()> {
        while !self.frames.is_between() {
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let unwritten = self.buffer.get(self.unwritten.clone()).unwrap_or_default();
            self.write(self.frames.left_of_frame(unwritten)).await?;
        }
        self.to.write_all(frame).await?;
        self.to.flush().await
    }

    /// Reads what still comes, until the sender closes.
    pub(super) async fn ignore(&mut self) -> io::Result<()> {
        while self.from.read(&mut self.buffer).await? > 0 {}
        Ok(())
    }

    /// Reads where nothing waits to be written; `false` where the sender has closed.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.unwritten.is_empty() {
            let read = self.from.read(&mut self.buffer).await?;
            self.unwritten = 0..read;
            self.activity.note();
        }
        Ok(!self.unwritten.is_empty())
    }

    /// Writes some of what waits, at most `most` bytes of it.
    async fn write(&mut self, most: usize) -> io::Result<()> {
        let waiting = self.buffer.get(self.unwritten.clone()).unwrap_or_default();
        let waiting = waiting.get(..most.min(waiting.len())).unwrap_or_default();
        let written = self.to.write(waiting).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.frames.pass(waiting.get(..written).unwrap_or_default());
        self.unwritten.start += written;
        if self.unwritten.is_empty() {
            self.to.flush().await?;
        }
        Ok(())
    }
}

/// What has come through a tunnel, and when.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds after the start.
    last: AtomicU64,
    client: AtomicBool,
}

/// Whose bytes a pipe reads.
pub(super) struct Side {
    activity: Arc<Activity>,
    is_client: bool,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), client: AtomicBool::new(false) }
    }

    pub(super) fn of_client(self: Arc<Self>) -> Side {
        Side { activity: self, is_client: true }
    }

    pub(super) fn of_upstream(self: Arc<Self>) -> Side {
        Side { activity: self, is_client: false }
    }

    /// How long nothing has come, either way.
    pub(super) fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }

    /// Whether the client has sent something since this was asked.
    pub(super) fn client_has_sent(&self) -> bool {
        self.client.swap(false, Ordering::Relaxed)
    }
}

impl Side {
    fn note(&self) {
        let now = u64::try_from(self.activity.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.activity.last.store(now, Ordering::Relaxed);
        if self.is_client {
            self.activity.client.store(true, Ordering::Relaxed);
        }
    }
}
