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

use super::frames::FrameTracker;

/// Size of the buffer of one direction, in bytes.
const BUFFER: usize = 8 * 1024;

/// The side of a pipe that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PipeError {
    #[error("failed to read")]
    Read(#[source] io::Error),
    #[error("failed to write")]
    Write(#[source] io::Error),
}

/// One direction of a tunnel. Its methods are cancel safe: the next call continues where a dropped one
/// stopped.
pub(super) struct Pipe {
    from: ReadHalf<TokioIo<Upgraded>>,
    to: WriteHalf<TokioIo<Upgraded>>,
    activity: ActivityRecorder,
    /// Frame boundaries of the written bytes.
    frames: FrameTracker,
    buffer: Box<[u8]>,
    unwritten: Range<usize>,
}

impl Pipe {
    pub(super) fn new(
        from: ReadHalf<TokioIo<Upgraded>>,
        to: WriteHalf<TokioIo<Upgraded>>,
        activity: ActivityRecorder,
    ) -> Self {
        let buffer = vec![0; BUFFER].into();
        Self { from, to, activity, frames: FrameTracker::new(), buffer, unwritten: 0..0 }
    }

    /// Copies everything until the sender closes, then closes the receiver.
    pub(super) async fn copy(&mut self) -> Result<(), PipeError> {
        while self.fill().await.map_err(PipeError::Read)? {
            self.write(usize::MAX).await.map_err(PipeError::Write)?;
        }
        self.to.shutdown().await.map_err(PipeError::Write)
    }

    /// Copies the rest of the current frame, then writes `frame`.
    pub(super) async fn send_close(&mut self, frame: &[u8]) -> io::Result<()> {
        while !self.frames.is_at_boundary() {
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let unwritten = self.buffer.get(self.unwritten.clone()).unwrap_or_default();
            self.write(self.frames.rest_of_frame(unwritten)).await?;
        }
        self.to.write_all(frame).await?;
        self.to.flush().await
    }

    /// Reads and discards until the sender closes.
    pub(super) async fn discard(&mut self) -> io::Result<()> {
        while self.from.read(&mut self.buffer).await? > 0 {}
        Ok(())
    }

    /// Reads if the buffer is empty. Returns `false` if the sender has closed.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.unwritten.is_empty() {
            let read = self.from.read(&mut self.buffer).await?;
            self.unwritten = 0..read;
            self.activity.record();
        }
        Ok(!self.unwritten.is_empty())
    }

    /// Writes a part of the buffer, at most `limit` bytes.
    async fn write(&mut self, limit: usize) -> io::Result<()> {
        let pending = self.buffer.get(self.unwritten.clone()).unwrap_or_default();
        let pending = pending.get(..limit.min(pending.len())).unwrap_or_default();
        let written = self.to.write(pending).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // Boundaries are those of the written bytes: a close frame is inserted into what the
        // receiver has got.
        self.frames.advance(pending.get(..written).unwrap_or_default());
        self.unwritten.start += written;
        // TLS and HTTP/2 buffer writes. Flushing per buffer rather than per write keeps frames
        // together.
        if self.unwritten.is_empty() {
            self.to.flush().await?;
        }
        Ok(())
    }
}

/// The recent activity of a tunnel.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Time of the last activity, in milliseconds after the start.
    last: AtomicU64,
    /// Whether the client has sent something since the last check.
    client: AtomicBool,
}

/// Records the activity of the side that a pipe reads from.
pub(super) struct ActivityRecorder {
    activity: Arc<Activity>,
    is_client: bool,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), client: AtomicBool::new(false) }
    }

    pub(super) fn client_recorder(self: Arc<Self>) -> ActivityRecorder {
        ActivityRecorder { activity: self, is_client: true }
    }

    pub(super) fn upstream_recorder(self: Arc<Self>) -> ActivityRecorder {
        ActivityRecorder { activity: self, is_client: false }
    }

    /// Returns the time since the last activity in either direction.
    pub(super) fn idle_time(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }

    /// Returns whether the client has sent something since the last call.
    pub(super) fn take_client_activity(&self) -> bool {
        self.client.swap(false, Ordering::Relaxed)
    }
}

impl ActivityRecorder {
    fn record(&self) {
        let now = u64::try_from(self.activity.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.activity.last.store(now, Ordering::Relaxed);
        if self.is_client {
            self.activity.client.store(true, Ordering::Relaxed);
        }
    }
}
