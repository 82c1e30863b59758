//! The reaper: a task that closes the connections of a pool that are idle for too long.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::kept::KeptConnections;
use crate::tasks::Tasks;

/// Closes expired connections until the pool is dropped or the drain begins.
pub(super) async fn reap(kept: Weak<KeptConnections>, timeout: Duration, tasks: Tasks) {
    let mut next = Instant::now() + timeout;
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            () = sleep_until(next) => {}
        }
        let Some(kept) = kept.upgrade() else { return };
        next = kept.close_expired();
    }
}
