//! Waiting for what a server does not announce.

use std::time::{Duration, Instant};

/// Longer than anything that is waited for here should take, a failover too.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until it is so. Blocks its thread: a test that has tasks to run calls it from another.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        a_moment();
    }
}

#[expect(clippy::disallowed_methods, reason = "what is waited for is another process")]
pub(super) fn a_moment() {
    std::thread::sleep(Duration::from_millis(20));
}
