//! Tunnels: WebSocket connections (RFC 6455) between a client and an upstream, over HTTP/1.1 or HTTP/2
//! (RFC 8441), with the session that was opened at the handshake.
//!
//! Payloads are not read. Only frame boundaries are tracked, so that the proxy can insert a close frame
//! between two frames.

mod frames;
mod handshake;
mod pipe;

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tracing::debug;

use frames::CloseReason;
use pipe::{Activity, Pipe, PipeError};

use crate::body::End;
use crate::metrics::Metrics;
use crate::random;
use crate::sessions::{RequestGuard, SessionStatus, WatchedSession};
use crate::tasks::Tasks;

pub(super) use handshake::{Handshake, UpgradeRequest};

/// Interval between checks of the session of a tunnel.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout for the current frame to end before a close frame is sent. Together with [`CHECK_INTERVAL`],
/// it keeps a tunnel within two seconds of the end of its session.
const FRAME_TIMEOUT: Duration = Duration::from_millis(900);

/// Timeout for the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Timeout for both connections to switch protocols after the response.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// A tunnel whose connections are about to switch protocols.
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) metrics: Metrics,
    /// Keeps the request in flight, so that the upstream can call the session API during the tunnel.
    pub(super) guard: Option<RequestGuard>,
    /// The session that the tunnel ends with, if any.
    pub(super) watched: Option<WatchedSession>,
    /// Closes the tunnel after this time without activity in either direction.
    pub(super) idle_timeout: Duration,
}

impl Tunnel {
    /// Copies in both directions until one side closes, the session ends, the tunnel is idle for too
    /// long, or the drain begins.
    pub(super) async fn run(self, tasks: Tasks) {
        let gauge = self.metrics.tunnel_opened();
        // Both futures complete once hyper has written the 101 and released the connections.
        let upgrades = async { tokio::try_join!(self.client, self.upstream) };
        let (client, upstream) = match timeout(UPGRADE_TIMEOUT, upgrades).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return debug!(%error, "failed to switch protocols for a tunnel"),
            Err(_elapsed) => return debug!("timed out while switching protocols for a tunnel"),
        };
        let activity = Arc::new(Activity::new());
        let (mut up, mut down) = pipes(client, upstream, &activity);
        let monitor =
            Monitor { watched: self.watched, idle_timeout: self.idle_timeout, activity, tasks };
        let reason = tokio::select! {
            () = copy(&mut up, &mut down) => None,
            reason = monitor.end() => Some(reason),
        };
        if let Some(reason) = reason {
            debug!(reason = reason.reason().as_str(), "closing a tunnel");
            close(&mut up, &mut down, close_reason(reason)).await;
        }
        drop((gauge, self.guard));
    }
}

fn pipes(client: Upgraded, upstream: Upgraded, activity: &Arc<Activity>) -> (Pipe, Pipe) {
    let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
    let (from_upstream, to_upstream) = tokio::io::split(TokioIo::new(upstream));
    let up = Pipe::new(from_client, to_upstream, Arc::clone(activity).client_recorder());
    let down = Pipe::new(from_upstream, to_client, Arc::clone(activity).upstream_recorder());
    (up, down)
}

/// Copies in both directions until one side has closed and the other has closed too or timed out. A
/// failed read ends the tunnel at once.
async fn copy(up: &mut Pipe, down: &mut Pipe) {
    let (ended, other) = tokio::select! {
        ended = up.copy() => (ended, down),
        ended = down.copy() => (ended, up),
    };
    match ended {
        Err(error @ PipeError::Read(_)) => {
            debug!(reason = End::Broken.reason().as_str(), error = %causes(&error), "tunnel aborted");
        }
        // The side that cannot be written to may have sent data before. If it failed, reading ends at
        // once.
        Err(PipeError::Write(_)) | Ok(()) => {
            if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, other.copy()).await {
                debug!(reason = End::Broken.reason().as_str(), error = %causes(&error), "tunnel aborted");
            }
        }
    }
}

fn causes(error: &PipeError) -> String {
    let (PipeError::Read(cause) | PipeError::Write(cause)) = error;
    format!("{error}: {cause}")
}

/// Returns what the close frames of a tunnel with this end say.
fn close_reason(end: End) -> CloseReason {
    match end {
        End::Interrupted => CloseReason::Policy,
        End::Complete | End::Broken | End::Idle | End::Stalled | End::Drained | End::Dropped => {
            CloseReason::GoingAway
        }
    }
}

/// Sends close frames to both sides at their frame boundaries, and waits for both to close. If a frame
/// does not end in time, the connections are closed without.
async fn close(up: &mut Pipe, down: &mut Pipe, reason: CloseReason) {
    let (to_client, to_upstream) = (reason.to_client(), reason.to_upstream(random::bytes()));
    let sent = async { tokio::join!(down.send_close(&to_client), up.send_close(&to_upstream)) };
    let Ok((Ok(()), Ok(()))) = timeout(FRAME_TIMEOUT, sent).await else { return };
    let _ = timeout(CLOSE_TIMEOUT, async { tokio::join!(up.discard(), down.discard()) }).await;
}

/// The conditions under which the proxy closes a tunnel.
struct Monitor {
    watched: Option<WatchedSession>,
    idle_timeout: Duration,
    activity: Arc<Activity>,
    tasks: Tasks,
}

impl Monitor {
    /// Waits until the tunnel must be closed, and returns the reason.
    async fn end(&self) -> End {
        loop {
            tokio::select! {
                () = self.tasks.draining() => return End::Drained,
                () = sleep(CHECK_INTERVAL) => {}
            }
            // WebSocket pings count as activity, so a client can keep an idle tunnel open.
            if self.activity.idle_time() >= self.idle_timeout {
                return End::Idle;
            }
            let Some(watched) = &self.watched else { continue };
            let used = self.activity.take_client_activity();
            if watched.check(used).await == SessionStatus::Ended {
                return End::Interrupted;
            }
        }
    }
}
