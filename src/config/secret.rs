//! Sources of secrets: a file, an environment variable, or, with a warning, the configuration file.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
pub(super) enum SecretSource {
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

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}
