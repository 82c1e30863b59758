//! Keeps a cache coherent: a connection on which the server reports changed sessions.
//!
//! `CLIENT TRACKING ON BCAST PREFIX …` pushes the name of every key of ours that changes or expires, in the order
//! of the changes. A repeated `PING` on the same connection shows that it is alive; its reply follows every
//! earlier push. So the cache is valid until [`LEASE`] after the sending of the last answered `PING`, whatever
//! happens to the connection. If it breaks or is late, the cache is emptied. What was read before the connection
//! was set up is never cached after it ([`RecordCache::clear`] moves all stamps).
//!
//! (The cache of the `redis` crate returns what was overwritten on its own connection, and keeps what was read
//! before a push that arrived first.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{MultiplexedConnection, SendError};
use redis::{PushInfo, PushKind, Value, cmd};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::deployment::Deployment;
use super::fields;
use crate::redis::config::Address;
use crate::redis::{CONNECT_TIMEOUT, Cause, Layout, Locator, Role, whole};
use crate::store::cache::RecordCache;
use crate::tasks::Tasks;

/// Time that a record is used after it was last known to be current.
pub const LEASE: Duration = Duration::from_millis(50);

/// Pause between a reply and the next `PING`: two may be late before the lease ends.
const BEAT: Duration = Duration::from_millis(15);

/// Deadline of a `PING`; the connection is closed then.
const SILENCE: Duration = Duration::from_secs(1);

/// Number of unused beats after which the next one waits until the cache is used.
const IDLE_BEATS: u32 = 200;

/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(250);

/// The primary has moved.
#[derive(Debug, thiserror::Error)]
#[error("the primary is at {0} now")]
struct Moved(Address);

/// Keeps `hot` coherent with the deployment until shutdown. In a cluster it does nothing, and
/// nothing is cached.
pub async fn track(deployment: Deployment, hot: Arc<RecordCache>, tasks: Tasks) {
    let Layout::One(locator) = &deployment.servers.layout else { return };
    let mut logged = false;
    loop {
        let watched = async {
            let (address, connection) = arm(&deployment, locator, &hot).await?;
            if std::mem::take(&mut logged) {
                info!(server = %address, "cache enabled again: invalidation connection open");
            }
            beat(connection, locator, &address, &hot).await
        };
        let ended: Result<std::convert::Infallible, Cause> = tokio::select! {
            () = tasks.draining() => return,
            ended = watched => ended,
        };
        hot.lease.end();
        hot.clear();
        if let Err(cause) = ended
            && !std::mem::replace(&mut logged, true)
        {
            let cause = whole(&*cause);
            warn!(%cause, "cache disabled: invalidation connection lost");
        }
        tokio::select! {
            () = tasks.draining() => return,
            () = sleep(PAUSE) => {}
        }
    }
}

/// Opens a connection on which every change is reported from now on.
async fn arm(
    deployment: &Deployment,
    locator: &Locator,
    hot: &Arc<RecordCache>,
) -> Result<(Address, MultiplexedConnection), Cause> {
    let address = locator.find(&deployment.servers.dialer).await?;
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    let pushed = {
        let hot = Arc::clone(hot);
        move |push: PushInfo| {
            hear(&hot, push);
            Ok::<_, SendError>(())
        }
    };
    let connected = deployment.servers.dialer.dial(&address, Role::Primary, pushed, deadline).await;
    let mut connection = connected?;
    let mut tracking = cmd("CLIENT");
    tracking.arg("TRACKING").arg("ON").arg("BCAST");
    tracking.arg("PREFIX").arg(format!("{}s:", deployment.prefix));
    tokio::time::timeout_at(deadline, tracking.query_async::<()>(&mut connection)).await??;
    // What was read until now may have changed without a report.
    hot.clear();
    Ok((address, connection))
}

/// Prolongs the lease as long as the server replies and is the primary.
async fn beat(
    mut connection: MultiplexedConnection,
    locator: &Locator,
    address: &Address,
    hot: &RecordCache,
) -> Result<std::convert::Infallible, Cause> {
    let mut idle = 0;
    loop {
        let sent = Instant::now();
        if locator.is_superseded(address) {
            return Err("the sentinels announce another primary".into());
        }
        timeout(SILENCE, cmd("PING").query_async::<Value>(&mut connection)).await??;
        if sent.elapsed() < LEASE {
            hot.lease.prolong(sent, LEASE);
        } else {
            // Late: the cache was not used for a while, and starts empty.
            debug!(late = ?sent.elapsed(), "invalidation connection was late; cache emptied");
            hot.lease.end();
            hot.clear();
        }
        idle = if hot.lease.was_wanted() { 0 } else { idle + 1 };
        let next = async {
            if idle < IDLE_BEATS {
                sleep(BEAT).await;
            } else {
                hot.lease.wanted().await;
            }
        };
        tokio::select! {
            () = next => {}
            moved = locator.moved_from(address) => return Err(Moved(moved).into()),
        }
    }
}

fn hear(hot: &RecordCache, push: PushInfo) {
    match (push.kind, push.data.first()) {
        (PushKind::Invalidate, Some(Value::Array(keys))) => {
            for key in keys {
                // Other keys may have our prefix.
                if let Some(id) = fields::id_of(key) {
                    hot.invalidate(id);
                }
            }
        }
        // FLUSHALL or FLUSHDB.
        (PushKind::Invalidate, _) => hot.clear(),
        (PushKind::Disconnection, _) => {
            hot.lease.end();
            hot.clear();
        }
        _ => {}
    }
}
