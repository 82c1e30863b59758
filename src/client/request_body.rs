//! The body of a request on its way to an upstream, and its progress.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::body::{Activity, Body, BodyError};

/// The body of a request on its way to the upstream.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Body,
    progress: Option<Arc<Progress>>,
}

impl RequestBody {
    pub(super) fn new(body: Body) -> Self {
        if body.is_end_stream() {
            return Self { body, progress: None };
        }
        let progress = Arc::new(Progress::new());
        Self { body: body.with_request_activity(&progress.activity), progress: Some(progress) }
    }

    /// Returns the progress of the body; `None` if it is empty.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(progress) = &self.progress {
            match &polled {
                Poll::Ready(_) => progress.wait_for_upstream(),
                Poll::Pending => progress.wait_for_client(),
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

/// Progress of a request with a body: it waits for the client to send more, or, since some instant, for the upstream to
/// read what there is or to respond.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// Milliseconds after the start, or [`WAITS_FOR_CLIENT`].
    upstream_since: AtomicU64,
    activity: Arc<Activity>,
}

/// Instead of a time: the upstream is not waited for.
const WAITS_FOR_CLIENT: u64 = u64::MAX;

impl Progress {
    fn new() -> Self {
        let (start, upstream_since) = (Instant::now(), AtomicU64::new(0));
        Self { start, upstream_since, activity: Arc::new(Activity::new()) }
    }

    /// Returns the activity that the response's body shares with the request's.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    fn wait_for_upstream(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(WAITS_FOR_CLIENT - 1);
        self.upstream_since.store(since, Ordering::Relaxed);
    }

    fn wait_for_client(&self) {
        self.upstream_since.store(WAITS_FOR_CLIENT, Ordering::Relaxed);
    }

    /// Returns since when the upstream has been silent. `None` if it waits for the client.
    pub(super) fn upstream_since(&self) -> Option<Instant> {
        match self.upstream_since.load(Ordering::Relaxed) {
            WAITS_FOR_CLIENT => None,
            since => Some(self.start + Duration::from_millis(since)),
        }
    }
}
