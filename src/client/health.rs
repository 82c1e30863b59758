//! Health of an upstream: passive, by the outcome of its requests, and active, by health checks.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Uri};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::error::{Error, ErrorKind};
use super::outgoing::{Outgoing, Reuse};
use super::pool::Pool;
use super::target::Target;
use crate::body::Body;
use crate::metrics::{UpstreamHealthGauge, UpstreamMetrics};
use crate::tasks::Tasks;

/// Consecutive failures after which an upstream is ejected.
const MAX_FAILURES: u32 = 3;

/// Duration of the first ejection; it doubles each time.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
const MAX_EJECTION: Duration = Duration::from_secs(30);

/// Health check of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    /// Path of the GET request. A status below 400 is healthy.
    pub(crate) path: PathAndQuery,
    /// Time between a response and the next check; also the timeout of a check.
    pub(crate) interval: Duration,
}

/// Minimum time between two requests that open a connection after others have failed.
const TRIAL_INTERVAL_MILLIS: u64 = 1000;

/// Bytes of a response that are read, so that its connection can be reused.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Checks an upstream through `pool` at each interval, until its health is dropped or the drain begins.
pub(super) async fn watch(health: Weak<Health>, pool: Pool, check: HealthCheck, tasks: Tasks) {
    loop {
        let Some(health) = health.upgrade() else { return };
        let checked = async {
            let reuse = if health.is_check_failing() { Reuse::Never } else { Reuse::Kept };
            health.record_check(&run(&pool, &check, reuse, &tasks).await);
            // Not held during the pause, so that the checks end once a reload has replaced the
            // upstream.
            drop(health);
            sleep(check.interval).await;
        };
        tokio::select! {
            () = tasks.draining() => return,
            () = checked => {}
        }
    }
}

/// Outcome of a health check.
enum CheckResult {
    Passed,
    /// With the cause.
    Failed(String),
    /// The limit of concurrent requests was reached, which says nothing about the upstream's health.
    Skipped,
}

/// Sends one health check.
async fn run(pool: &Pool, check: &HealthCheck, reuse: Reuse, tasks: &Tasks) -> CheckResult {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from(check.path.clone());
    let outgoing = Outgoing::new(request).on(reuse);
    match pool.fetch_outgoing(outgoing, tasks, MAX_RESPONSE_BYTES, check.interval).await {
        Ok(response) if response.status().as_u16() < 400 => CheckResult::Passed,
        Err(error) if error.kind() == ErrorKind::Busy => CheckResult::Skipped,
        Ok(response) => {
            let status = response.status();
            CheckResult::Failed(format!("the health check {} has status {status}", check.path))
        }
        Err(error) => CheckResult::Failed(error.explain()),
    }
}

/// Health of one upstream of a route, shared by the workers.
#[derive(Debug)]
pub(crate) struct Health {
    target: Target,
    gauge: UpstreamHealthGauge,
    start: Instant,
    /// Consecutive failures.
    failures: AtomicU32,
    /// Ejections since the last success.
    ejections: AtomicU32,
    /// End of the last ejection, in milliseconds after the start.
    ejected_until: AtomicU64,
    /// Time of the last failure to connect, in microseconds after the start; 0 if a connection was opened since.
    connect_failed_at: AtomicU64,
    /// Time of the last trial, in milliseconds after the start.
    tried_at: AtomicU64,
    /// Whether it failed its last health check.
    check_failing: AtomicBool,
    /// Whether a worker runs its health checks.
    is_checked: AtomicBool,
}

impl Health {
    /// Starts as healthy, and reports its state in `metrics`.
    pub(crate) fn new(target: Target, metrics: &UpstreamMetrics) -> Self {
        Self {
            target,
            gauge: metrics.health(),
            start: Instant::now(),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            connect_failed_at: AtomicU64::new(0),
            tried_at: AtomicU64::new(0),
            check_failing: AtomicBool::new(false),
            is_checked: AtomicBool::new(false),
        }
    }

