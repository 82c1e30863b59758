//! How an upstream that has others beside it is: by its answers, and, where it is asked, by what it says.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Uri};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::error::{Error, Kind};
use super::pool::Pool;
use crate::body::Body;
use crate::tasks::Tasks;

/// Failures in a row after which an upstream is left alone.
const FAILURES: u32 = 3;

/// For how long, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How upstreams are asked how they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is got: one that answers with a status below 400 is well.
    pub path: PathAndQuery,
    /// How long after an answer it is asked again; it has as long to answer.
    pub interval: Duration,
}

/// Bytes of an answer that are read, so that its connection serves again.
const ANSWER_BYTES: usize = 64 * 1024;

/// Asks an upstream how it is, again and again, until nobody wants to know or the drain begins.
pub(super) async fn watch(health: Weak<Health>, check: Check, tasks: Tasks) {
    loop {
        let Some(health) = health.upgrade() else { return };
        let asked = async {
            if let Some(well) = health.ask(&check, &tasks).await {
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

/// What is known of an upstream's health.
#[derive(Debug)]
pub(super) struct Health {
    pool: Pool,
    start: Instant,
    /// In a row.
    failures: AtomicU32,
    /// How often in a row it was left alone.
    rests: AtomicU32,
    /// Until when it is, in milliseconds after the start.
    until: AtomicU64,
    /// Whether it did not answer as it should when it was last asked how it is.
    ill: AtomicBool,
}

impl Health {
    /// Of one of which nothing bad is known.
    pub(super) fn of(pool: Pool) -> Self {
        pool.counts().is_well(true);
        let (failures, rests, until, ill) = Default::default();
        Self { pool, start: Instant::now(), failures, rests, until, ill }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
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
            info!(upstream = %self.pool.target(), "an upstream answers again");
            self.pool.counts().is_well(true);
        }
    }

    /// One that cannot be connected to is left alone at once, and so is one that has not answered
    /// since it was left alone.
    pub(super) fn failed(&self, error: &Error) {
        if error.is_request_body() || error.kind() == Kind::Busy || !self.is_well() {
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
        self.pool.counts().is_well(false);
        if rests == 0 {
            warn!(upstream = %self.pool.target(), %error, "an upstream is left alone for a while");
        }
    }

    /// Whether it is well; `None` where it has so much to do that it was not asked.
    async fn ask(&self, check: &Check, tasks: &Tasks) -> Option<bool> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from(check.path.clone());
        match self.pool.fetch(request, tasks, ANSWER_BYTES, check.interval).await {
            Ok(response) => Some(response.status().as_u16() < 400),
            Err(error) if error.kind() == Kind::Busy => None,
            Err(_) => Some(false),
        }
    }

    /// Takes note of an answer to a check.
    fn found(&self, well: bool) {
        if self.ill.swap(!well, Ordering::Relaxed) != well {
            return;
        }
        self.pool.counts().is_well(well);
        let upstream = self.pool.target();
        if well {
            info!(%upstream, "an upstream is well again");
        } else {
            warn!(%upstream, "an upstream is not well; it gets no requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Config;

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_left_alone_for_longer_and_longer() {
        let target = "http://127.0.0.1:1".parse().expect("a target");
        let health = Health::of(Pool::new(target, Config::default()));
        let (connect, response) =
            (Error::with(Kind::Connect, "refused"), Error::with(Kind::Response, "closed"));
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
