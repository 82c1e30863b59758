//! The clocks of one connection: what it waits for, since when, and when that has lasted too long.
//!
//! hyper has one timer for the wait for a request and for its head. Here the socket, the service and the
//! response's body record what happens; the connection's task asks when the time is up. Recording costs an
//! atomic store, and no timer is moved per request: the task sleeps no longer than the shortest of the limits,
//! and so looks again before any deadline that was set meanwhile.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Limits;
use crate::body::End;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first byte of all.
    Fresh,
    /// The rest of a request's head; not in HTTP/2, where requests overlap.
    Head,
    /// Requests are being answered; their own deadlines hold.
    Busy,
    /// The next request.
    Idle,
    /// The client to close, after we did; the socket has a clock for it.
    Closing,
}

/// The deadline that a connection missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// Of a request's head.
    Head,
    /// Between requests.
    Idle,
    /// Of bytes that the client does not take.
    Write,
}

/// No write waits.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Clocks {
    start: Instant,
    /// Whether the first byte after a wait is that of a head.
    heads: bool,
    in_flight: AtomicUsize,
    phase: AtomicU8,
    /// When the phase began, or the connection was last written to in it: milliseconds after the start.
    since: AtomicU64,
    /// Since when bytes wait for the client, in milliseconds after the start, or [`NEVER`].
    blocked: AtomicU64,
    /// Whether the client takes the connection's end for that of the response.
    ends_response: AtomicBool,
    /// Whether the last request was over with its head.
    whole: AtomicBool,
    /// How often all that was written has gone to the client.
    flushes: AtomicU64,
    /// Tasks that wait for the next time.
    waiting: Mutex<Vec<Waker>>,
    /// Whether the connection belongs to another protocol now.
    has_left_http: AtomicBool,
    /// Why the server ends the connection while it is in use.
    cut: OnceLock<End>,
}

// One thread at a time has the connection, its service and its body, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

impl Clocks {
    pub(super) fn http1() -> Self {
        Self::new(Phase::Fresh)
    }

    /// As of after the preface.
    pub(super) fn http2() -> Self {
        Self { heads: false, ..Self::new(Phase::Idle) }
    }

