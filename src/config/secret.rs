//! Sources of secrets: a file, an environment variable, or, with a warning, the configuration file.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::environment::Environment;
use crate::secret::Secret;

/// Printed in place of a secret.
const HIDDEN: &str = "[hidden]";

/// The source of a secret. No message repeats the value: a number may be a password without quotes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "invalid secret; expected { file = \"…\" } or { env = \"NAME\" }"
)]
#[schemars(title = "secret")]
pub(super) enum Source {
    /// Path of a file with the secret.
    File { file: PathBuf },
    /// Name of an environment variable with the secret.
    Variable { env: String },
    /// The secret itself, in the file or in the variable of its key.
    Literal(#[schemars(with = "String")] Literal),
}

/// A secret as text.
#[derive(Clone, Debug)]
pub(super) struct Literal(pub(super) Secret);

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl Source {
    /// Returns the secret, which is not empty; an error says what is wrong. A relative file is looked up
    /// in `base`.
    pub(super) fn secret(&self, base: &Path, environment: &Environment) -> Result<Secret, String> {
        let secret = match self {
            Self::File { file } => Secret::read(&base.join(file))?,
            Self::Variable { env: name } => match environment.text(name) {
                Some(Ok(text)) => Secret::new(text.to_owned()),
                Some(Err(_)) => return Err(format!("the variable {name} is not UTF-8")),
                None => return Err(format!("the variable {name} is not set")),
            },
            Self::Literal(Literal(secret)) => secret.clone(),
        };
        if secret.reveal().is_empty() {
            return Err("the secret is empty; set it or remove the key".to_owned());
        }
        Ok(secret)
    }
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
            let source = Source::File { file: "secret".into() };
            let read = source.secret(directory.path(), &Environment::default()).unwrap();
            assert_eq!(read.reveal(), secret, "{written:?}");
        }
    }

    #[test]
    fn missing_and_empty_secrets_are_errors() {
        let environment = Environment::from([("EMPTY", ""), ("FULL", "x")]);
        let check = |source: Source, expected: Result<&str, &str>| {
            let secret = source.secret(Path::new("/nowhere"), &environment);
            match (secret, expected) {
                (Ok(secret), Ok(text)) => assert_eq!(secret.reveal(), text),
                (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
                other => panic!("{other:?}"),
            }
        };
        check(Source::Variable { env: "FULL".to_owned() }, Ok("x"));
        check(Source::Variable { env: "EMPTY".to_owned() }, Err("is empty"));
        check(Source::Variable { env: "NONE".to_owned() }, Err("NONE is not set"));
        check(Source::File { file: "secret".into() }, Err("/nowhere/secret cannot be read"));
    }
}
