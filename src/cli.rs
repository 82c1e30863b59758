//! The commands: what was typed, and what becomes of it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use http::StatusCode;
use http::uri::PathAndQuery;
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, App};
use crate::client::{self, Target};
use crate::config::{self, Config, ConfigError, Environment, Loaded, Overrides};
use crate::demo;
use crate::log;
use crate::net::descriptors;
use crate::net::scheme::Scheme;
use crate::server::{Address, Inherited, Tasks};
use crate::time::Clock;

/// Gives sessions to a web site that has none: a reverse proxy that stands before the site, keeps the
/// sessions of its visitors, and lets the site read and write them over HTTP.
///
/// Without a command it runs, with defaults for everything but the site.
#[derive(Debug, Parser)]
#[command(name = "cloakroom", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    overrides: OverrideArguments,
}

const EXAMPLES: &str = "\
Examples:
  cloakroom --upstream http://127.0.0.1:3000     serve that site at http://127.0.0.1:8080
  cloakroom run /etc/cloakroom.toml              serve what the file says
  cloakroom check /etc/cloakroom.toml            find what is wrong with it first
  cloakroom generate-key > session-key           a key, for instances that share a store
  cloakroom health                               is the one on this machine ready?

Every key of the file can be set from the environment too, as CLOAKROOM_SESSION_IDLE_TIMEOUT=1h,
and CLOAKROOM_UPSTREAM says where the site is.

Exit codes: 0 done, 1 failure, 2 wrong usage or configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the site until SIGTERM or SIGINT, then finish the requests in flight; SIGHUP reloads
    Run {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        overrides: OverrideArguments,
    },
    /// Validate a configuration and print the effective settings
    ///
    /// Reads the files of secrets too, and changes nothing. Secrets are hidden. The environment
    /// counts, as it does for `run`.
    Check {
        #[command(flatten)]
        file: FileArgument,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Print a new session key
    ///
    /// Instances that share a store need the same key: keep it in a file that only they can read, and
    /// name it in [session] keys. A new key goes first in the list, and nobody is logged out.
    GenerateKey,
    /// Remove sessions that are over from the store
    ///
    /// The running proxy does so by itself; this is for a store that no proxy uses now.
    ClearExpired {
        #[command(flatten)]
        file: FileArgument,
    },
    /// Ask a running proxy whether it is ready: exit code 0 or 1
    ///
    /// For container health checks. It asks /ready at the admin listener.
    Health {
        #[command(flatten)]
        file: FileArgument,
        #[arg(
            long,
            value_name = "URL",
            conflicts_with_all = ["file", "config"],
            help = "Where the admin listener is, as http://127.0.0.1:8082 or unix:/run/admin.sock"
        )]
        url: Option<String>,
        /// Ask whether the store can be read and written now
        #[arg(long)]
        store: bool,
    },
    /// Show what it does: a small site with a basket and a log-in, behind the proxy
    Demo {
        #[arg(
            long,
            value_name = "PORT",
            help = "The port of the demo, on this machine only [default: 8080, or a free one]"
        )]
        port: Option<u16>,
    },
}

#[derive(Debug, Args)]
struct FileArgument {
    /// The configuration; without it, defaults and the environment
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same as FILE
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileArgument {
    fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.config.as_deref())
    }
}

#[derive(Debug, Args)]
struct OverrideArguments {
    #[arg(
        long,
        value_name = "URL",
        help = "Where the site is, as http://127.0.0.1:3000 or unix:/run/app.sock"
    )]
    upstream: Option<String>,
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Where clients reach the proxy, as 0.0.0.0:8080 or unix:/run/public.sock [default: 127.0.0.1:8080]"
    )]
    listen: Option<String>,
}

impl From<OverrideArguments> for Overrides {
    fn from(arguments: OverrideArguments) -> Self {
        Self { upstream: arguments.upstream, listen: arguments.listen }
    }
}

/// Why a command did not do what it was to do.
#[derive(Debug)]
enum Failure {
    /// What was typed or configured is wrong: exit code 2.
    Configuration(ConfigError),
    /// Likewise, of the command line.
    Usage(String),
    /// It did not work out: exit code 1.
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Other(_) => ExitCode::from(1),
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Configuration(error)
    }
}

