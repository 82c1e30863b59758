//! Batches of what an HTTP/2 connection sends: one write, and one TLS record, for the frames of many streams.
//!
//! h2 flushes the socket after each DATA frame. Here that does nothing: the connection's task flushes once it has
//! polled the connection, which then has nothing more to send.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

use super::io::ClientIo;

/// Bytes of a batch: as many as a TLS record holds.
const BATCH_BYTES: usize = 16 * 1024;

/// A client's socket that sends in batches. A clone is the same socket.
#[derive(Clone, Debug)]
pub(super) struct BatchIo(Arc<Mutex<BufWriter<ClientIo>>>);

impl BatchIo {
    pub(super) fn new(io: ClientIo) -> Self {
        Self(Arc::new(Mutex::new(BufWriter::with_capacity(BATCH_BYTES, io))))
    }

    /// Sends the batch.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<ClientIo>> {
        // Never contended, since one task has all clones. A panic ends that task.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for BatchIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for BatchIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    /// Leaves it to [`Batched`].
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

/// A connection of hyper that sends in batches.
pub(super) struct Batched<C> {
    connection: C,
    io: BatchIo,
}

impl<C> Batched<C> {
    /// Sends what `connection` writes to `io`.
    pub(super) fn new(connection: C, io: BatchIo) -> Self {
        Self { connection, io }
    }

    pub(super) fn connection_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<C: Future<Output = hyper::Result<()>> + Unpin> Future for Batched<C> {
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(result);
        }
        match self.io.poll_send(cx) {
            Poll::Ready(Err(error)) => {
                // The client is gone.
                tracing::debug!(%error, "connection ended with an error");
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::super::ConnectionLimit;
    use super::super::io::Pressure;
    use super::super::state::ConnectionState;
    use super::*;
    use crate::net::socket::Socket;
    use crate::tasks::Tasks;

    /// Returns an io, and the client's end of its socket.
    fn connected() -> (BatchIo, Arc<ConnectionState>, UnixStream) {
        let (socket, client) = UnixStream::pair().unwrap();
        let state = Arc::new(ConnectionState::http2());
        let pressure = Pressure::new(ConnectionLimit::new(1), Tasks::new());
        let io = ClientIo::new(Socket::from(socket), Bytes::new(), Arc::clone(&state), pressure);
        (BatchIo::new(io), state, client)
    }

    fn sent_so_far(client: &UnixStream) -> usize {
        client.try_read(&mut vec![0; 64 * 1024]).unwrap_or(0)
    }

    #[tokio::test]
    async fn frames_of_one_poll_are_sent_together() {
        let (io, state, mut client) = connected();
        let mut writer = io.clone();
        let mut frames = [&b"headers "[..], b"data ", b"data"].into_iter();
        let connection = poll_fn(|cx| {
            for frame in frames.by_ref() {
                assert!(Pin::new(&mut writer).poll_write(cx, frame).is_ready());
                assert!(Pin::new(&mut writer).poll_flush(cx).is_ready());
            }
            assert_eq!((sent_so_far(&client), state.flushes()), (0, 0));
            Poll::Pending
        });
        let mut batched = Batched::new(connection, io);
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut batched).poll(cx))).await;
        assert!(polled.is_pending());
        drop(batched);
        assert_eq!(state.flushes(), 1);
        let mut sent = String::new();
        drop(writer);
        client.read_to_string(&mut sent).await.unwrap();
        assert_eq!(sent, "headers data data");
    }

    #[tokio::test]
    async fn batch_is_bounded() {
        let (io, _state, client) = connected();
        let mut writer = io;
        poll_fn(|cx| {
            for _ in 0..20 {
                assert!(Pin::new(&mut writer).poll_write(cx, &[b'x'; 1024]).is_ready());
            }
            Poll::Ready(())
        })
        .await;
        client.readable().await.unwrap();
        assert_eq!(sent_so_far(&client), BATCH_BYTES);
    }

    #[tokio::test]
    async fn connection_ends_when_the_client_is_gone() {
        let (io, _state, client) = connected();
        drop(client);
        let mut writer = io.clone();
        let connection = poll_fn(|cx| {
            assert!(Pin::new(&mut writer).poll_write(cx, b"data").is_ready());
            Poll::Pending
        });
        assert!(Batched::new(connection, io).await.is_ok());
    }
}
