//! Comparison of the clock of this machine with that of the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::metrics::{ClockComparison, Metrics};
use crate::server::Tasks;
use crate::store::Store;
use crate::time::Clock;

/// Interval between comparisons.
const INTERVAL: Duration = Duration::from_secs(10);

/// Longest time that a reply may take, in milliseconds: it was sent at an unknown time within.
const MAX_ROUND_TRIP: i64 = 1000;

/// Compares the clocks from time to time, until the drain.
pub(super) async fn watch_clock(
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Metrics,
    tasks: Tasks,
) {
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            () = sleep(INTERVAL) => {}
        }
        if let Some(ahead) = compare(&*store, &clock).await {
            record(ahead, &metrics);
        }
    }
}

/// Returns by how much the clock of this machine is ahead, in milliseconds; `None` if the store does not report its own.
async fn compare(store: &dyn Store, clock: &Clock) -> Option<i64> {
    let asked = clock.now().as_millis();
    let server = store.server_time().await.ok()??.as_millis();
    let round_trip = clock.now().as_millis() - asked;
    (0..=MAX_ROUND_TRIP).contains(&round_trip).then_some(asked + round_trip / 2 - server)
}

/// Keeps the result of a comparison, and logs a difference when it is found and when it is gone.
pub(super) fn record(ahead: i64, metrics: &Metrics) {
    let differs = |comparison: Option<ClockComparison>| {
        comparison.is_some_and(|comparison| comparison.differs_since.is_some())
    };
    let before = metrics.set_clock_offset(ahead);
    match (differs(before), differs(metrics.clock())) {
        (false, true) => warn!(
            seconds_ahead = ahead / 1000,
            "the clock of this machine differs from that of Redis; synchronize both (NTP): sessions expire by ours"
        ),
        (true, false) => info!("the clock of this machine agrees with that of Redis again"),
        (false, false) | (true, true) => {}
    }
}