/// With the causes, each after a colon.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(error) => error.fmt(f),
            Self::Usage(message) => write!(f, "error: {message}"),
            Self::Other(error) => {
                write!(f, "error: {error}")?;
                let mut cause = error.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

/// Does what was typed; `arguments` begins with the program's name. Answers 0 for done, 1 for failure
/// and 2 for wrong usage or configuration.
pub fn main(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output. Nobody is left to tell where that is closed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(arguments, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            failure.exit_code()
        }
    }
}

fn dispatch(arguments: Arguments, environment: &Environment) -> Result<(), Failure> {
    match arguments.command {
        None => run(None, environment, &arguments.overrides.into()),
        Some(Command::Run { file, overrides }) => run(file.path(), environment, &overrides.into()),
        Some(Command::Check { file }) => match file.path() {
            Some(path) => check(path, environment),
            None => Err(Failure::Usage("name the file to check: cloakroom check FILE".to_owned())),
        },
        Some(Command::Schema) => answer(&config::schema()),
        Some(Command::GenerateKey) => answer(config::generate_key().reveal()),
        Some(Command::ClearExpired { file }) => {
            let loaded = config::load_without_site(file.path(), environment)?;
            let _log = begin_log(&loaded)?;
            clear_expired(&loaded.config)
        }
        Some(Command::Health { file, url, store }) => health(file.path(), url, store, environment),
        Some(Command::Demo { port }) => show_demo(port),
    }
}

fn run(
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<(), Failure> {
    // Before anything else: a signal that comes during the start is not lost, nor does it kill.
    let runtime = runtime()?;
    let signals = {
        let _in_runtime = runtime.enter();
        Signals::new().map_err(Failure::other)?
    };
    let loaded = config::load(path, environment, overrides)?;
    let _log = begin_log(&loaded)?;
    raise_limit(&loaded.config);
    let load = || config::load(path, environment, overrides);
    let ended = runtime.block_on(serve(signals, loaded.config, load));
    // A start that was given up may still wait for its store.
    runtime.shutdown_background();
    ended
}

/// Each client's connection may need one to an upstream beside it.
fn raise_limit(config: &Config) {
    let (limit, connections) = (descriptors::raise_limit(), config.limits.connections as u64);
    if limit < connections.saturating_mul(2) {
        tracing::warn!(
            limit,
            connections,
            "fewer descriptors than limits.connections may need; raise the limit (LimitNOFILE, ulimit -n)"
        );
    }
}

/// The log, and in it what is doubtful about the configuration.
fn begin_log(loaded: &Loaded) -> Result<log::FlushGuard, Failure> {
    let rest = log::init(loaded.config.log).map_err(Failure::other)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(rest)
}

fn check(path: &Path, environment: &Environment) -> Result<(), Failure> {
    let loaded = config::load(Some(path), environment, &Overrides::default())?;
    for warning in &loaded.warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    answer(loaded.to_toml().trim_end())
}

fn answer(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::other)
}

fn health(
    path: Option<&Path>,
    url: Option<String>,
    store: bool,
    environment: &Environment,
) -> Result<(), Failure> {
    let target = match url {
        Some(url) => url
            .strip_suffix("/ready")
            .unwrap_or(&url)
            .parse()
            .map_err(|error| Failure::Usage(format!("--url: {error}")))?,
        None => target_of(&config::load_without_site(path, environment)?.config.admin.address),
    };
    ask_whether_ready(&target, store)
}

/// How a listener is reached from this machine: one at every address, by loopback.
fn target_of(address: &Address) -> Target {
    match address {
        Address::Unix(path) => Target::Unix(path.clone()),
        Address::Tcp(address) => {
            let host = match address.ip() {
                ip if !ip.is_unspecified() => ip.to_string(),
                ip if ip.is_ipv4() => "127.0.0.1".to_owned(),
                _ => "::1".to_owned(),
            };
            Target::Http { scheme: Scheme::Http, host, port: address.port() }
        }
    }
}