    /// Returns `true` to the first caller, which has to start the health checks.
    pub(super) fn claim_checks(&self) -> bool {
        !self.is_checked.swap(true, Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether it gets requests: it passes its health check and is not ejected.
    pub(super) fn is_available(&self) -> bool {
        !self.is_check_failing() && self.now() >= self.ejected_until.load(Ordering::Relaxed)
    }

    fn is_check_failing(&self) -> bool {
        self.check_failing.load(Ordering::Relaxed)
    }

    /// Returns true to one caller in a second while connections have failed and none was opened since: its request is to
    /// open one. The others may use the connections that were open before.
    pub(super) fn claim_trial(&self) -> bool {
        if self.connect_failed_at.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let (now, last) = (self.now(), self.tried_at.load(Ordering::Relaxed));
        let is_due = now.saturating_sub(last) >= TRIAL_INTERVAL_MILLIS;
        is_due
            && self
                .tried_at
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Records a response, of any status. `opened` is a time before its connection was opened for it; `None` if the
    /// connection was open before. After a failure to connect, only a later connection shows that the upstream is back.
    pub(super) fn record_success(&self, opened: Option<Instant>) {
        let connect_failed_at = self.connect_failed_at.load(Ordering::Relaxed);
        if connect_failed_at > 0 {
            if opened.is_none_or(|opened| self.micros(opened) < connect_failed_at) {
                return;
            }
            self.connect_failed_at.store(0, Ordering::Relaxed);
        }
        self.failures.store(0, Ordering::Relaxed);
        if self.ejections.swap(0, Ordering::Relaxed) > 0 {
            info!(upstream = %self.target, "upstream recovered");
            self.publish();
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Sets the gauge: 1 if it passes its health check and has not failed since it was ejected.
    fn publish(&self) {
        self.gauge.set(!self.is_check_failing() && self.ejections.load(Ordering::Relaxed) == 0);
    }

    /// Records a failed request. The upstream is ejected after several failures, or at once if it cannot be connected to or
    /// had no success since it was last ejected.
    pub(super) fn record_failure(&self, error: &Error) {
        if error.is_connect() {
            self.connect_failed_at.store(self.micros(Instant::now()).max(1), Ordering::Relaxed);
        }
        // The first two are not the upstream's fault. Requests that fail while it is ejected were
        // in flight before, or no upstream was available: they do not prolong the ejection.
        if error.is_request_body() || error.kind() == ErrorKind::Busy || !self.is_available() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let ejections = self.ejections.load(Ordering::Relaxed);
        if failures < MAX_FAILURES && ejections == 0 && !error.is_connect() {
            return;
        }
        // The shift is bounded: 2^5 seconds exceed the maximum already.
        let ejection = FIRST_EJECTION.saturating_mul(1 << ejections.min(5)).min(MAX_EJECTION);
        let millis = u64::try_from(ejection.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until.store(self.now().saturating_add(millis), Ordering::Relaxed);
        self.ejections.store(ejections + 1, Ordering::Relaxed);
        self.gauge.set_failure(&error.explain());
        self.publish();
        if ejections == 0 {
            let cause = error.innermost().to_string();
            warn!(upstream = %self.target, %error, cause, "upstream ejected after repeated failures");
        }
    }

    fn record_check(&self, result: &CheckResult) {
        let is_failing = match result {
            CheckResult::Passed => false,
            CheckResult::Failed(cause) => {
                self.gauge.set_failure(cause);
                true
            }
            CheckResult::Skipped => return,
        };
        if self.check_failing.swap(is_failing, Ordering::Relaxed) == is_failing {
            return;
        }
        self.publish();
        let upstream = &self.target;
        if is_failing {
            warn!(%upstream, "upstream failed its health check; removed from rotation");
        } else {
            info!(%upstream, "upstream passed its health check; returned to rotation");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ejections_double_up_to_a_maximum() {
        let target: Target = "http://127.0.0.1:1".parse().expect("a target");
        let health = Health::new(target, &UpstreamMetrics::default());
        let (connect, response) = (
            Error::with(ErrorKind::Connect, "refused"),
            Error::with(ErrorKind::Response, "closed"),
        );
        health.record_failure(&response);
        health.record_failure(&response);
        assert!(health.is_available());
        health.record_success(None);
        health.record_failure(&response);
        assert!(health.is_available(), "not consecutive");
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            health.record_failure(&connect);
            assert!(!health.is_available());
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(!health.is_available(), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(health.is_available(), "{seconds}");
        }
        health.record_success(Some(Instant::now()));
        health.record_failure(&response);
        assert!(health.is_available(), "the count starts again");
    }

    #[tokio::test(start_paused = true)]
    async fn kept_connections_show_no_recovery() {
        let target: Target = "http://127.0.0.1:1".parse().expect("a target");
        let health = Health::new(target, &UpstreamMetrics::default());
        let is_ejected = || health.ejections.load(Ordering::Relaxed) > 0;
        assert!(!health.claim_trial());
        tokio::time::advance(Duration::from_secs(5)).await;
        let before = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        health.record_failure(&Error::with(ErrorKind::Connect, "refused"));
        health.record_success(None);
        health.record_success(Some(before));
        assert!(is_ejected(), "both connections were opened before the failure");
        assert!(health.claim_trial() && !health.claim_trial(), "one in a second");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(health.claim_trial());
        health.record_success(Some(Instant::now()));
        assert!(!is_ejected());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.claim_trial());
        // After failures of another kind, any response will do.
        for _ in 0..MAX_FAILURES {
            health.record_failure(&Error::with(ErrorKind::Response, "closed"));
        }
        assert!(is_ejected() && !health.claim_trial());
        health.record_success(None);
        assert!(!is_ejected());
    }
}
