//! Command-line interface.

mod arguments;
mod health;
mod manual;
mod progress;
mod run;
mod sessions;
mod signals;
mod site;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::Runtime;

use self::arguments::{Arguments, Command};
use self::progress::Progress;
use self::signals::TerminateSignals;
use crate::app;
use crate::config::{self, Config, ConfigError, Environment, Loaded, Overrides};
use crate::demo;
use crate::log;
use crate::time::Clock;

/// The file that documents every key.
const EXAMPLE_CONFIG: &str = include_str!("../../config.example.toml");

/// Runs a command; `arguments` begins with the name of the program. Returns 0 for success, 1 for failure,
/// and 2 for invalid usage or configuration.
pub fn main(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output. If that is closed, the failure cannot be reported.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(arguments, environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = log::as_error(&failure.to_string(), receiver(environment));
            let _ = write!(io::stderr(), "{text}");
            failure.exit_code()
        }
    }
}

fn dispatch(arguments: Arguments, environment: &Environment) -> Result<(), Failure> {
    match arguments.command {
        None => run::run(None, environment, &arguments.overrides.into(), &[]),
        Some(Command::Run { file, overrides, site }) => {
            run::run(file.path(), environment, &overrides.into(), &site)
        }
        Some(Command::Check { file }) => match file.path() {
            Some(path) => check(path, environment),
            None => Err(Failure::Usage(
                "missing configuration file; usage: cloakroom check FILE".to_owned(),
            )),
        },
        Some(Command::Schema) => print(&config::schema()),
        Some(Command::ExampleConfig) => print(EXAMPLE_CONFIG.trim_end()),
        Some(Command::Completions { shell }) => {
            manual::completions(shell, &mut io::stdout()).map_err(Failure::other)
        }
        Some(Command::Man { of }) => manual::page(&of),
        Some(Command::GenerateKey) => print(config::generate_key().reveal()),
        Some(Command::ClearExpired { file }) => {
            let loaded = config::load_without_site(file.path(), environment)?;
            let _log = init_log(&loaded, environment)?;
            clear_expired(&loaded.config)
        }
        Some(Command::Sessions(command)) => sessions::run(command, environment),
        Some(Command::Health { file, url, store }) => {
            health::health(file.path(), url, store, environment)
        }
        Some(Command::Demo { port }) => run_demo(port),
    }
}

/// The reason why a command failed.
#[derive(Debug)]
enum Failure {
    /// The configuration is invalid: exit code 2.
    Configuration(ConfigError),
    /// The command line is invalid: exit code 2.
    Usage(String),
    /// Any other failure: exit code 1.
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

/// Appends the causes, each after a colon.
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

/// Returns what reads standard error.
fn receiver(environment: &Environment) -> log::Receiver {
    if environment.logs_to_journal() { log::Receiver::Journal } else { log::Receiver::File }
}

/// Initializes the log, and logs the warnings about the configuration.
fn init_log(loaded: &Loaded, environment: &Environment) -> Result<log::FlushGuard, Failure> {
    let rest = log::init(loaded.config.log, receiver(environment)).map_err(Failure::other)?;
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
    print(loaded.to_toml().trim_end())
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::other)
}

/// Creates a runtime for the command itself; workers have their own.
fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)
}

/// Removes expired sessions from the store, and prints their number. Shows progress on a terminal.
fn clear_expired(config: &Config) -> Result<(), Failure> {
    let sessions = app::open_sessions(config, Clock::System).map_err(Failure::other)?;
    let removed = runtime()?.block_on(async {
        // Without a total, progress is a count.
        let progress = Progress::new("expired entries", sessions.expired().await.ok());
        let removed = sessions.sweep(|entries| progress.set(entries)).await;
        progress.clear();
        removed
    });
    print(&removed.map_err(Failure::other)?.to_string())
}

/// Runs the demo until SIGTERM or SIGINT.
fn run_demo(port: Option<u16>) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mut signals = TerminateSignals::new().map_err(Failure::other)?;
        demo::run(demo::Options { port }, signals.received()).await.map_err(Failure::other)
    })
}
