//! The environment: every scalar of the file as `CLOAKROOM_<SECTION>_<KEY>`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};

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
    for (name, value) in &environment.0 {
        let Some(written) = name.strip_prefix(PREFIX) else { continue };
        let place = Place::Variable(name.clone());
        let Some((section, key)) = key_of(written) else {
            if is_service_link(name, value) {
                continue;
            }
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

/// Returns whether a variable is one of those that Kubernetes sets in every pod for each service of the
/// namespace (`enableServiceLinks`): `cloakroom` itself, or one whose name begins with `cloakroom-`.
///
/// Name and value have to fit, so that a mistyped key is still an error.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let Some(value) = value.to_str() else { return false };
    let is_ip = || value.parse::<IpAddr>().is_ok();
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_protocol = |text: &str| ["tcp", "udp", "sctp"].contains(&text);
    let is_url = || {
        let (protocol, address) = value.split_once("://").unwrap_or_default();
        is_protocol(protocol) && address.parse::<SocketAddr>().is_ok()
    };
    // `NAME_PORT_8081_TCP`
    let is_numbered = |name: &str| {
        let mut words = name.rsplitn(4, '_');
        let (protocol, port, word) = (words.next(), words.next(), words.next());
        word == Some("PORT")
            && port.is_some_and(is_port)
            && protocol.is_some_and(|word| is_protocol(&word.to_ascii_lowercase()))
    };
    match name.rsplit_once('_') {
        _ if is_numbered(name) => is_url(),
        Some((base, "PROTO")) if is_numbered(base) => is_protocol(value),
        Some((base, "PORT")) if is_numbered(base) => is_port(value),
        Some((base, "ADDR")) if is_numbered(base) => is_ip(),
        Some((base, "HOST")) if base.ends_with("_SERVICE") => is_ip(),
        Some((base, "PORT")) if base.ends_with("_SERVICE") => is_port(value),
        _ if name.contains("_SERVICE_PORT_") => is_port(value),
        Some((_, "PORT")) => is_url(),
        _ => false,
    }
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
