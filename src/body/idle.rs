//! The idle timeout of a body: how long it waits for its sender.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

// The two bodies of an exchange are polled on one thread, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

/// Activity of one exchange in both directions, shared by the body of its request and that of its response.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// Time of the last frame of either body, in milliseconds after the start.
    last_frame: AtomicU64,
    stage: AtomicU8,
}

/// Stage of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// The response's head has not arrived.
    Request,
    /// The response's body is being streamed.
    Response,
    /// The response has ended.
    Finished,
}

impl Activity {
    /// Starts with the request.
    pub(crate) fn new() -> Self {
        let (last_frame, stage) = (AtomicU64::new(0), AtomicU8::new(Stage::Request as u8));
        Self { start: Instant::now(), last_frame, stage }
    }

    fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, ORDERING);
    }

    fn is_responding(&self) -> bool {
        self.stage.load(ORDERING) == Stage::Response as u8
    }

    fn record_frame(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_frame.store(now, ORDERING);
    }

    fn last_frame(&self) -> Instant {
        self.start + Duration::from_millis(self.last_frame.load(ORDERING))
    }
}

/// Role of a body in its exchange.
#[derive(Debug)]
enum Side {
    /// No exchange: only frames of this body count.
    Alone,
    /// The body of a request: not limited while the response's body is streamed.
    Request(Arc<Activity>),
    /// The body of a response: frames of the request count as well.
    Response(Arc<Activity>),
}

/// Limit on the silence of a body's sender. The timer is created at the first wait, so a body that has arrived already
/// needs none.
#[derive(Debug)]
pub(super) struct IdleTimeout {
    limit: Duration,
    /// Bytes that extend the deadline by a second; `None` if each frame extends it by the whole limit.
    min_rate: Option<u64>,
    remaining: Duration,
    /// Start of the current wait.
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    side: Side,
}

impl IdleTimeout {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            min_rate: None,
            remaining: limit,
            waiting: None,
            timer: None,
            side: Side::Alone,
        }
    }

    pub(super) fn set_min_rate(&mut self, bytes_per_second: u64) {
        self.min_rate = Some(bytes_per_second.max(1));
    }

    pub(super) fn set_request(&mut self, activity: Arc<Activity>) {
        self.side = Side::Request(activity);
    }

    pub(super) fn set_response(&mut self, activity: Arc<Activity>) {
        activity.enter(Stage::Response);
        self.side = Side::Response(activity);
    }

    /// Records that the body has ended.
    pub(super) fn finish(&self) {
        if let Side::Response(activity) = &self.side {
            activity.enter(Stage::Finished);
        }
    }

    pub(super) fn record_frame(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.remaining = match self.min_rate {
            None => self.limit,
            Some(rate) => {
                let millis = (bytes as u64).saturating_mul(1000) / rate;
                let remaining = self.remaining.saturating_sub(waited);
                remaining.saturating_add(Duration::from_millis(millis)).min(self.limit)
            }
        };
        match &self.side {
            Side::Alone => {}
            Side::Request(activity) | Side::Response(activity) => activity.record_frame(),
        }
    }

    /// Completes when the sender has been silent for too long.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_new = self.waiting.is_none();
        let deadline = *self.waiting.get_or_insert_with(Instant::now) + self.remaining;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if is_new {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let deadline = match &self.side {
                Side::Request(activity) if activity.is_responding() => {
                    // The response has a limit of its own. This one starts again if the response ends first.
                    (self.waiting, self.remaining) = (Some(now), self.limit);
                    now + self.limit
                }
                Side::Response(activity) => activity.last_frame() + self.limit,
                Side::Alone | Side::Request(_) => return Poll::Ready(()),
            };
            if deadline <= now {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn sides() -> (Arc<Activity>, IdleTimeout, impl FnOnce() -> IdleTimeout) {
        let activity = Arc::new(Activity::new());
        let mut request = IdleTimeout::new(LIMIT);
        request.set_request(Arc::clone(&activity));
        let shared = Arc::clone(&activity);
        let response = move || {
            let mut response = IdleTimeout::new(LIMIT * 10);
            response.set_response(shared);
            response
        };
        (activity, request, response)
    }

    async fn expires(idle: &mut IdleTimeout) -> u64 {
        let start = Instant::now();
        poll_fn(|cx| idle.poll_expired(cx)).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_upload_is_limited_until_the_response() {
        let (_activity, mut request, _response) = sides();
        assert_eq!(expires(&mut request).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn request_body_may_be_silent_during_the_response() {
        let (_activity, mut request, response) = sides();
        request.set_min_rate(500);
        let answer = async {
            sleep(Duration::from_secs(29)).await;
            let response = response();
            sleep(Duration::from_mins(2)).await;
            response.finish();
        };
        // After the response, a full limit counts from the last time the timer fired.
        let (expired, ()) = tokio::join!(expires(&mut request), answer);
        assert!((150..=180).contains(&expired), "{expired}");
    }

    #[tokio::test(start_paused = true)]
    async fn request_frames_extend_the_response_timeout() {
        let (_activity, mut request, response) = sides();
        let mut response = response();
        let upload = async {
            for _ in 0..5 {
                sleep(Duration::from_secs(200)).await;
                request.record_frame(1);
            }
        };
        let (expired, ()) = tokio::join!(expires(&mut response), upload);
        assert_eq!(expired, 1300);
        advance(LIMIT).await;
        response.record_frame(1);
        assert_eq!(expires(&mut response).await, 300);
    }
}
