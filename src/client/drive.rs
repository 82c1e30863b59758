//! What the connections of both protocols have in common: the task that drives one, and the size of a head.

use crate::tasks::Tasks;

/// Bytes of a response's head, or of its trailers.
pub(super) const MAX_HEAD_BYTES: usize = 128 * 1024;

/// Drives a connection until it closes. Calls `on_drain` when the drain begins.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` would store the connection twice: as it is passed, and as it is polled"
)]
pub(super) fn drive(
    mut connection: impl Future<Output = hyper::Result<()>> + Unpin + Send,
    tasks: Tasks,
    on_drain: impl FnOnce() + Send + 'static,
) -> impl Future<Output = ()> + Send {
    async move {
        let closed = tokio::select! {
            biased;
            closed = &mut connection => closed,
            () = tasks.draining() => {
                on_drain();
                connection.await
            }
        };
        if let Err(error) = closed {
            // The sender of a request receives the error too; an idle connection has none.
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "upstream connection ended with an error");
        }
    }
}
