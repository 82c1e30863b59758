//! What building needs besides the keys: directories, the environment, and a place for complaints.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::environment::Environment;
use super::super::field::Field;
use super::super::problem::{Origin, Place, Problems};
use super::super::secret::Source;
use super::super::state;
use super::super::value::{Size, Timeout, write_duration, write_size};
use crate::secret::Secret;

/// Times of transport: long enough to be something, and short enough that a clock can add them.
pub(super) const TRANSPORT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_hours(24);

/// Whether the configuration is to say where the site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Site {
    Needed,
    NotNeeded,
}

/// What building needs besides the keys.
#[derive(Debug)]
pub(in super::super) struct Context<'a> {
    environment: &'a Environment,
    pub(super) site: Site,
    /// Where relative paths lie that are neither a store's nor a key's.
    base: PathBuf,
    /// The file as a whole, or nothing.
    whole: Place,
    state: Option<PathBuf>,
    state_is_used: bool,
    /// The variables that secrets name.
    pub(in super::super) named: BTreeSet<String>,
    pub(in super::super) problems: Problems,
}

impl<'a> Context<'a> {
    pub(in super::super) fn new(
        environment: &'a Environment,
        site: Site,
        base: PathBuf,
        whole: Place,
        problems: Problems,
    ) -> Self {
        Self {
            environment,
            site,
            base,
            whole,
            state: state::directory(environment),
            state_is_used: false,
            named: BTreeSet::new(),
            problems,
        }
    }

    /// What is wrong with something that is not there.
    pub(super) fn missing(&mut self, key: &str, message: &str) {
        let origin = Origin { key: key.to_owned(), place: self.whole.clone() };
        self.problems.error(&origin, message);
    }

    pub(super) fn error(&mut self, origin: &Origin, message: impl Into<String>) {
        self.problems.error(origin, message);
    }

    pub(super) fn warn(&mut self, origin: &Origin, message: impl Into<String>) {
        self.problems.warn(origin, message);
    }

    /// A path beside the file.
    pub(super) fn beside_file(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// A path in the state directory; `None`, and told, where there is none.
    pub(super) fn in_state(&mut self, path: &Path, origin: &Origin) -> Option<PathBuf> {
        if path.is_absolute() {
            return Some(path.to_owned());
        }
        let Some(state) = &self.state else {
            let message = "a relative path lies in the state directory, and none is known; set \
                           STATE_DIRECTORY, XDG_STATE_HOME or HOME, or write an absolute path";
            self.error(origin, message);
            return None;
        };
        let path = state.join(path);
        self.state_is_used = true;
        Some(path)
    }

    /// The state directory, where something lies in it.
    pub(super) fn used_state_directory(&self) -> Option<PathBuf> {
        self.state.clone().filter(|_| self.state_is_used)
    }

    /// A secret whose relative file lies beside the file.
    pub(super) fn secret(&mut self, source: &Source, origin: &Origin) -> Option<Secret> {
        match source {
            Source::Variable(name) => {
                self.named.insert(name.clone());
            }
            Source::Literal(_) => {
                let message = "the secret stands in the file, for all who read it; \
                               write { file = \"…\" } or { env = \"NAME\" }";
                self.warn(origin, message);
            }
            Source::File(_) | Source::Given(_) => {}
        }
        match source.secret(&self.base, self.environment) {
            Ok(secret) => Some(secret),
            Err(message) => {
                self.error(origin, message);
                None
            }
        }
    }

    /// A session key. A relative file is looked for beside the file, as those of other secrets, and then
    /// in the state directory, where earlier releases had it alone.
    pub(super) fn session_key(&mut self, source: &Source, origin: &Origin) -> Option<Secret> {
        let (Source::File(path), Some(state)) = (source, &self.state) else {
            return self.secret(source, origin);
        };
        let (beside, in_state) = (self.base.join(path), state.join(path));
        match (is_missing(&beside), is_missing(&in_state)) {
            (true, true) if beside != in_state => {
                let (beside, state) = (beside.display(), state.display());
                let message =
                    format!("{beside} does not exist, and the state directory {state} has none");
                self.error(origin, message);
                None
            }
            (true, false) => {
                self.state_is_used = true;
                let message = format!(
                    "is not in the directory of the configuration; {} is used instead: move it there, or write its absolute path",
                    in_state.display()
                );
                self.warn(origin, message);
                self.secret(&Source::File(in_state), origin)
            }
            (false, false) if std::fs::read(&beside).ok() != std::fs::read(&in_state).ok() => {
                let message = format!(
                    "{} differs and is not used; remove it if it is not needed",
                    in_state.display()
                );
                self.warn(origin, message);
                self.secret(source, origin)
            }
            _ => self.secret(source, origin),
        }
    }

    /// A duration within bounds, and not `never`.
    pub(super) fn duration(
        &mut self,
        field: &Field<Timeout>,
        default: Duration,
        bounds: &RangeInclusive<Duration>,
    ) -> Duration {
        let Some((timeout, origin)) = field.found() else {
            return default;
        };
        let right = within(bounds, |bound| write_duration(*bound));
        match timeout {
            Timeout::After(duration) if bounds.contains(duration) => return *duration,
            Timeout::After(_) => self.error(origin, format!("is out of bounds; {right}")),
            Timeout::Never => self.error(origin, format!("may not be never; {right}")),
        }
        default
    }

    /// A duration within bounds, or `None` for `never`.
    pub(super) fn duration_or_never(
        &mut self,
        field: &Field<Timeout>,
        default: Option<Duration>,
        bounds: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match field.value() {
            None => default,
            Some(Timeout::Never) => None,
            Some(Timeout::After(_)) => {
                Some(self.duration(field, default.unwrap_or_else(|| *bounds.start()), bounds))
            }
        }
    }

    /// A size within bounds.
    pub(super) fn size(
        &mut self,
        field: &Field<Size>,
        default: usize,
        bounds: &RangeInclusive<usize>,
    ) -> usize {
        match field.found() {
            None => default,
            Some((Size(bytes), _)) if bounds.contains(bytes) => *bytes,
            Some((_, origin)) => {
                let right = within(bounds, |bound| write_size(*bound));
                self.error(origin, format!("is out of bounds; {right}"));
                default
            }
        }
    }

    /// A count within bounds.
    pub(super) fn count(
        &mut self,
        field: &Field<usize>,
        default: usize,
        bounds: &RangeInclusive<usize>,
    ) -> usize {
        match field.found() {
            None => default,
            Some((count, _)) if bounds.contains(count) => *count,
            Some((_, origin)) => {
                let right = within(bounds, usize::to_string);
                self.error(origin, format!("is out of bounds; {right}"));
                default
            }
        }
    }
}

/// An error and what lies beneath it, in one line.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns whether a file is known not to exist; one that cannot be looked at is reported when it is read.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn within<T>(bounds: &RangeInclusive<T>, write: impl Fn(&T) -> String) -> String {
    format!("write one from {} to {}", write(bounds.start()), write(bounds.end()))
}
