//! Polling for conditions that a server does not announce.

use std::time::{Duration, Instant};

/// Timeout of every wait; also long enough for a failover.
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `done` returns true. Blocks its thread: a test with tasks to run calls it from
/// another.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "it waits for another process")]
pub(super) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
