//! How long the sender of a body is waited for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

// The two bodies of an exchange belong to tasks of one thread, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

/// Traffic of one exchange in both directions, shared by the body of its request and that of its response.
#[derive(Debug)]
pub(crate) struct Traffic {
    start: Instant,
    /// When a frame of either body last came, in milliseconds after the start.
    last: AtomicU64,
    stage: AtomicU8,
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// The response's head has not arrived.
    Request,
    /// The response's body is on its way.
    Response,
    /// The response is over.
    Over,
}

impl Traffic {
    /// Creates the traffic of an exchange whose request is being sent.
    pub(crate) fn new() -> Self {
        let (last, stage) = (AtomicU64::new(0), AtomicU8::new(Stage::Request as u8));
        Self { start: Instant::now(), last, stage }
    }

    fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, ORDERING);
    }

    fn is_answered(&self) -> bool {
        self.stage.load(ORDERING) == Stage::Response as u8
    }

    fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, ORDERING);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(ORDERING))
    }
}

/// Part of a body in its exchange.
#[derive(Debug)]
enum Side {
    /// The body is all that counts.
    Alone,
    /// The body of a request: not limited while the response's body is on its way.
    Request(Arc<Traffic>),
    /// The body of a response: frames of the request count as well.
    Response(Arc<Traffic>),
}

/// Limit of the silence of a body. The timer exists from the first wait on, so a body that is all there costs none.
#[derive(Debug)]
pub(super) struct Idle {
    limit: Duration,
    /// Bytes that buy a second; `None` if any buy all of the limit.
    rate: Option<u64>,
    left: Duration,
    waiting: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    side: Side,
}

impl Idle {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, rate: None, left: limit, waiting: None, timer: None, side: Side::Alone }
    }

    pub(super) fn demand(&mut self, rate: u64) {
        self.rate = Some(rate.max(1));
    }

    pub(super) fn asks(&mut self, traffic: Arc<Traffic>) {
        self.side = Side::Request(traffic);
    }

    pub(super) fn answers(&mut self, traffic: Arc<Traffic>) {
        traffic.enter(Stage::Response);
        self.side = Side::Response(traffic);
    }

    /// Records that the body is over.
    pub(super) fn over(&self) {
        if let Side::Response(traffic) = &self.side {
            traffic.enter(Stage::Over);
        }
    }

    /// Records a frame.
    pub(super) fn came(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.left = match self.rate {
            None => self.limit,
            Some(rate) => {
                let millis = (bytes as u64).saturating_mul(1000) / rate;
                let left = self.left.saturating_sub(waited);
                left.saturating_add(Duration::from_millis(millis)).min(self.limit)
            }
        };
        match &self.side {
            Side::Alone => {}
            Side::Request(traffic) | Side::Response(traffic) => traffic.note(),
        }
    }

    /// Completes when the sender has been silent for too long.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_new = self.waiting.is_none();
        let deadline = *self.waiting.get_or_insert_with(Instant::now) + self.left;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if is_new {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let deadline = match &self.side {
                Side::Request(traffic) if traffic.is_answered() => {
                    // The response's own limit holds; this one begins again if the response ends first.
                    (self.waiting, self.left) = (Some(now), self.limit);
                    now + self.limit
                }
                Side::Response(traffic) => traffic.last() + self.limit,
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

    fn sides() -> (Arc<Traffic>, Idle, impl FnOnce() -> Idle) {
        let traffic = Arc::new(Traffic::new());
        let mut request = Idle::new(LIMIT);
        request.asks(Arc::clone(&traffic));
        let shared = Arc::clone(&traffic);
        let response = move || {
            let mut response = Idle::new(LIMIT * 10);
            response.answers(shared);
            response
        };
        (traffic, request, response)
    }

    async fn expires(idle: &mut Idle) -> u64 {
        let began = Instant::now();
        poll_fn(|cx| idle.poll_expired(cx)).await;
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_upload_is_limited_until_the_answer() {
        let (_traffic, mut request, _response) = sides();
        assert_eq!(expires(&mut request).await, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn request_body_may_be_silent_beside_its_answer() {
        let (_traffic, mut request, response) = sides();
        request.demand(500);
        let answer = async {
            sleep(Duration::from_secs(29)).await;
            let response = response();
            sleep(Duration::from_mins(2)).await;
            response.over();
        };
        // Once the response is over, the silence of a full limit is counted from the last look.
        let (expired, ()) = tokio::join!(expires(&mut request), answer);
        assert!((150..=180).contains(&expired), "{expired}");
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_the_request_keep_the_response() {
        let (_traffic, mut request, response) = sides();
        let mut response = response();
        let upload = async {
            for _ in 0..5 {
                sleep(Duration::from_secs(200)).await;
                request.came(1);
            }
        };
        let (expired, ()) = tokio::join!(expires(&mut response), upload);
        assert_eq!(expired, 1300);
        advance(LIMIT).await;
        response.came(1);
        assert_eq!(expires(&mut response).await, 300);
    }
}
