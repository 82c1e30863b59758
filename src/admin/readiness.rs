//! Readiness: whether this instance should receive requests, and whether its store works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sessions::{Probed, Sessions};
use crate::store::health::{Access, Health, Report};
use crate::tasks::Tasks;

/// The time for which the result of a probe is valid. The store is probed at most once in this time, however many callers there
/// are.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A store whose last answers are older than this is probed before its state is shown.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The time that a page waits for such a probe. It goes on if it takes longer.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The readiness of this instance.
#[derive(Debug)]
pub(crate) struct Readiness {
    health: Arc<Health>,
    needs_store: AtomicBool,
    last: Mutex<Option<Probe>>,
}

/// A probe that is running or has ended.
#[derive(Debug)]
struct Probe {
    started: Instant,
    result: watch::Receiver<Option<Probed>>,
}

impl Probe {
    /// Returns whether its result can be used, or awaited. A probe that panicked has no result.
    fn is_current(&self) -> bool {
        let ended = self.result.borrow().is_some();
        let runs = self.result.has_changed().is_ok();
        if ended { self.started.elapsed() < PROBE_INTERVAL } else { runs }
    }
}

impl Readiness {
    /// Creates the readiness of a store. It does not count unless requests need it.
    pub(crate) fn new(health: Arc<Health>, needs_store: bool) -> Self {
        Self { health, needs_store: AtomicBool::new(needs_store), last: Mutex::default() }
    }

    /// Sets whether requests fail without the store.
    pub(crate) fn require_store(&self, needs_store: bool) {
        self.needs_store.store(needs_store, Ordering::Relaxed);
    }

    /// Returns whether the store lets this instance take traffic.
    pub(super) async fn is_ready(&self, sessions: &Sessions, tasks: &Tasks) -> bool {
        if !self.needs_store.load(Ordering::Relaxed) {
            return true;
        }
        if self.health.needs_probe() {
            self.probe(sessions, tasks).await;
        }
        self.health.is_ready()
    }

    /// Returns whether the store works now. A disk that failed a moment ago does not.
    pub(super) async fn store_works(&self, sessions: &Sessions, tasks: &Tasks) -> Probed {
        let probed = self.probe(sessions, tasks).await;
        let Some(probed) = probed else { return Probed { read: false, write: false } };
        Probed { write: probed.write && !self.health.is_down_on_disk(), ..probed }
    }

    /// Returns what the last calls say about the store, after a probe if there were none lately: without requests, a store
    /// that has become unreachable would seem to work.
    pub(super) async fn report(&self, sessions: &Sessions, tasks: &Tasks) -> Report {
        let report = self.health.report();
        let is_recent = |access: &Access| access.age().is_some_and(|age| age < MAX_AGE);
        if is_recent(&report.read) && is_recent(&report.write) {
            return report;
        }
        let probe = self.probe(sessions, tasks);
        // A probe that takes longer leaves the report as it is.
        let _ = tokio::time::timeout(PROBE_PATIENCE, probe).await;
        self.health.report()
    }

    /// Probes the store, or returns the result of a recent probe. `None` if the probe panicked.
    async fn probe(&self, sessions: &Sessions, tasks: &Tasks) -> Option<Probed> {
        let mut result = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some(probe) if probe.is_current() => probe.result.clone(),
                _ => {
                    let result = start(sessions.clone(), tasks);
                    *last = Some(Probe { started: Instant::now(), result: result.clone() });
                    result
                }
            }
        };
        *result.wait_for(Option::is_some).await.ok()?
    }
}

/// Starts a probe. It continues if its caller hangs up, since others may be waiting for it.
fn start(sessions: Sessions, tasks: &Tasks) -> watch::Receiver<Option<Probed>> {
    let (sender, result) = watch::channel(None);
    let probe = async move {
        sender.send_replace(Some(sessions.probe().await));
    };
    tasks.run(probe).detach();
    result
}
