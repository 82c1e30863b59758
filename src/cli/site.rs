//! The command of the site that `run` starts, for development.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::Failure;
use crate::client::Target;
use crate::config::Config;

/// The time for the site to listen.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// The time for the site to stop after SIGTERM; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which the log says what the start waits for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time for one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A running site, in a process group of its own: an interrupt from the terminal reaches only the proxy, which stops
/// the site when its requests are finished.
pub(super) struct Site {
    child: Child,
    group: Option<Pid>,
}

impl Site {
    /// Starts a command and waits until the upstream accepts connections.
    ///
    /// # Errors
    /// Another program listens there already, the command cannot be started, it ends, or it does not listen within a
    /// minute.
    pub(super) async fn start(
        command: &[OsString],
        upstream: &Target,
        api_url: &str,
    ) -> Result<Self, Failure> {
        if accepts_connections(upstream).await {
            return Err(Failure::other(format!(
                "another program already listens at {upstream}; stop it, or use another port"
            )));
        }
        let mut site = Self::spawn(command, api_url)?;
        tracing::info!(upstream = %upstream, "waiting for the site");
        let listening = async {
            if timeout(PATIENCE, accepting(upstream)).await.is_err() {
                tracing::warn!(upstream = %upstream, "still waiting for the site; check that its command listens there");
                accepting(upstream).await;
            }
        };
        let failure = tokio::select! {
            biased;
            waited = timeout(START_TIMEOUT, listening) => match waited {
                Ok(()) => return Ok(site),
                Err(_) => format!("the site does not listen at {upstream} after a minute"),
            },
            ended = site.ended() => match ended {
                Ok(status) => format!("the site ended before it listened at {upstream}: {status}"),
                Err(error) => format!("failed to wait for the site: {error}"),
            },
        };
        site.stop().await;
        Err(Failure::other(failure))
    }

    fn spawn(command: &[OsString], api_url: &str) -> Result<Self, Failure> {
        let (name, arguments) = command
            .split_first()
            .ok_or_else(|| Failure::Usage("missing command after --".to_owned()))?;
        let child = Command::new(name)
            .args(arguments)
            .env("CLOAKROOM_CLIENT_URL", api_url)
            // In a group of its own it must not read from the terminal: it would be stopped.
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Failure::other(format!("cannot start {}: {error}", name.to_string_lossy()))
            })?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { child, group })
    }

    /// Waits until the command ends.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Stops all processes of the site: with SIGTERM, and with SIGKILL if the command still runs after 10 seconds.
    pub(super) async fn stop(mut self) {
        self.signal(Signal::TERM);
        if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!("the site did not stop within 10 seconds; killing it");
        }
    }

    fn signal(&self, signal: Signal) {
        // An error means that no process is left.
        let _ = self.group.map(|group| kill_process_group(group, signal));
    }
}

/// Kills the processes that are left.
impl Drop for Site {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Returns the upstream where the site listens: the only one of the configuration.
pub(super) fn upstream(config: &Config) -> Result<Target, Failure> {
    let mut upstreams = config.proxy.routes.iter().flat_map(|route| &route.upstreams);
    match upstreams.next() {
        Some(upstream) if upstreams.all(|other| other == upstream) => Ok(upstream.clone()),
        Some(_) => Err(Failure::Usage(
            "the configuration has more than one upstream; a command can be started for one only"
                .to_owned(),
        )),
        None => Err(Failure::Usage("missing --upstream".to_owned())),
    }
}

async fn accepting(upstream: &Target) {
    while !accepts_connections(upstream).await {
        sleep(RETRY_INTERVAL).await;
    }
}

async fn accepts_connections(upstream: &Target) -> bool {
    let connected = async {
        match upstream {
            Target::Http { host, port, .. } => {
                TcpStream::connect((host.as_str(), *port)).await.is_ok()
            }
            Target::Unix(path) => UnixStream::connect(path).await.is_ok(),
        }
    };
    timeout(CONNECT_TIMEOUT, connected).await.unwrap_or(false)
}
