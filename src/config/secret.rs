//! Where secrets come from: a file, an environment variable, or, with a warning, the configuration
//! itself.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::environment::Environment;
use super::value::{Value, article};
use crate::secret::Secret;

/// Where a secret comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// `{ file = "…" }`
    File(PathBuf),
    /// `{ env = "NAME" }`
    Variable(String),
    /// It stands in the file.
    Literal(Secret),
    /// It came by the variable of its key.
    Given(Secret),
}

impl Value for Source {
    const NOUN: &'static str = "secret";
    const RIGHT: &'static str = "{ file = \"…\" } or { env = \"NAME\" }";

    fn parse(text: &str) -> Option<Self> {
        Some(Self::Given(Secret::new(text.to_owned())))
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        let table = match value {
            DeValue::String(text) => return Ok(Self::Literal(Secret::new(text.to_string()))),
            DeValue::Table(table) => table,
            other => return Err(Self::wrong_type(other)),
        };
        let mut entries =
            table.iter().map(|(key, value)| (key.get_ref().as_ref(), value.get_ref()));
        match (entries.next(), entries.next()) {
            (Some(("file", DeValue::String(path))), None) if !path.is_empty() => {
                Ok(Self::File(PathBuf::from(path.as_ref())))
            }
            (Some(("env", DeValue::String(name))), None) if !name.is_empty() => {
                Ok(Self::Variable(name.to_string()))
            }
            (Some(("file" | "env", other)), None) => {
                Err(format!("{} names nothing; write {}", article(other), Self::RIGHT))
            }
            _ => Err(format!("a secret has one source; write {}", Self::RIGHT)),
        }
    }
}

impl Source {
    /// The secret, which is not empty; an error says what is wrong. A relative file lies in `base`.
    pub(super) fn secret(&self, base: &Path, environment: &Environment) -> Result<Secret, String> {
        let secret = match self {
            Self::File(path) => Secret::read(&base.join(path))?,
            Self::Variable(name) => match environment.text(name) {
                Some(Ok(text)) => Secret::new(text.to_owned()),
                Some(Err(_)) => return Err(format!("the variable {name} is not UTF-8")),
                None => return Err(format!("the variable {name} is not set; set it")),
            },
            Self::Literal(secret) | Self::Given(secret) => secret.clone(),
        };
        if secret.reveal().is_empty() {
            return Err("the secret is empty; give it a value or leave the key out".to_owned());
        }
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_file_is_not_part_of_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        for (written, secret) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a ", "a "), ("a", "a")]
        {
            fs::write(directory.path().join("secret"), written).unwrap();
            let source = Source::File("secret".into());
            let read = source.secret(directory.path(), &Environment::default()).unwrap();
            assert_eq!(read.reveal(), secret, "{written:?}");
        }
    }

    #[test]
    fn what_is_missing_or_empty_is_an_error() {
        let environment = Environment::from([("EMPTY", ""), ("FULL", "x")]);
        let check = |source: Source, expected: Result<&str, &str>| {
            let secret = source.secret(Path::new("/nowhere"), &environment);
            match (secret, expected) {
                (Ok(secret), Ok(text)) => assert_eq!(secret.reveal(), text),
                (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
                other => panic!("{other:?}"),
            }
        };
        check(Source::Variable("FULL".to_owned()), Ok("x"));
        check(Source::Variable("EMPTY".to_owned()), Err("is empty"));
        check(Source::Variable("NONE".to_owned()), Err("NONE is not set"));
        check(Source::File("secret".into()), Err("/nowhere/secret cannot be read"));
    }
}