/// Serves until SIGTERM or SIGINT, then drains; a second one aborts. SIGHUP reloads.
///
/// The start waits for files and the store, so it runs on a thread of its own: SIGTERM ends it, and
/// SIGHUP is served after it.
async fn serve(
    mut signals: Signals,
    config: Config,
    load: impl Fn() -> Result<Loaded, ConfigError>,
) -> Result<(), Failure> {
    let inherited = Inherited::of_process().map_err(Failure::other)?;
    let start = move || App::start_on(inherited, config, Clock::System);
    let mut app = tokio::select! {
        started = tokio::task::spawn_blocking(start) => {
            started.map_err(Failure::other)?.map_err(Failure::other)?
        }
        () = signals.end.received() => {
            tracing::info!("stopped during startup");
            return Ok(());
        }
    };
    app.announce();
    tell_manager(NotifyState::Ready);
    while signals.next().await == Told::Reload {
        tell_manager(NotifyState::Reloading);
        reload(&mut app, load());
        tell_manager(NotifyState::Ready);
    }
    tell_manager(NotifyState::Stopping);
    tracing::info!("draining");
    tokio::select! {
        drained = app.stop() => {
            if drained { Ok(()) } else { Err(Failure::other("requests in flight were cut")) }
        }
        () = signals.end.received() => {
            Err(Failure::other("told twice to end; requests in flight were cut"))
        }
    }
}

/// Tells systemd, where that has started us (`sd_notify(3)`).
fn tell_manager(state: NotifyState<'_>) {
    let told = match state {
        // Since systemd 253 it wants to know when.
        NotifyState::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|when| sd_notify::notify(&[NotifyState::Reloading, when])),
        state => sd_notify::notify(&[state]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Puts a configuration in the place of the running one, or says why that stays.
fn reload(app: &mut App, loaded: Result<Loaded, ConfigError>) {
    let reloaded = loaded.map_err(Failure::from).and_then(|loaded| {
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        app.reload(loaded.config).map_err(Failure::other)
    });
    let metrics = &app.shared.metrics;
    match reloaded {
        Ok(left) => {
            metrics.config_reloaded(Clock::System.now());
            tracing::info!("the configuration was reloaded");
            for key in left {
                tracing::warn!(key, "has changed, and needs a restart; it stays as it was");
            }
        }
        Err(failure) => {
            metrics.config_reload_failed();
            for line in failure.to_string().lines() {
                tracing::error!("the configuration stays as it was: {line}");
            }
        }
    }
}

/// The signals that the process handles.
struct Signals {
    end: EndSignals,
    hang_up: Signal,
}

/// SIGTERM and SIGINT.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

/// What a signal says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// SIGTERM and SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

impl Signals {
    /// Installs the handlers.
    fn new() -> io::Result<Self> {
        Ok(Self { end: EndSignals::new()?, hang_up: signal(SignalKind::hangup())? })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            () = self.end.received() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
        }
    }
}

impl EndSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A runtime for what the command itself waits for.
fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)
}

/// Opens the store, sweeps it, prints how many sessions were removed.
fn clear_expired(config: &Config) -> Result<(), Failure> {
    let sessions = app::open_sessions(config, Clock::System).map_err(Failure::other)?;
    let removed = runtime()?.block_on(sessions.sweep()).map_err(Failure::other)?;
    answer(&removed.to_string())
}

/// Requests /ready of the admin listener, or `/ready?store`: anything but 200 is a failure.
fn ask_whether_ready(target: &Target, store: bool) -> Result<(), Failure> {
    let path = PathAndQuery::from_static(if store { "/ready?store" } else { "/ready" });
    let answered = runtime()?.block_on(async {
        client::get(target, path, &Tasks::new(), 64 * 1024, HEALTH_DEADLINE).await
    });
    let response = answered.map_err(Failure::other)?;
    let text = String::from_utf8_lossy(response.body()).trim().to_owned();
    if response.status() == StatusCode::OK { answer(&text) } else { Err(Failure::other(text)) }
}

/// Less than what container engines give a health check by default.
const HEALTH_DEADLINE: Duration = Duration::from_secs(5);

/// Serves the demo on this machine until the process is told to end.
fn show_demo(port: Option<u16>) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mut signals = EndSignals::new().map_err(Failure::other)?;
        demo::run(demo::Options { port }, signals.received()).await.map_err(Failure::other)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_listener_is_asked_at_an_address_that_can_be_dialled() {
        for (address, target) in [
            ("127.0.0.1:8082", "http://127.0.0.1:8082"),
            ("10.0.0.7:1", "http://10.0.0.7:1"),
            ("0.0.0.0:8082", "http://127.0.0.1:8082"),
            ("[::]:8082", "http://[::1]:8082"),
            ("unix:/run/admin.sock", "unix:/run/admin.sock"),
        ] {
            assert_eq!(target_of(&address.parse().unwrap()).to_string(), target, "{address}");
        }
    }
}
