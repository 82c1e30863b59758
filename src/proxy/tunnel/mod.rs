//! Tunnels: a client and an upstream that have left HTTP for WebSocket (RFC 6455), over HTTP/1.1 or
//! over HTTP/2 (RFC 8441), with the session that was opened at the handshake.
//!
//! What goes through is not read, but for where frames begin, so that a close of ours does not fall
//! into one.

mod frames;
mod handshake;
mod pipe;

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tracing::debug;

use frames::Reason;
use pipe::{Activity, Broken, Pipe};

use crate::random;
use crate::sessions::{SessionStatus, Sessions, Tracked, WatchedSession};
use crate::tasks::Tasks;

pub(super) use handshake::{Asked, Handshake};

/// How often the session of a tunnel is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a close of ours may wait for the frame that it would fall into; with [`LOOK`], less than
/// the two seconds in which a tunnel follows its session.
const FRAME: Duration = Duration::from_millis(900);

/// How long both sides have to close, after one of them has or we have.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long the switch of protocols may take, its responses sent.
const SWITCH: Duration = Duration::from_secs(10);

/// A tunnel that is about to begin.
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) sessions: Sessions,
    /// Ends with the tunnel: until then the upstream may call the session API.
    pub(super) tracked: Option<Tracked>,
    /// What it lives by, where it does.
    pub(super) watched: Option<WatchedSession>,
    /// Ends it where nothing goes either way for so long.
    pub(super) idle_timeout: Duration,
}

impl Tunnel {
    /// Passes what comes until one side closes, the session is over, nothing comes for long, or the
    /// drain begins.
    pub(super) async fn run(self, tasks: Tasks) {
        let gauge = self.sessions.shared().metrics.tunnel_opened();
        let switched = async { tokio::try_join!(self.client, self.upstream) };
        let (client, upstream) = match timeout(SWITCH, switched).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return debug!(%error, "a tunnel did not begin"),
            Err(_elapsed) => return debug!("a tunnel did not begin in time"),
        };
        let activity = Arc::new(Activity::new());
        let (mut up, mut down) = pipes(client, upstream, &activity);
        let ends = Ends {
            sessions: self.sessions,
            watched: self.watched,
            idle_timeout: self.idle_timeout,
            activity,
            tasks,
        };
        let reason = tokio::select! {
            () = pass(&mut up, &mut down) => None,
            reason = ends.reason() => Some(reason),
        };
        if let Some(reason) = reason {
            debug!(?reason, "a tunnel is closed");
            close(&mut up, &mut down, reason).await;
        }
        drop((gauge, self.tracked));
    }
}

fn pipes(client: Upgraded, upstream: Upgraded, activity: &Arc<Activity>) -> (Pipe, Pipe) {
    let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
    let (from_upstream, to_upstream) = tokio::io::split(TokioIo::new(upstream));
    let up = Pipe::new(from_client, to_upstream, Arc::clone(activity).of_client());
    let down = Pipe::new(from_upstream, to_client, Arc::clone(activity).of_upstream());
    (up, down)
}

/// Passes both ways until one side has closed and the other had its time to, or one is broken: then the tunnel ends at
/// once.
async fn pass(up: &mut Pipe, down: &mut Pipe) {
    let (ended, other) = tokio::select! {
        ended = up.pass() => (ended, down),
        ended = down.pass() => (ended, up),
    };
    match ended {
        Err(error @ Broken::Sender(_)) => debug!(error = %causes(&error), "tunnel aborted"),
        // What the broken side has sent before ends without a wait.
        Err(Broken::Receiver(_)) | Ok(()) => {
            if let Ok(Err(error)) = timeout(GOODBYE, other.pass()).await {
                debug!(error = %causes(&error), "tunnel aborted");
            }
        }
    }
}

fn causes(error: &Broken) -> String {
    let (Broken::Sender(cause) | Broken::Receiver(cause)) = error;
    format!("{error}: {cause}")
}

/// Says to both sides that it is over, between two frames of theirs, and lets them close. Where a
/// frame does not end in time, the connection is cut.
async fn close(up: &mut Pipe, down: &mut Pipe, reason: Reason) {
    let (to_client, to_upstream) = (reason.to_client(), reason.to_upstream(random::bytes()));
    let said = async { tokio::join!(down.close(&to_client), up.close(&to_upstream)) };
    let Ok((Ok(()), Ok(()))) = timeout(FRAME, said).await else { return };
    let _ = timeout(GOODBYE, async { tokio::join!(up.ignore(), down.ignore()) }).await;
}

/// What ends a tunnel beside those who speak.
struct Ends {
    sessions: Sessions,
    watched: Option<WatchedSession>,
    idle_timeout: Duration,
    activity: Arc<Activity>,
    tasks: Tasks,
}

impl Ends {
    async fn reason(&self) -> Reason {
        loop {
            tokio::select! {
                () = self.tasks.draining() => return Reason::GoingAway,
                () = sleep(LOOK) => {}
            }
            if self.activity.idle() >= self.idle_timeout {
                return Reason::GoingAway;
            }
            let Some(watched) = self.watched else { continue };
            let used = self.activity.client_has_sent();
            if self.sessions.check(watched, used).await == SessionStatus::Ended {
                return Reason::Policy;
            }
        }
    }
}
