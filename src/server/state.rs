//! The state of one connection: what it waits for, since when, and for how long it may.
//!
//! hyper has one timer for the wait for a request and for its head. Here the socket, the service and the
//! response's body record what happens, and the connection's task sleeps until a limit is exceeded. Recording costs
//! an atomic store, and no timer is reset per request: the task sleeps no longer than the shortest of the limits,
//! and so checks again before any deadline that was set in the meantime.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::Limits;
use super::tls::NegotiatedProtocol;
use crate::body::End;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client's first byte.
    Fresh,
    /// The rest of a request's head; not in HTTP/2, where requests overlap.
    Head,
    /// Responses to requests in flight; these have deadlines of their own.
    Busy,
    /// The next request.
    Idle,
    /// The client to close, after this side did; `ClientIo` has a timer for it.
    Closing,
}

/// The limit that a connection exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    /// `header_timeout`.
    Head,
    /// `idle_timeout`.
    Idle,
    /// `body_idle_timeout`: the client does not read.
    Write,
}

/// Body of a request, as its head shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// The request ended with its head.
    Complete,
    /// The request has a body.
    Pending,
}

/// Instead of a time: no write is blocked.
const NEVER: u64 = u64::MAX;

/// State of a connection, shared by its task, its socket and its response bodies.
#[derive(Debug)]
pub(super) struct ConnectionState {
    start: Instant,
    protocol: NegotiatedProtocol,
    in_flight: AtomicUsize,
    phase: AtomicU8,
    /// Start of the phase if that has a limit, or of the last write in it, in milliseconds after the start.
    since: AtomicU64,
    /// Time since which the client has not read, in milliseconds after the start, or [`NEVER`].
    blocked: AtomicU64,
    /// Whether the close of the connection ends the body of a response.
    close_delimited: AtomicBool,
    /// Whether the last request has a body.
    has_upload: AtomicBool,
    /// Number of completed flushes to the socket.
    flushes: AtomicU64,
    /// Tasks that wait for the next flush.
    waiting: Mutex<Vec<Waker>>,
    /// Whether the connection was upgraded to another protocol.
    upgraded: AtomicBool,
    /// Why the server aborts the connection while it is in use.
    abort_reason: OnceLock<End>,
}

// One thread at a time polls the connection, its service and its bodies, so no ordering is needed.
const ORDERING: Ordering = Ordering::Relaxed;

impl ConnectionState {
    pub(super) fn http1() -> Self {
        Self::new(NegotiatedProtocol::Http1, Phase::Fresh)
    }

    /// Starts after the preface.
    pub(super) fn http2() -> Self {
        Self::new(NegotiatedProtocol::Http2, Phase::Idle)
    }

