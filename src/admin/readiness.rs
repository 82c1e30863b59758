//! Whether this instance should get traffic, and whether its store works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sessions::{Probed, Sessions};
use crate::store::health::Health;
use crate::tasks::Tasks;

/// How old the result of a probe may be. However many ask, the store gets no more than one probe
/// in this time, and one at a time.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// What readiness depends on.
#[derive(Debug)]
pub struct Readiness {
    health: Arc<Health>,
    needs_store: AtomicBool,
    last: Mutex<Option<Probe>>,
}

/// A probe that runs or has ended.
#[derive(Debug)]
struct Probe {
    started: Instant,
    result: watch::Receiver<Option<Probed>>,
}

impl Probe {
    /// Whether its result may be used, or waited for. A task that panicked has none.
    fn is_current(&self) -> bool {
        let ended = self.result.borrow().is_some();
        let runs = self.result.has_changed().is_ok();
        if ended { self.started.elapsed() < PROBE_EVERY } else { runs }
    }
}

impl Readiness {
    /// Readiness as `health` tells it; if requests go through without the store, the store does
    /// not count.
    pub fn new(health: Arc<Health>, needs_store: bool) -> Self {
        Self { health, needs_store: AtomicBool::new(needs_store), last: Mutex::default() }
    }

    /// Sets whether requests fail without the store.
    pub fn require_store(&self, needs_store: bool) {
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

    /// Returns whether the store works now; a disk that failed a moment ago does not.
    pub(super) async fn store_works(&self, sessions: &Sessions, tasks: &Tasks) -> Probed {
        let probed = self.probe(sessions, tasks).await;
        let Some(probed) = probed else { return Probed { read: false, write: false } };
        Probed { write: probed.write && !self.health.is_down_on_disk(), ..probed }
    }

    /// Probes the store, or returns the result of a probe that has just been made. `None` if the
    /// probe ended without one.
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

/// Starts a probe that goes on if its asker hangs up.
fn start(sessions: Sessions, tasks: &Tasks) -> watch::Receiver<Option<Probed>> {
    let (sender, result) = watch::channel(None);
    let probe = async move {
        sender.send_replace(Some(sessions.probe().await));
    };
    tasks.run(probe).detach();
    result
}
