//! The configuration: TOML and the environment in, what each module consumes out.
//!
//! This module alone knows TOML, the names of variables and the defaults. [`load`] reads and checks,
//! and changes nothing; [`Config::prepare`] makes what is missing.

mod build;
mod environment;
mod field;
mod file;
mod keys;
mod problem;
mod secret;
mod show;
mod state;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use crate::session::cookie::Attributes;
use crate::session::key_ring::KeyRing;
use crate::session::policy::Policy;
use crate::store::config::Backend;
use crate::{admin, api, log, proxy, server, store, telemetry};

use build::{Context, Site};
use field::Input;
use file::File;
use problem::{Problems, Source};
use value::{Size, Timeout, Value as _};

pub use environment::Environment;
pub use keys::{KeyError, Keys, generate as generate_key};
pub use problem::{Origin, Place, Problem};

/// Everything that the process is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The public listeners: at least one, no two at one address, none at that of `api` or `admin`.
    pub listen: Vec<Listen>,
    /// What connections to each listener may take.
    pub limits: server::Limits,
    /// The session API.
    pub api: api::config::Config,
    /// The admin listener.
    pub admin: admin::config::Config,
    /// How sessions live.
    pub policy: Policy,
    /// Where the key ring comes from.
    pub keys: Keys,
    /// How the cookie is called and set.
    pub cookie: Attributes,
    /// Where records live.
    pub store: store::config::Config,
    /// The public proxy and its routes.
    pub proxy: proxy::config::Config,
    /// What is told, and how.
    pub log: log::Config,
    /// Where spans of requests go, if anywhere.
    pub telemetry: Option<telemetry::Config>,
    /// The state directory, where something lies in it.
    pub state_directory: Option<PathBuf>,
}

/// A public listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where it is.
    pub address: server::Address,
    /// The mode of a Unix socket's file, at most 0777; `None` leaves it to the process's mask.
    pub socket_mode: Option<u32>,
    /// Whether trusted proxies begin each connection with a PROXY header.
    pub proxy_protocol: bool,
    /// What it is for.
    pub role: Role,
}

/// What a public listener is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The site, by HTTP/1.
    Http1,
    /// The site, by HTTP/1, or by HTTP/2 of clients that know.
    Http1AndH2c,
    /// The site, by HTTP/1 or HTTP/2 over TLS.
    Tls(server::TlsConfig),
    /// Only to send clients to the first listener with TLS, of which there is one.
    RedirectToHttps,
}

/// What the command line puts over the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--upstream`: that of the one route.
    pub upstream: Option<String>,
    /// `--listen`: the address of the one public listener.
    pub listen: Option<String>,
}

/// A configuration that can be used.
#[derive(Debug)]
pub struct Loaded {
    /// What the process is told.
    pub config: Config,
    /// What is doubtful.
    pub warnings: Vec<Problem>,
}

/// A configuration that cannot be used: everything that is wrong with it, one line each.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file, if there is one, puts the environment and then the command line over it, and
/// checks it all. Reads the files of secrets, and changes nothing.
pub fn load(
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    load_for(Site::Needed, path, environment, overrides)
}

/// [`load`] for commands that serve no site: it may be said nowhere where that is, and routes that
/// do not say it are left out.
pub fn load_without_site(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<Loaded, ConfigError> {
    load_for(Site::NotNeeded, path, environment, &Overrides::default())
}

fn load_for(
    site: Site,
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    let name = path.map(|path| path.display().to_string()).unwrap_or_default();
    let text = match path.map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) => return Err(unreadable(&name, &error)),
        None => String::new(),
    };
    let source = Source::new(&name, &text);
    let mut problems = Problems::default();
    let mut file = parse(&source, &text, &mut problems)?;
    let unknown = environment::apply(environment, &mut file, &mut problems);
    overrides.apply(&mut file, &mut problems);
    let whole = path.map_or(Place::Default, |_| source.whole());
    let mut context = Context::new(environment, site, directory_of(path), whole, problems);
    let config = build::config(&file, &mut context);
    let Context { named, problems, .. } = context;
    let (mut errors, mut warnings) = (problems.errors, problems.warnings);
    warnings.sort_by_key(|problem| problem.origin.place.order());
    errors.extend(unknown.into_iter().filter(
        |problem| !matches!(&problem.origin.place, Place::Variable(name) if named.contains(name)),
    ));
    errors.sort_by_key(|problem| problem.origin.place.order());
    if errors.is_empty() {
        Ok(Loaded { config, warnings })
    } else {
        Err(ConfigError { problems: errors })
    }
}

