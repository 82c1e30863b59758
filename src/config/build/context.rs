//! What the rules need: the places of keys, directories, the environment, and a list of problems.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};

use super::super::environment::Environment;
use super::super::problem::{Place, Problem, Problems};
use super::super::read::Places;
use super::super::secret::{Literal, SecretSource};
use super::super::state;
use crate::secret::Secret;

/// Whether the configuration has to name an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Site {
    Needed,
    NotNeeded,
}

/// What the rules need besides the keys. Keys are named by their path, e.g. `route[1].upstream`.
#[derive(Debug)]
pub(in super::super) struct Context<'a> {
    pub(in super::super) environment: &'a Environment,
    pub(in super::super) site: Site,
    /// Where relative paths are, except those of stores.
    pub(in super::super) base: PathBuf,
    /// The file as a whole, or the default.
    pub(in super::super) whole: Place,
    pub(in super::super) places: Places,
    pub(in super::super) problems: Problems,
    /// The variables that secrets refer to.
    pub(in super::super) referenced: BTreeSet<String>,
    /// The state directory, if a path in it is used.
    pub(in super::super) state_directory: Option<PathBuf>,
}

impl Context<'_> {
    /// Returns whether the file, a variable or an argument sets a key, rightly or wrongly.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Returns where a key is set.
    pub(super) fn place(&self, key: &str) -> Place {
        self.places.get(key).cloned().unwrap_or(Place::Default)
    }

    pub(super) fn error(&mut self, key: &str, message: impl Into<String>) {
        self.problems.error(Problem::new(key, self.place(key), message));
    }

    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.problems.warn(Problem::new(key, self.place(key), message));
    }

    /// Reports those of the keys that are set.
    pub(super) fn refuse(&mut self, keys: &[&str], message: &str) {
        for key in keys.iter().filter(|key| self.places.contains_key(**key)).collect::<Vec<_>>() {
            self.error(key, message);
        }
    }

    /// Reports a section that is missing.
    pub(super) fn missing(&mut self, key: &str, message: &str) {
        self.problems.error(Problem::new(key, self.whole.clone(), message));
    }

    /// Makes a path relative to the file absolute.
    pub(super) fn locate(&self, path: &mut PathBuf) {
        *path = self.base.join(&*path);
    }

    /// Makes a path relative to the state directory absolute.
    pub(super) fn locate_in_state(&mut self, key: &str, path: &mut PathBuf) {
        if path.is_absolute() {
            return;
        }
        match state::directory(self.environment) {
            Some(state) => {
                *path = state.join(&*path);
                self.state_directory = Some(state);
            }
            None => self.error(
                key,
                "a relative path needs a state directory, and there is none; set STATE_DIRECTORY, \
                 XDG_STATE_HOME or HOME, or write an absolute path",
            ),
        }
    }

    /// Returns the path of a file in the state directory, if there is one.
    pub(super) fn state_path(&self, name: &str) -> Option<PathBuf> {
        Some(state::directory(self.environment)?.join(name))
    }

    /// Reads a secret whose relative file is next to the configuration file.
    pub(super) fn secret(&mut self, key: &str, source: &SecretSource) -> Option<Secret> {
        match source {
            SecretSource::Variable { env } => {
                self.referenced.insert(env.clone());
            }
            SecretSource::Literal(_) if matches!(self.place(key), Place::File { .. }) => {
                self.warn(
                    key,
                    "secret stored in plain text; use { file = \"…\" } or { env = \"NAME\" }",
                );
            }
            SecretSource::Literal(_) | SecretSource::File { .. } => {}
        }
        match read_secret(source, &self.base, self.environment) {
            Ok(secret) => Some(secret),
            Err(message) => {
                self.error(key, message);
                None
            }
        }
    }

    /// Reads a token that is sent in a header and gives access to all sessions.
    pub(super) fn token(&mut self, key: &str, source: &SecretSource) -> Option<Secret> {
        let token = self.secret(key, source)?;
        if !token.reveal().bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = "invalid token; expected letters, digits and signs without spaces, as \
                           `cloakroom generate-key` prints";
            self.error(key, message);
        } else if token.reveal().len() < 16 {
            let message =
                "is short enough to be guessed; `cloakroom generate-key` prints a better one";
            self.warn(key, message);
        }
        Some(token)
    }

    /// Reads a session key. A relative file is looked up next to the configuration file, and then in the
    /// state directory, the only place in earlier releases.
    pub(super) fn session_key(&mut self, key: &str, source: &SecretSource) -> Option<Secret> {
        let (SecretSource::File { file: path }, Some(state)) =
            (source, state::directory(self.environment))
        else {
            return self.secret(key, source);
        };
        if path.is_absolute() {
            return self.secret(key, source);
        }
        let (here, in_state) = (self.base.join(path), state.join(path));
        match (is_missing(&here), is_missing(&in_state)) {
            (true, true) => {
                let (here, state) = (here.display(), state.display());
                let message =
                    format!("{here} does not exist, and the state directory {state} has none");
                self.error(key, message);
                None
            }
            (true, false) => {
                let in_state_shown = in_state.display();
                let message = format!(
                    "is not in the directory of the configuration; {in_state_shown} is used instead: \
                     move it there, or write its absolute path"
                );
                self.warn(key, message);
                self.state_directory = Some(state);
                self.secret(key, &SecretSource::File { file: in_state })
            }
            (false, false) if std::fs::read(&here).ok() != std::fs::read(&in_state).ok() => {
                let message = format!(
                    "{} differs and is not used; remove it if it is not needed",
                    in_state.display()
                );
                self.warn(key, message);
                self.secret(key, source)
            }
            _ => self.secret(key, source),
        }
    }
}

