//! Pauses of a listener that accepts no connections, because descriptors are scarce.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use super::register::GaugeGuard;

/// The pauses of all workers on one listener.
#[derive(Debug, Default)]
pub(super) struct AcceptPauses {
    gauge: Gauge,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Workers that pause now.
    workers: usize,
    since: Option<Instant>,
    /// When a worker last accepted again.
    ended: Option<Instant>,
}

/// Pauses with less time between them are one: clients that hold all descriptors leave a few now and then.
const ONE_PAUSE: Duration = Duration::from_secs(10);

impl AcceptPauses {
    /// Creates that of a listener whose paused workers `gauge` counts.
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { gauge, state: Mutex::default() }
    }

    /// Counts a worker as accepting no connections until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> AcceptPause {
        let mut state = self.state();
        let goes_on = state.workers > 0 || state.ended.is_some_and(|at| at.elapsed() < ONE_PAUSE);
        if !goes_on {
            state.since = Some(Instant::now());
        }
        state.workers += 1;
        drop(state);
        AcceptPause { _counted: GaugeGuard::new(&self.gauge), pauses: Arc::clone(self) }
    }

    /// Returns when the listener began to pause, again and again or all the time. `None` before the first pause.
    pub(super) fn since(&self) -> Option<Instant> {
        self.state().since
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pause of one worker.
#[derive(Debug)]
pub(crate) struct AcceptPause {
    _counted: GaugeGuard,
    pauses: Arc<AcceptPauses>,
}

impl Drop for AcceptPause {
    fn drop(&mut self) {
        let mut state = self.pauses.state();
        state.workers = state.workers.saturating_sub(1);
        state.ended = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_in_quick_succession_are_one() {
        let pauses = Arc::new(AcceptPauses::default());
        assert_eq!(pauses.since(), None);
        let (one, other) = (pauses.begin(), pauses.begin());
        let since = pauses.since();
        assert!(since.is_some() && pauses.gauge.get() == 2);
        drop((one, other));
        assert_eq!(pauses.gauge.get(), 0);
        let again = pauses.begin();
        assert_eq!(pauses.since(), since);
        drop(again);
        let ended = Instant::now().checked_sub(ONE_PAUSE);
        pauses.state().ended = ended;
        let _later = pauses.begin();
        // A machine that has just started has no earlier instant.
        assert!(ended.is_none() || pauses.since() > since);
    }
}