    fn new(phase: Phase) -> Self {
        Self {
            start: Instant::now(),
            heads: true,
            in_flight: AtomicUsize::new(0),
            phase: AtomicU8::new(phase as u8),
            since: AtomicU64::new(0),
            blocked: AtomicU64::new(NEVER),
            ends_response: AtomicBool::new(false),
            whole: AtomicBool::new(true),
            flushes: AtomicU64::new(0),
            waiting: Mutex::default(),
            has_left_http: AtomicBool::new(false),
            cut: OnceLock::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(ORDERING) {
            phase if phase == Phase::Fresh as u8 => Phase::Fresh,
            phase if phase == Phase::Head as u8 => Phase::Head,
            phase if phase == Phase::Idle as u8 => Phase::Idle,
            phase if phase == Phase::Closing as u8 => Phase::Closing,
            _ => Phase::Busy,
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, ORDERING);
        self.since.store(self.now(), ORDERING);
    }

    /// A request's head is there, and whether that is the whole request.
    pub(super) fn begin(&self, is_whole: bool) {
        self.whole.store(is_whole, ORDERING);
        self.in_flight.fetch_add(1, ORDERING);
        self.enter(Phase::Busy);
    }

    /// A response has ended, or will never.
    pub(super) fn finish(&self) {
        if self.in_flight.fetch_sub(1, ORDERING) == 1 {
            self.enter(Phase::Idle);
        }
    }

    /// A response goes out that has no other end than the connection's.
    pub(super) fn ends_response(&self) {
        self.ends_response.store(true, ORDERING);
    }

    /// Whether the client would take an end of the connection now for that of a whole response.
    pub(super) fn would_end_response(&self) -> bool {
        self.ends_response.load(ORDERING) && self.phase() != Phase::Closing
    }

    /// The client is told that there will be no next request; where it waits for nothing, it has as long as
    /// that limit to take its leave.
    pub(super) fn shut_down(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Idle);
        }
    }

    /// Whether the client has sent nothing yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.phase() == Phase::Fresh
    }

    /// Whether the client waits for nothing and has sent nothing.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase(), Phase::Fresh | Phase::Idle) && self.blocked.load(ORDERING) == NEVER
    }

    /// Bytes came. The first of a head start its clock; those of a body do not.
    pub(super) fn read(&self) {
        if self.heads && matches!(self.phase(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Head);
        }
    }

    /// Bytes went. While the end of a response is on its way, the connection is not idle yet.
    pub(super) fn wrote(&self) {
        if self.blocked.load(ORDERING) != NEVER {
            self.blocked.store(NEVER, ORDERING);
            if self.phase() == Phase::Idle {
                self.since.store(self.now(), ORDERING);
            }
        }
    }

    /// Records that all that was written has gone.
    pub(super) fn flushed(&self) {
        self.wrote();
        self.flushes.fetch_add(1, ORDERING);
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns how often all that was written has gone.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(ORDERING)
    }

    /// Has a task woken when all that was written has gone.
    pub(super) fn wake_at_flush(&self, waker: &Waker) {
        let mut waiting = self.waiting();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether bytes wait for the client to take some.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(ORDERING) != NEVER
    }

    /// Returns whether the last request had a body, of which some may be to come. A stream of HTTP/2 has an end of its
    /// own.
    pub(super) fn is_uploading(&self) -> bool {
        self.heads && !self.whole.load(ORDERING)
    }

    /// Records that the connection leaves HTTP with the response that goes out now.
    pub(super) fn leave_http(&self) {
        self.has_left_http.store(true, ORDERING);
    }

    /// Returns whether the connection has left HTTP.
    pub(super) fn has_left_http(&self) -> bool {
        self.has_left_http.load(ORDERING)
    }

    /// Records why the server ends the connection while it is in use; the first reason stands.
    pub(super) fn cut(&self, reason: End) {
        let _ = self.cut.set(reason);
    }

    /// Returns why the server has ended the connection while it was in use.
    pub(super) fn cut_for(&self) -> Option<End> {
        self.cut.get().copied()
    }

    /// Bytes wait for the client to take some.
    pub(super) fn blocked(&self) {
        if self.blocked.load(ORDERING) == NEVER {
            self.blocked.store(self.now(), ORDERING);
        }
    }

    /// Completes when nothing has been on its way, in either direction, for so long. Not after a request with a
    /// body: when its response is over, some of that may be to come, and would be taken for the next request.
    ///
    /// To be polled by the connection's own task: whatever ends its work wakes that, so no timer runs meanwhile.
    pub(super) async fn rests(&self, long: Duration) {
        let mut timer = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            let rests = self.phase() == Phase::Idle && self.is_idle() && self.whole.load(ORDERING);
            if !rests {
                return Poll::Pending;
            }
            let since = Duration::from_millis(self.since.load(ORDERING));
            loop {
                // One that was set before the last request is early, and is set again.
                ready!(timer.as_mut().poll(cx));
                let end = self.start + since + long;
                if end <= Instant::now() {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(end);
            }
        })
        .await;
    }

    /// Completes when one of the limits is exceeded.
    pub(super) async fn expired(&self, limits: &Limits) -> Expired {
        let shortest = limits
            .header_timeout
            .min(limits.idle_timeout)
            .min(limits.body_idle_timeout)
            .max(Duration::from_millis(1));
        loop {
            let now = Instant::now();
            let next = now + shortest;
            match self.deadline(limits) {
                Some((deadline, expired)) if deadline <= now => return expired,
                Some((deadline, _)) => sleep_until(deadline.min(next)).await,
                None => sleep_until(next).await,
            }
        }
    }

    fn deadline(&self, limits: &Limits) -> Option<(Instant, Expired)> {
        let since = self.since.load(ORDERING);
        let blocked = self.blocked.load(ORDERING);
        // While bytes wait for the client, that clock alone runs.
        let (since, limit, expired) = match self.phase() {
            _ if blocked != NEVER => (blocked, limits.body_idle_timeout, Expired::Write),
            Phase::Fresh | Phase::Head => (since, limits.header_timeout, Expired::Head),
            Phase::Idle => (since, limits.idle_timeout, Expired::Idle),
            Phase::Busy | Phase::Closing => return None,
        };
        Some((self.start + Duration::from_millis(since) + limit, expired))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Clocks, Expired, Phase};
    use crate::server::Limits;

    /// When, in seconds from now, and which of the limits is exceeded.
    async fn expiry(clocks: &Clocks) -> (u64, Expired) {
        let start = Instant::now();
        let expired = clocks.expired(&Limits::default()).await;
        (start.elapsed().as_secs(), expired)
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_limit() {
        let clocks = Clocks::http1();
        assert_eq!(expiry(&clocks).await, (10, Expired::Head));
        clocks.read();
        advance(Duration::from_secs(4)).await;
        clocks.read();
        assert_eq!(
            expiry(&clocks).await,
            (6, Expired::Head),
            "a later byte of a head gains nothing"
        );
        clocks.enter(Phase::Idle);
        assert_eq!(expiry(&clocks).await, (60, Expired::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_set_during_the_wait_is_met() {
        let clocks = Clocks::http1();
        clocks.enter(Phase::Busy);
        let change = async {
            tokio::time::sleep(Duration::from_secs(61)).await;
            clocks.enter(Phase::Idle);
            tokio::time::sleep(Duration::from_secs(1)).await;
            clocks.read();
        };
        let ((), expired) = tokio::join!(change, expiry(&clocks));
        assert_eq!(expired, (72, Expired::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_wait_for_the_client_have_a_clock_of_their_own() {
        let clocks = Clocks::http1();
        clocks.enter(Phase::Busy);
        clocks.blocked();
        clocks.enter(Phase::Idle);
        advance(Duration::from_secs(20)).await;
        clocks.wrote();
        clocks.blocked();
        assert_eq!(expiry(&clocks).await, (30, Expired::Write));
        clocks.wrote();
        assert_eq!(expiry(&clocks).await, (60, Expired::Idle), "idle from the last byte on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_begins_after_the_last_request_that_was_whole() {
        let clocks = Clocks::http1();
        let long = Duration::from_secs(2);
        let work = async {
            for whole in [true, true, false, true] {
                clocks.begin(whole);
                tokio::time::sleep(Duration::from_secs(5)).await;
                clocks.finish();
                tokio::time::sleep(Duration::from_secs(if whole { 1 } else { 9 })).await;
            }
        };
        let start = Instant::now();
        tokio::join!(work, clocks.rests(long));
        assert_eq!(start.elapsed().as_secs(), 6 + 6 + 14 + 7);
    }
}
