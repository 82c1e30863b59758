//! Reading bodies to their end: collected within limits, or discarded within timeouts.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{Body, CollectError};

/// Limits on reading data only to discard it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiscardTimeouts {
    pub(crate) between_reads: Duration,
    pub(crate) total: Duration,
}

/// Limits on reading the rest of a request that was answered early.
///
/// Some clients read the response only after they have sent the whole request, and would not see it if the connection
/// were closed before.
pub(crate) const UPLOAD_TIMEOUTS: DiscardTimeouts =
    DiscardTimeouts { between_reads: Duration::from_secs(5), total: Duration::from_secs(30) };

/// Reads and discards the rest of a request that was answered already, within [`UPLOAD_TIMEOUTS`].
pub(crate) async fn discard(mut rest: Incoming) {
    let DiscardTimeouts { between_reads, total } = UPLOAD_TIMEOUTS;
    let read = async {
        let next =
            async |rest: &mut Incoming| poll_fn(|cx| Pin::new(&mut *rest).poll_frame(cx)).await;
        while let Ok(Some(Ok(_))) = timeout(between_reads, next(&mut rest)).await {}
    };
    // The rest is dropped either way, which closes the connection or resets the stream.
    let _ = timeout(total, read).await;
}

/// Reads all of `body`, at most `limit` bytes, within `deadline` from now. Trailers are dropped.
///
/// # Errors
/// The body is too large, of which nothing is read if it announces its length; it took too long; or it failed.
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
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if data.len() > limit.saturating_sub(first.len() + rest.len()) {
            return Err(CollectError::TooLarge);
        }
        // A body of a single frame is not copied.
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}
