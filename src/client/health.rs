//! How an upstream that has others beside it is: by its answers, and, where it is asked, by what it says.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Uri};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::error::{Error, ErrorKind};
use super::pool::Pool;
use super::target::Target;
use crate::body::Body;
use crate::metrics::{UpstreamHealthGauge, UpstreamMetrics};
use crate::tasks::Tasks;

/// Failures in a row after which an upstream is left alone.
const FAILURES: u32 = 3;

/// For how long, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How upstreams are asked how they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is got: one that answers with a status below 400 is well.
    pub path: PathAndQuery,
    /// How long after an answer it is asked again; it has as long to answer.
    pub interval: Duration,
}

/// Bytes of an answer that are read, so that its connection serves again.
const ANSWER_BYTES: usize = 64 * 1024;

/// Checks an upstream through `pool` at each interval, until its health is dropped or the drain begins.
pub(super) async fn watch(health: Weak<Health>, pool: Pool, check: HealthCheck, tasks: Tasks) {
    loop {
        let Some(health) = health.upgrade() else { return };
        let asked = async {
            if let Some(well) = ask(&pool, &check, &tasks).await {
                health.found(well);
            }
            drop(health);
            sleep(check.interval).await;
        };
        tokio::select! {
            () = tasks.draining() => return,
            () = asked => {}
        }
    }
}

/// Sends one health check. `None` if the upstream has so much to do that it was not checked.
async fn ask(pool: &Pool, check: &HealthCheck, tasks: &Tasks) -> Option<bool> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = Uri::from(check.path.clone());
    match pool.fetch(request, tasks, ANSWER_BYTES, check.interval).await {
        Ok(response) => Some(response.status().as_u16() < 400),
        Err(error) if error.kind() == ErrorKind::Busy => None,
        Err(_) => Some(false),
    }
}

/// The health of one upstream of a route, shared by the workers: what one of them learns holds for all.
#[derive(Debug)]
pub struct Health {
    target: Target,
    shown: UpstreamHealthGauge,
    start: Instant,
    /// In a row.
    failures: AtomicU32,
    /// How often in a row it was left alone.
    rests: AtomicU32,
    /// Until when it is, in milliseconds after the start.
    until: AtomicU64,
    /// Whether it did not answer as it should when it was last asked how it is.
    ill: AtomicBool,
    /// Whether a worker checks it.
    watched: AtomicBool,
}

impl Health {
    /// Starts as healthy, and shows its state in `metrics`.
    pub fn new(target: Target, metrics: &UpstreamMetrics) -> Self {
        let (failures, rests, until, ill, watched) = Default::default();
        let (shown, start) = (metrics.health(), Instant::now());
        Self { target, shown, start, failures, rests, until, ill, watched }
    }

    /// Whether the caller is the first to ask, and so the one that starts the checks.
    pub(super) fn starts_checks(&self) -> bool {
        !self.watched.swap(true, Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it gets requests.
    pub(super) fn is_well(&self) -> bool {
        !self.ill.load(Ordering::Relaxed) && self.now() >= self.until.load(Ordering::Relaxed)
    }

    pub(super) fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if self.rests.swap(0, Ordering::Relaxed) > 0 {
            info!(upstream = %self.target, "upstream answers again");
            self.shown.set(true);
        }
    }

    /// One that cannot be connected to is left alone at once, and so is one that has not answered
    /// since it was left alone.
    pub(super) fn failed(&self, error: &Error) {
        if error.is_request_body() || error.kind() == ErrorKind::Busy || !self.is_well() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let rests = self.rests.load(Ordering::Relaxed);
        if failures < FAILURES && rests == 0 && !error.is_connect() {
            return;
        }
        let rest = REST.saturating_mul(1 << rests.min(5)).min(LONGEST_REST);
        let millis = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        self.until.store(self.now().saturating_add(millis), Ordering::Relaxed);
        self.rests.store(rests + 1, Ordering::Relaxed);
        self.shown.set(false);
        if rests == 0 {
            warn!(upstream = %self.target, %error, "upstream ejected after repeated failures");
        }
    }

    /// Takes note of an answer to a check.
    fn found(&self, well: bool) {
        if self.ill.swap(!well, Ordering::Relaxed) != well {
            return;
        }
        self.shown.set(well);
        let upstream = &self.target;
        if well {
            info!(%upstream, "upstream passed its health check; gets requests again");
        } else {
            warn!(%upstream, "upstream failed its health check; removed from rotation");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_left_alone_for_longer_and_longer() {
        let target: Target = "http://127.0.0.1:1".parse().expect("a target");
        let health = Health::new(target, &UpstreamMetrics::default());
        let (connect, response) = (
            Error::with(ErrorKind::Connect, "refused"),
            Error::with(ErrorKind::Response, "closed"),
        );
        health.failed(&response);
        health.failed(&response);
        assert!(health.is_well());
        health.answered();
        health.failed(&response);
        assert!(health.is_well(), "not in a row");
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            health.failed(&connect);
            assert!(!health.is_well());
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(!health.is_well(), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(health.is_well(), "{seconds}");
        }
        health.answered();
        health.failed(&response);
        assert!(health.is_well(), "it begins anew");
    }
}