/// Reads a secret, which is not empty; an error says what is wrong. A relative file is looked up in `base`.
fn read_secret(
    source: &SecretSource,
    base: &Path,
    environment: &Environment,
) -> Result<Secret, String> {
    let secret = match source {
        SecretSource::File { file } => Secret::read(&base.join(file))?,
        SecretSource::Variable { env: name } => match environment.text(name) {
            Some(Ok(text)) => Secret::new(text.to_owned()),
            Some(Err(_)) => return Err(format!("the variable {name} is not UTF-8")),
            None => return Err(format!("the variable {name} is not set")),
        },
        SecretSource::Literal(Literal(secret)) => secret.clone(),
    };
    if secret.reveal().is_empty() {
        return Err("the secret is empty; set it or remove the key".to_owned());
    }
    Ok(secret)
}

/// Writes an error and its causes in one line.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns whether a file is known not to exist. Other errors are reported when it is read.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn drops_one_final_newline_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        for (written, secret) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a ", "a "), ("a", "a")]
        {
            fs::write(directory.path().join("secret"), written).unwrap();
            let source = SecretSource::File { file: "secret".into() };
            let read = read_secret(&source, directory.path(), &Environment::default()).unwrap();
            assert_eq!(read.reveal(), secret, "{written:?}");
        }
    }

    #[test]
    fn missing_and_empty_secrets_are_errors() {
        let environment = Environment::from([("EMPTY", ""), ("FULL", "x")]);
        let check = |source: SecretSource, expected: Result<&str, &str>| {
            let secret = read_secret(&source, Path::new("/nowhere"), &environment);
            match (secret, expected) {
                (Ok(secret), Ok(text)) => assert_eq!(secret.reveal(), text),
                (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
                other => panic!("{other:?}"),
            }
        };
        check(SecretSource::Variable { env: "FULL".to_owned() }, Ok("x"));
        check(SecretSource::Variable { env: "EMPTY".to_owned() }, Err("is empty"));
        check(SecretSource::Variable { env: "NONE".to_owned() }, Err("NONE is not set"));
        check(SecretSource::File { file: "secret".into() }, Err("/nowhere/secret cannot be read"));
    }
}
