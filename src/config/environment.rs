//! The environment: every scalar of the file as `CLOAKROOM_<SECTION>_<KEY>`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::field::Section as _;
use super::file::File;
use super::problem::{Origin, Place, Problem, Problems, nearest};

/// The variables of a process, passed in so that tests need none.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

/// What the names of our variables begin with.
const PREFIX: &str = "CLOAKROOM_";

impl Environment {
    /// The variables of this process. Those whose name is not UTF-8 are nobody's here.
    pub fn of_process() -> Self {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// A variable as it is; an empty one is none.
    pub fn raw(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A variable as text; the error is one that is not UTF-8.
    pub fn text(&self, name: &str) -> Option<Result<&str, &OsStr>> {
        self.0.get(name).map(|value| value.to_str().ok_or(value.as_os_str()))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.map(|(name, value)| (name.to_owned(), value.into())).into())
    }
}

/// It may hold secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Puts the variables over what the file says. Answers those of ours that set no key: they are errors
/// unless a secret names them.
pub(super) fn apply(
    environment: &Environment,
    file: &mut File,
    problems: &mut Problems,
) -> Vec<Problem> {
    let mut unknown = Vec::new();
    for name in environment.0.keys() {
        let Some(written) = name.strip_prefix(PREFIX).filter(|_| !is_service_link(name)) else {
            continue;
        };
        let place = Place::Variable(name.clone());
        let Some((section, key)) = key_of(written) else {
            let origin = Origin { key: String::new(), place };
            unknown.push(Problem { origin, message: suggestion(written) });
            continue;
        };
        let origin = Origin { key: format!("{section}.{key}"), place };
        match environment.text(name) {
            Some(Ok(text)) => set(file, section, key, text, origin, problems),
            _ => problems.error(&origin, "is not UTF-8"),
        }
    }
    unknown
}

/// Sets a key of a section from text.
pub(super) fn set(
    file: &mut File,
    section: &str,
    key: &str,
    text: &str,
    origin: Origin,
    problems: &mut Problems,
) {
    if let Some(slot) = file.slot(section) {
        slot.set_within(key, text, origin, problems);
    }
}

/// What Kubernetes puts into every pod beside a service called `cloakroom`: not ours, nor a mistake.
fn is_service_link(name: &str) -> bool {
    name == "CLOAKROOM_PORT"
        || name.starts_with("CLOAKROOM_PORT_")
        || name == "CLOAKROOM_SERVICE_HOST"
        || name == "CLOAKROOM_SERVICE_PORT"
        || name.starts_with("CLOAKROOM_SERVICE_PORT_")
}

/// Section and key of a variable, its prefix cut off.
fn key_of(written: &str) -> Option<(&'static str, &'static str)> {
    if written == "UPSTREAM" {
        return Some(("route", "upstream"));
    }
    keys().into_iter().find(|(section, key)| {
        let rest = written.strip_prefix(section.to_uppercase().as_str());
        rest.and_then(|rest| rest.strip_prefix('_')) == Some(key.to_uppercase().as_str())
    })
}

/// Every key of every section.
fn keys() -> Vec<(&'static str, &'static str)> {
    let mut file = File::default();
    File::KEYS
        .iter()
        .filter_map(|section| Some((*section, file.slot(section)?.keys())))
        .flat_map(|(section, keys)| keys.iter().map(move |key| (section, *key)))
        .collect()
}

fn suggestion(written: &str) -> String {
    let mut known: Vec<String> =
        keys().iter().map(|(section, key)| format!("{section}_{key}").to_uppercase()).collect();
    known.push("UPSTREAM".to_owned());
    match nearest(written, known.iter().map(String::as_str)) {
        Some(near) => format!("is no key; did you mean {PREFIX}{near}?"),
        None => {
            "is no key; its name is CLOAKROOM_<SECTION>_<KEY>, as CLOAKROOM_STORE_URL".to_owned()
        }
    }
}
