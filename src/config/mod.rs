//! The configuration: reads TOML, environment variables and arguments into the settings of each module.
//!
//! No other module knows TOML or the names of variables. [`load`] reads and validates, and changes nothing;
//! [`Config::prepare`] creates the state directory and the session key if they are missing.

mod build;
mod environment;
mod file;
mod keys;
mod problem;
mod read;
mod secret;
mod state;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::admin::config::TokenSource;
use crate::secret::Secret;
use crate::session::cookie::Attributes;
use crate::session::key_ring::KeyRing;
use crate::session::policy::Policy;
use crate::{admin, api, audit, log, proxy, server, store, telemetry};

use build::{Context, Site};
use file::File;
use problem::{Problems, SourceText};

pub use environment::Environment;
pub use keys::generate as generate_key;
pub(crate) use keys::{KeyError, Keys};
pub(crate) use problem::{Place, Problem};

/// Everything that is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The public listeners: at least one, no two at one address, none at that of `api` or `admin`.
    pub(crate) listen: Vec<Listen>,
    /// Limits of the connections to each listener.
    pub(crate) limits: server::Limits,
    /// The session API.
    pub(crate) api: api::config::Config,
    /// The admin listener.
    pub(crate) admin: admin::config::Config,
    /// The session policy.
    pub(crate) policy: Policy,
    /// The source of the key ring.
    pub(crate) keys: Keys,
    /// The session cookie.
    pub(crate) cookie: Attributes,
    /// The store.
    pub(crate) store: store::config::Config,
    /// The public proxy and its routes.
    pub(crate) proxy: proxy::config::Config,
    /// The log.
    pub(crate) log: log::Config,
    /// The audit trail.
    pub(crate) audit: audit::Config,
    /// The export of spans, if there is a collector.
    pub(crate) telemetry: Option<telemetry::Config>,
    /// The state directory, if a path in it is used.
    pub(crate) state_directory: Option<PathBuf>,
}

/// A public listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Its address.
    pub(crate) address: server::Address,
    /// The mode of a Unix socket's file, at most 0777; `None` leaves it to the umask.
    pub(crate) socket_mode: Option<u32>,
    /// Whether trusted proxies begin each connection with a PROXY header.
    pub(crate) proxy_protocol: bool,
    /// What it serves.
    pub(crate) role: Role,
}

/// What a public listener serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The site, by HTTP/1.
    Http1,
    /// The site, by HTTP/1, or by HTTP/2 to clients with prior knowledge.
    Http1AndH2c,
    /// The site, by HTTP/1 or HTTP/2 over TLS.
    Tls(server::TlsConfig),
    /// Redirects to the first listener with TLS, of which there is one.
    RedirectToHttps,
}

/// Command-line arguments that override the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--upstream`: that of the one route.
    pub(crate) upstream: Option<String>,
    /// `--listen`: the address of the one public listener.
    pub(crate) listen: Option<String>,
}

/// A valid configuration.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Problems that do not prevent the start.
    pub(crate) warnings: Vec<Problem>,
    /// The effective settings, as `check` prints them.
    effective: File,
}

