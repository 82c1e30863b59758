//! The environment: every key of the file but tables, as `CLOAKROOM_<SECTION>_<KEY>`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::fs::fstat;
use serde_json::Value as Json;

use super::problem::{Place, Problem, Problems, nearest};
use super::read::{self, Assignment, SCHEMA, array_of_tables, section};

/// The variables of a process, passed in so that tests set none.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

/// The prefix of our variables.
const PREFIX: &str = "CLOAKROOM_";
/// The prefix of the variables of clients, after ours: a site that runs in the same environment has them.
const CLIENT_PREFIX: &str = "CLIENT_";

impl Environment {
    /// Reads the variables of this process; those whose name is not UTF-8 are ignored.
    pub fn of_process() -> Self {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// Returns a variable that is not empty.
    pub(crate) fn raw(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Returns whether standard error is a connection to the journal of systemd (`systemd.exec(5)`). A program that
    /// passes the variable on may have redirected standard error.
    pub(crate) fn logs_to_journal(&self) -> bool {
        let Some(stream) = self.raw("JOURNAL_STREAM").and_then(OsStr::to_str) else { return false };
        fstat(io::stderr())
            .is_ok_and(|error| stream == format!("{}:{}", error.st_dev, error.st_ino))
    }

    /// Returns a variable as text; the error is a value that is not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Option<Result<&str, &OsStr>> {
        self.0.get(name).map(|value| value.to_str().ok_or(value.as_os_str()))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.map(|(name, value)| (name.to_owned(), value.into())).into())
    }
}

/// Values may be secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Returns what the variables set, and the problems of those that begin with our prefix and set no key:
/// they are errors unless a secret refers to them.
pub(super) fn assignments(
    environment: &Environment,
    problems: &mut Problems,
) -> (Vec<Assignment>, Vec<Problem>) {
    let (mut assignments, mut unknown) = (Vec::new(), Vec::new());
    for (name, value) in &environment.0 {
        let Some(written) = name.strip_prefix(PREFIX) else { continue };
        if written.starts_with(CLIENT_PREFIX) {
            continue;
        }
        let place = Place::Variable(name.clone());
        let Some((section, key)) = key_of(written) else {
            if !is_service_link(name, value) {
                unknown.push(Problem::new("", place, suggestion(written)));
            }
            continue;
        };
        let assigned = match environment.text(name) {
            Some(Ok(text)) => assignment(section, key, text, place.clone()),
            _ => Err("is not UTF-8".to_owned()),
        };
        match assigned {
            Ok(assigned) => assignments.push(assigned),
            Err(message) => {
                problems.error(Problem::new(&format!("{section}.{key}"), place, message));
            }
        }
    }
    (assignments, unknown)
}

/// Writes text as a TOML value of the key's type. An array has commas between its elements.
pub(super) fn assignment(
    section: &str,
    key: &str,
    text: &str,
    place: Place,
) -> Result<Assignment, String> {
    let schema = read::key_of(section, key).ok_or_else(|| "unknown key".to_owned())?;
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    let is_list = elements(schema).is_some_and(|elements| accepts(elements, "string"));
    let value = if is_list && (text.contains(',') || !accepts(schema, "string")) {
        let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
        format!("[{}]", elements.map(quoted).collect::<Vec<_>>().join(", "))
    } else if accepts(schema, "boolean") && text.parse::<bool>().is_ok()
        || accepts(schema, "integer") && text.parse::<i64>().is_ok()
    {
        text.to_owned()
    } else if let Some(number) = number.filter(|_| accepts(schema, "number")) {
        format!("{number:?}")
    } else if ["string", "boolean", "integer", "number"].iter().any(|kind| accepts(schema, kind)) {
        quoted(text)
    } else {
        return Err("is a table; set it in the file".to_owned());
    };
    Ok(Assignment { section: section.to_owned(), key: key.to_owned(), value, place })
}

/// The schema of the elements, if an array may be right.
fn elements(schema: &Json) -> Option<&Json> {
    let mut several = schema.get("anyOf").and_then(Json::as_array).into_iter().flatten();
    read::items(schema).or_else(|| several.find_map(elements))
}

/// Returns whether a value of this JSON type may be right.
fn accepts(schema: &Json, kind: &str) -> bool {
    let list = |key: &str| schema.get(key).and_then(Json::as_array).into_iter().flatten();
    schema.get("type").is_some_and(|found| found == kind)
        || list("type").any(|found| found == kind)
        || kind == "string" && (schema.get("const").is_some() || schema.get("enum").is_some())
        || list("anyOf").chain(list("oneOf")).any(|one| accepts(one, kind))
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

/// Returns section and key of a variable without its prefix.
fn key_of(written: &str) -> Option<(&'static str, &'static str)> {
    if written == "UPSTREAM" {
        return Some(("route", "upstream"));
    }
    keys().find(|(section, key)| {
        let rest = written.strip_prefix(section.to_uppercase().as_str());
        rest.and_then(|rest| rest.strip_prefix('_')) == Some(key.to_uppercase().as_str())
    })
}

/// Lists every key of every section.
fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sections = section(&SCHEMA).into_iter().flatten();
    sections.flat_map(|(name, schema)| {
        let keys = section(array_of_tables(schema).unwrap_or(schema)).into_iter().flatten();
        keys.map(move |(key, _)| (name.as_str(), key.as_str()))
    })
}

fn suggestion(written: &str) -> String {
    let known = keys().map(|(section, key)| format!("{section}_{key}").to_uppercase());
    let known: Vec<String> = known.chain(["UPSTREAM".to_owned()]).collect();
    match nearest(written, known.iter().map(String::as_str)) {
        Some(near) => format!("unknown variable; did you mean {PREFIX}{near}?"),
        None => "unknown variable; expected CLOAKROOM_<SECTION>_<KEY>, e.g. CLOAKROOM_STORE_URL"
            .to_owned(),
    }
}