fn unreadable(name: &str, error: &io::Error) -> ConfigError {
    let origin = Origin { key: String::new(), place: Place::Default };
    let message = format!("{name}: cannot be read: {error}");
    ConfigError { problems: vec![Problem { origin, message }] }
}

fn parse(source: &Source<'_>, text: &str, problems: &mut Problems) -> Result<File, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| {
        // Its `Display` repeats the line, its message does not.
        let span = error.span().unwrap_or(0..0);
        let place = source.place(&span);
        let message = unquoted(text, span.start).unwrap_or_else(|| error.message().to_owned());
        ConfigError {
            problems: vec![Problem { origin: Origin { key: String::new(), place }, message }],
        }
    })?;
    let mut file = File::default();
    Input { source, problems }.fill(&mut file, table.get_ref(), "");
    Ok(file)
}

/// What is wrong with a value that begins at `start`, if it lacks its quotes. Repeats a duration or a size,
/// and nothing else, which may be a secret.
fn unquoted(text: &str, start: usize) -> Option<String> {
    let (before, rest) = text.split_at_checked(start)?;
    let is_value = before.trim_end().ends_with(['=', '[', ',']);
    let line = rest.lines().next()?;
    let bare = line.split(['#', ',', '}', ']', '"', '\'']).next()?.trim_end();
    if !is_value {
        None
    } else if Timeout::parse(bare).is_some() || Size::parse(bare).is_some() {
        Some(format!("string values must be quoted; write \"{bare}\""))
    } else if bare.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Some("string values must be quoted".to_owned())
    } else {
        None
    }
}

/// Where relative paths lie: beside the file, or where the process was started.
fn directory_of(path: Option<&Path>) -> PathBuf {
    let directory = match path.and_then(Path::parent) {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}

impl Overrides {
    fn apply(&self, file: &mut File, problems: &mut Problems) {
        let arguments = [
            ("--upstream", "route", "upstream", &self.upstream),
            ("--listen", "listen", "address", &self.listen),
        ];
        for (name, section, key, text) in arguments {
            if let Some(text) = text {
                let place = Place::Argument(name);
                let origin = Origin { key: format!("{section}.{key}"), place };
                environment::set(file, section, key, text, origin, problems);
            }
        }
    }
}

/// Why the process cannot begin with a configuration that is right.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The state directory is not there and cannot be made.
    #[error("the state directory {} cannot be made", .path.display())]
    StateDirectory {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no key ring.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

impl Config {
    /// Makes the state directory and the session key where they are needed and missing, before the
    /// store is opened; answers the key ring.
    pub fn prepare(&self) -> Result<Arc<KeyRing>, PrepareError> {
        if let Some(path) = &self.state_directory {
            state::make(path)
                .map_err(|source| PrepareError::StateDirectory { path: path.clone(), source })?;
        }
        Ok(self.keys.open()?)
    }

    /// The files and directories that a start makes if they are missing: the state directory, the session
    /// key, and an embedded store.
    pub fn made_at_start(&self) -> Vec<PathBuf> {
        let key = match &self.keys {
            Keys::BesideData(path) => Some(path),
            Keys::Given(_) | Keys::InMemory => None,
        };
        let data = match &self.store.backend {
            Backend::Sqlite { path } | Backend::File { directory: path } => Some(path),
            Backend::Memory | Backend::Redis(_) | Backend::Cookies => None,
        };
        [self.state_directory.as_ref(), key, data].into_iter().flatten().cloned().collect()
    }

    /// The effective configuration as TOML, with every secret hidden.
    pub fn to_toml(&self) -> String {
        show::toml(self)
    }
}