impl Loaded {
    /// Returns the effective configuration as TOML, with every secret hidden.
    pub fn to_toml(&self) -> String {
        let key = match &self.config.keys {
            Keys::Given(_) => String::new(),
            Keys::BesideData(path) => format!("# the session key is {}\n", path.display()),
            Keys::InMemory => "# the session key lives as long as the process\n".to_owned(),
        };
        let shown = toml::to_string(&self.effective);
        key + &shown.unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

/// All errors of an invalid configuration, displayed one per line.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one.
    pub(crate) problems: Vec<Problem>,
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

/// Loads and validates a configuration, including the files of secrets and certificates. Changes nothing.
///
/// Arguments override variables, and variables the file. Without `path`, defaults take its place.
///
/// # Errors
/// Lists every error found, not only the first.
pub fn load(
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    load_for(Site::Needed, path, environment, overrides)
}

/// Like [`load`], for commands that serve no site: routes without an upstream are left out.
pub(crate) fn load_without_site(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<Loaded, ConfigError> {
    load_for(Site::NotNeeded, path, environment, &Overrides::default())
}

/// Returns the JSON Schema of the file, for editors.
pub(crate) fn schema() -> String {
    format!("{:#}", *read::SCHEMA)
}

fn load_for(
    site: Site,
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    let name = path.map(|path| path.display().to_string()).unwrap_or_default();
    let one = |problem| ConfigError { problems: vec![problem] };
    let text = match path.map(std::fs::read_to_string) {
        Some(Ok(text)) => text,
        Some(Err(error)) => {
            let message = format!("{name}: cannot be read: {error}");
            return Err(one(Problem::new("", Place::Default, message)));
        }
        None => String::new(),
    };
    let source = SourceText::new(&name, &text);
    let mut problems = Problems::default();
    let (mut assignments, unknown) = environment::assignments(environment, &mut problems);
    assignments.extend(overrides.assignments());
    let (mut file, places) =
        read::read(&source, &text, &assignments, &mut problems).map_err(one)?;
    let mut context = Context {
        environment,
        site,
        base: directory_of(path),
        whole: path.map_or(Place::Default, |_| source.whole()),
        places,
        problems,
        referenced: BTreeSet::new(),
        state_directory: None,
    };
    // Computed defaults are written into `file`, which then has the effective settings.
    let config = build::config(&mut file, &mut context);
    let Context { referenced, problems, .. } = context;
    let (mut errors, mut warnings) = (problems.errors, problems.warnings);
    // A variable that a secret refers to by `{ env = … }` is not an unknown key.
    let is_referenced =
        |place: &Place| matches!(place, Place::Variable(name) if referenced.contains(name));
    errors.extend(unknown.into_iter().filter(|problem| !is_referenced(&problem.place)));
    errors.sort_by_key(|problem| problem.place.order());
    warnings.sort_by_key(|problem| problem.place.order());
    if errors.is_empty() {
        Ok(Loaded { config, warnings, effective: file })
    } else {
        Err(ConfigError { problems: errors })
    }
}

/// Returns the directory of relative paths: the file's, or the working directory.
fn directory_of(path: Option<&Path>) -> PathBuf {
    let directory = match path.and_then(Path::parent) {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}

impl Overrides {
    fn assignments(&self) -> impl Iterator<Item = read::Assignment> {
        let arguments = [
            ("--upstream", "route", "upstream", &self.upstream),
            ("--listen", "listen", "address", &self.listen),
        ];
        arguments.into_iter().filter_map(|(name, section, key, text)| {
            // Both keys exist and take text, so this cannot fail.
            environment::assignment(section, key, text.as_ref()?, Place::Argument(name)).ok()
        })
    }
}

/// Why a valid configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The state directory is missing and cannot be created.
    #[error("cannot create the state directory {}", .path.display())]
    StateDirectory {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no key ring.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// Why the token of the admin pages that an embedded store has cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminTokenError {
    /// It can be neither read nor created.
    #[error("the admin token {} can be neither read nor created", .path.display())]
    File { path: PathBuf, source: io::Error },
    /// The file holds something else.
    #[error("{} is not an admin token; {}", .path.display(), keys::RIGHT)]
    Malformed { path: PathBuf },
}

fn generated_token(path: &Path) -> Result<Secret, AdminTokenError> {
    let failed = |source| AdminTokenError::File { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        state::create(directory).map_err(failed)?;
    }
    let token = keys::read_or_create(path).map_err(failed)?;
    match keys::parse(&token) {
        Some(_) => Ok(token),
        None => Err(AdminTokenError::Malformed { path: path.to_owned() }),
    }
}

impl Config {
    /// Creates the state directory and the session key if they are needed and missing, before the store is
    /// opened; returns the key ring.
    pub(crate) fn prepare(&self) -> Result<Arc<KeyRing>, PrepareError> {
        if let Some(path) = &self.state_directory {
            state::create(path)
                .map_err(|source| PrepareError::StateDirectory { path: path.clone(), source })?;
        }
        Ok(self.keys.open()?)
    }

    /// Returns the tokens of the admin pages, and creates that of an embedded store if it is missing. They are read
    /// again on each call.
    ///
    /// # Errors
    /// The file cannot be created, or holds no token. The process can run without the pages.
    pub(crate) fn admin_tokens(&self) -> Result<admin::config::Tokens, AdminTokenError> {
        let full = match &self.admin.token {
            TokenSource::None => None,
            TokenSource::Given(token) => Some(token.clone()),
            TokenSource::File(path) => Some(generated_token(path)?),
        };
        Ok(admin::config::Tokens { full, read: self.admin.read_token.clone() })
    }

    /// Returns the token of the admin pages, if there is one.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub(crate) fn existing_admin_token(&self) -> io::Result<Option<Secret>> {
        let given = match &self.admin.token {
            TokenSource::None => None,
            TokenSource::Given(token) => Some(token.clone()),
            TokenSource::File(path) => match std::fs::read_to_string(path) {
                Ok(token) => Some(Secret::new(token.trim().to_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", path.display()),
                    ));
                }
            },
        };
        Ok(given.or_else(|| self.admin.read_token.clone()))
    }

    /// Lists what a start creates if it is missing: the state directory, the session key, an embedded store,
    /// and the token of the admin pages.
    pub(crate) fn created_at_start(&self) -> Vec<PathBuf> {
        let key = match &self.keys {
            Keys::BesideData(path) => Some(path),
            Keys::Given(_) | Keys::InMemory => None,
        };
        let data = self.store.backend.path();
        let state = self.state_directory.as_deref();
        let token = match &self.admin.token {
            TokenSource::File(path) => Some(path.as_path()),
            TokenSource::None | TokenSource::Given(_) => None,
        };
        let paths = [state, key.map(PathBuf::as_path), data, token];
        paths.into_iter().flatten().map(Path::to_owned).collect()
    }
}