    fn new(protocol: NegotiatedProtocol, phase: Phase) -> Self {
        Self {
            start: Instant::now(),
            protocol,
            in_flight: AtomicUsize::new(0),
            phase: AtomicU8::new(phase as u8),
            since: AtomicU64::new(0),
            blocked: AtomicU64::new(NEVER),
            close_delimited: AtomicBool::new(false),
            has_upload: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            waiting: Mutex::default(),
            upgraded: AtomicBool::new(false),
            abort_reason: OnceLock::new(),
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
        // The other phases have no limit, so their start is not read.
        if matches!(phase, Phase::Fresh | Phase::Head | Phase::Idle) {
            self.since.store(self.now(), ORDERING);
        }
    }

    /// Records that the head of a request has arrived.
    pub(super) fn request_started(&self, upload: Upload) {
        self.has_upload.store(upload == Upload::Pending, ORDERING);
        self.in_flight.fetch_add(1, ORDERING);
        self.enter(Phase::Busy);
    }

    /// Records that a response has ended, or will not be sent.
    pub(super) fn request_finished(&self) {
        if self.in_flight.fetch_sub(1, ORDERING) == 1 {
            self.enter(Phase::Idle);
        }
    }

    /// Records that the close of the connection will end the body of a response.
    pub(super) fn set_close_delimited(&self) {
        self.close_delimited.store(true, ORDERING);
    }

    /// Returns whether the client would mistake a close of the connection now for the end of a complete response.
    pub(super) fn close_would_end_response(&self) -> bool {
        self.close_delimited.load(ORDERING) && self.phase() != Phase::Closing
    }

    /// Records that the shutdown was announced to the client. If it is idle, the idle timeout starts again.
    pub(super) fn shutdown_announced(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Idle);
        }
    }

    /// Returns whether the client has sent nothing yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.phase() == Phase::Fresh
    }

    /// Returns whether no request is in flight, not even a part of a head, and all was written.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase(), Phase::Fresh | Phase::Idle) && !self.is_blocked()
    }

    /// Records a read. In HTTP/1, the first byte after a wait begins a head.
    pub(super) fn record_read(&self) {
        match (self.protocol, self.phase()) {
            (NegotiatedProtocol::Http1, Phase::Fresh | Phase::Idle) => self.enter(Phase::Head),
            (NegotiatedProtocol::Http1, Phase::Head | Phase::Busy | Phase::Closing)
            | (NegotiatedProtocol::Http2, _) => {}
        }
    }

    /// Records a write. Idle time counts from the last byte of a response, not from when its body ended.
    pub(super) fn record_write(&self) {
        if self.is_blocked() {
            self.blocked.store(NEVER, ORDERING);
            if self.phase() == Phase::Idle {
                self.since.store(self.now(), ORDERING);
            }
        }
    }

    pub(super) fn record_flush(&self) {
        self.record_write();
        self.flushes.fetch_add(1, ORDERING);
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns the number of completed flushes.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.load(ORDERING)
    }

    /// Wakes a task at the next completed flush.
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

    /// Returns whether bytes wait for the client to read.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(ORDERING) != NEVER
    }

    /// Returns whether the client may still be sending the body of an HTTP/1 request. An HTTP/2 stream can be reset
    /// instead.
    pub(super) fn is_uploading(&self) -> bool {
        self.protocol == NegotiatedProtocol::Http1 && self.has_upload.load(ORDERING)
    }

    /// Records that a 101 response upgrades the connection to another protocol.
    pub(super) fn set_upgraded(&self) {
        self.upgraded.store(true, ORDERING);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(ORDERING)
    }

    /// Records why the server aborts the connection while it is in use.
    pub(super) fn abort(&self, reason: End) {
        // The first reason stands.
        let _ = self.abort_reason.set(reason);
    }

    pub(super) fn abort_reason(&self) -> Option<End> {
        self.abort_reason.get().copied()
    }

    /// Records that a write waits for the client to read.
    pub(super) fn record_blocked(&self) {
        if !self.is_blocked() {
            self.blocked.store(self.now(), ORDERING);
        }
    }

    /// Completes when nothing was sent in either direction for `duration`, unless the last request had a body: some
    /// of that may still arrive after the response, and would be mistaken for the next request.
    ///
    /// Only the connection's own task may poll this. Whatever ends a request wakes that task, so no timer runs
    /// while one is in flight.
    pub(super) async fn idle_for(&self, duration: Duration) {
        let mut timer = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            let is_idle = self.phase() == Phase::Idle && self.is_idle();
            if !is_idle || self.has_upload.load(ORDERING) {
                return Poll::Pending;
            }
            let since = Duration::from_millis(self.since.load(ORDERING));
            loop {
                // A timer that was set before the last request fires early and is set again.
                ready!(timer.as_mut().poll(cx));
                let end = self.start + since + duration;
                if end <= Instant::now() {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(end);
            }
        })
        .await;
    }

    /// Completes when one of the limits is exceeded.
    pub(super) async fn expired(&self, limits: &Limits) -> Timeout {
        // At least a millisecond: a limit of zero would make the loop spin.
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

    fn deadline(&self, limits: &Limits) -> Option<(Instant, Timeout)> {
        let since = self.since.load(ORDERING);
        let blocked = self.blocked.load(ORDERING);
        // While bytes wait for the client, no other limit counts.
        let (since, limit, expired) = match self.phase() {
            _ if blocked != NEVER => (blocked, limits.body_idle_timeout, Timeout::Write),
            Phase::Fresh | Phase::Head => (since, limits.header_timeout, Timeout::Head),
            Phase::Idle => (since, limits.idle_timeout, Timeout::Idle),
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

    use super::{ConnectionState, Phase, Timeout, Upload};
    use crate::server::Limits;

    /// Returns the seconds until a limit is exceeded, and which.
    async fn expiry(state: &ConnectionState) -> (u64, Timeout) {
        let start = Instant::now();
        let expired = state.expired(&Limits::default()).await;
        (start.elapsed().as_secs(), expired)
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_limit() {
        let state = ConnectionState::http1();
        assert_eq!(expiry(&state).await, (10, Timeout::Head));
        state.record_read();
        advance(Duration::from_secs(4)).await;
        state.record_read();
        assert_eq!(
            expiry(&state).await,
            (6, Timeout::Head),
            "further bytes of a head do not extend its limit"
        );
        state.enter(Phase::Idle);
        assert_eq!(expiry(&state).await, (60, Timeout::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_set_during_the_wait_is_met() {
        let state = ConnectionState::http1();
        state.enter(Phase::Busy);
        let change = async {
            tokio::time::sleep(Duration::from_secs(61)).await;
            state.enter(Phase::Idle);
            tokio::time::sleep(Duration::from_secs(1)).await;
            state.record_read();
        };
        let ((), expired) = tokio::join!(change, expiry(&state));
        assert_eq!(expired, (72, Timeout::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn blocked_writes_have_their_own_limit() {
        let state = ConnectionState::http1();
        state.enter(Phase::Busy);
        state.record_blocked();
        state.enter(Phase::Idle);
        advance(Duration::from_secs(20)).await;
        state.record_write();
        state.record_blocked();
        assert_eq!(expiry(&state).await, (30, Timeout::Write));
        state.record_write();
        assert_eq!(expiry(&state).await, (60, Timeout::Idle), "idle since the last byte");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_starts_after_a_request_without_body() {
        let state = ConnectionState::http1();
        let work = async {
            for upload in [Upload::Complete, Upload::Complete, Upload::Pending, Upload::Complete] {
                state.request_started(upload);
                tokio::time::sleep(Duration::from_secs(5)).await;
                state.request_finished();
                tokio::time::sleep(Duration::from_secs(match upload {
                    Upload::Complete => 1,
                    Upload::Pending => 9,
                }))
                .await;
            }
        };
        let start = Instant::now();
        tokio::join!(work, state.idle_for(Duration::from_secs(2)));
        assert_eq!(start.elapsed().as_secs(), 6 + 6 + 14 + 7);
    }
}
