//! The `run` command: startup, reload and shutdown.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::ExitStatus;

use sd_notify::NotifyState;

use super::signals::{SignalRequest, Signals};
use super::site::{self, Site};
use super::{Failure, init_log, runtime};
use crate::app::{self, App};
use crate::config::{self, Config, ConfigError, Environment, Loaded, Overrides};
use crate::log;
use crate::net::descriptors;
use crate::server::Inherited;
use crate::time::Clock;

/// Runs the proxy until SIGTERM or SIGINT; with a command for the site, until that ends.
pub(super) fn run(
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
    site: &[OsString],
) -> Result<(), Failure> {
    // Installed first, so that a signal during startup is neither lost nor kills the process.
    let runtime = runtime()?;
    let signals = {
        let _in_runtime = runtime.enter();
        Signals::new().map_err(Failure::other)?
    };
    let loaded = config::load(path, environment, overrides)?;
    let _log = init_log(&loaded, environment)?;
    raise_descriptor_limit(&loaded.config);
    let load = || config::load(path, environment, overrides);
    let result = runtime.block_on(async {
        if site.is_empty() {
            serve(signals, loaded.config, load, pending()).await
        } else {
            serve_site(site, signals, loaded.config, load).await
        }
    });
    // An aborted startup may still wait for its store on a thread of the runtime.
    runtime.shutdown_background();
    result
}

/// Raises the limit on file descriptors. Each client connection may need another to an upstream.
fn raise_descriptor_limit(config: &Config) {
    let (limit, connections) = (descriptors::raise_limit(), config.limits.connections as u64);
    if limit < connections.saturating_mul(2) {
        tracing::warn!(
            limit,
            connections,
            "file descriptor limit is too low for limits.connections; raise it (LimitNOFILE, ulimit -n)"
        );
    }
}

/// Starts the command of the site, serves, and stops the site.
async fn serve_site(
    command: &[OsString],
    mut signals: Signals,
    config: Config,
    load: impl Fn() -> Result<Loaded, ConfigError>,
) -> Result<(), Failure> {
    let upstream = site::upstream(&config)?;
    // The proxy listens after the site does. A port that is taken is reported before the site starts.
    app::try_listeners(&config).map_err(Failure::other)?;
    let mut site = tokio::select! {
        started = Site::start(command, &upstream, &config.api.url) => started?,
        () = signals.terminate.received() => return Ok(()),
    };
    let served = serve(signals, config, load, site.ended()).await;
    site.stop().await;
    served
}

/// Serves until SIGTERM or SIGINT or until the site has ended, then drains; a signal during that aborts. SIGHUP
/// reloads, and opens the file of the audit trail again.
///
/// Startup waits for files and for the store, so it runs on a thread of its own: SIGTERM can end it,
/// and SIGHUP is handled after it.
async fn serve(
    mut signals: Signals,
    config: Config,
    load: impl Fn() -> Result<Loaded, ConfigError>,
    site_ended: impl Future<Output = io::Result<ExitStatus>>,
) -> Result<(), Failure> {
    let inherited = Inherited::of_process().map_err(Failure::other)?;
    let start = move || App::start_on(inherited, config, Clock::System);
    let mut app = tokio::select! {
        started = tokio::task::spawn_blocking(start) => {
            started.map_err(Failure::other)?.map_err(Failure::other)?
        }
        () = signals.terminate.received() => {
            tracing::info!("stopped during startup");
            return Ok(());
        }
    };
    app.announce();
    notify_systemd(NotifyState::Ready);
    let mut site_ended = pin!(site_ended);
    let outcome = loop {
        tokio::select! {
            request = signals.next() => match request {
                SignalRequest::Terminate => break Ok(()),
                SignalRequest::Reload => {
                    notify_systemd(NotifyState::Reloading);
                    // An invalid configuration does not prevent the rotation of files.
                    app.reopen_audit();
                    reload(&mut app, load());
                    notify_systemd(NotifyState::Ready);
                }
            },
            ended = &mut site_ended => break site_outcome(ended),
        }
    };
    notify_systemd(NotifyState::Stopping);
    tracing::info!("draining");
    tokio::select! {
        drained = app.shutdown() => {
            if drained { outcome } else { Err(Failure::other("drain timeout elapsed: aborted in-flight requests")) }
        }
        () = signals.terminate.received() => {
            Err(Failure::other("second signal received: aborting in-flight requests"))
        }
    }
}

/// Returns whether the end of the site is a failure.
fn site_outcome(ended: io::Result<ExitStatus>) -> Result<(), Failure> {
    let status = ended.map_err(Failure::other)?;
    tracing::info!(%status, "the site has ended");
    if status.success() { Ok(()) } else { Err(Failure::other(format!("the site ended: {status}"))) }
}

/// Notifies systemd if it has started the process (`sd_notify(3)`).
fn notify_systemd(state: NotifyState<'_>) {
    let notified = match state {
        // Since systemd 253, RELOADING=1 requires a timestamp.
        NotifyState::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        state => sd_notify::notify(&[state]),
    };
    if let Err(error) = notified {
        tracing::warn!(%error, "failed to notify systemd");
    }
}

/// Replaces the running configuration, or logs why it is kept.
fn reload(app: &mut App, loaded: Result<Loaded, ConfigError>) {
    let reloaded = loaded.map_err(Failure::from).and_then(|loaded| {
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let log = loaded.config.log;
        let unchanged = app.reload(loaded.config).map_err(Failure::other)?;
        log::reload(log);
        Ok(unchanged)
    });
    match reloaded {
        Ok(unchanged) => {
            app.reload_succeeded();
            tracing::info!("configuration reloaded");
            for key in unchanged {
                tracing::warn!(key, "changed but requires a restart; keeping the running value");
            }
        }
        Err(failure) => {
            let causes = failure.to_string();
            app.reload_failed(causes.strip_prefix("error: ").unwrap_or(&causes));
            // One event per line: a configuration may have several errors.
            for line in causes.lines() {
                tracing::error!("reload failed, keeping the running configuration: {line}");
            }
        }
    }
}
