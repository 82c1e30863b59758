//! URLs of stores: the kind of a store and its place.

mod redis;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::config::StoreKind;

pub(crate) use redis::{Encryption, RedisUrl};

/// The URL of a store, taken apart.
#[derive(Clone, Debug)]
pub(crate) enum StoreUrl {
    Memory,
    Sqlite(PathBuf),
    File(PathBuf),
    Redis(RedisUrl),
    Cookies,
}

impl StoreUrl {
    /// Returns the URL of a store without its user and password.
    pub(crate) fn of(kind: &StoreKind) -> Self {
        match kind {
            StoreKind::Memory => Self::Memory,
            StoreKind::Sqlite { path } => Self::Sqlite(path.clone()),
            StoreKind::File { directory } => Self::File(directory.clone()),
            StoreKind::Redis(redis) => Self::Redis(RedisUrl::of(redis)),
            StoreKind::Cookies => Self::Cookies,
        }
    }

    /// Returns the path of the data, if it is on a disk of this machine.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Sqlite(path) | Self::File(path) => Some(path),
            Self::Memory | Self::Redis(_) | Self::Cookies => None,
        }
    }

    /// Returns the kind of a store that needs no more settings; the URL of one that does is the error.
    pub(crate) fn kind(&self) -> Result<StoreKind, &RedisUrl> {
        match self {
            Self::Memory => Ok(StoreKind::Memory),
            Self::Sqlite(path) => Ok(StoreKind::Sqlite { path: path.clone() }),
            Self::File(directory) => Ok(StoreKind::File { directory: directory.clone() }),
            Self::Cookies => Ok(StoreKind::Cookies),
            Self::Redis(url) => Err(url),
        }
    }
}

const RIGHT: &str = "write e.g. \"memory:\", \"sqlite:PATH\" or \"redis://HOST:PORT/DB\"";

/// An error says what is wrong and what would be right, without the URL, which may have a password.
impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let unknown = || Err(format!("not the URL of a store; {RIGHT}"));
        let Some((scheme, rest)) = url.split_once(':') else { return unknown() };
        match scheme {
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "memory" => Err("the memory store has no path; write \"memory:\"".to_owned()),
            "sqlite" => sqlite(rest),
            "file" => file(rest),
            "cookie" if rest.is_empty() => Ok(Self::Cookies),
            "cookie" => Err("sealed cookies have no path; write \"cookie:\"".to_owned()),
            scheme => match redis::parse(scheme, rest) {
                Some(url) => url.map(Self::Redis),
                None => unknown(),
            },
        }
    }
}

/// Leaves the password out.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Redis(url) => url.fmt(f),
            Self::Cookies => f.write_str("cookie:"),
        }
    }
}

fn sqlite(path: &str) -> Result<StoreUrl, String> {
    let right = "write \"sqlite:PATH\", e.g. \"sqlite:cloakroom.db\" or \"sqlite:/var/lib/x.db\"";
    match plain(path, right)? {
        ":memory:" => Err("SQLite in memory is not supported; write \"memory:\"".to_owned()),
        path if path.contains('?') => Err(format!("options are not supported; {right}")),
        path if path.is_empty() || path.ends_with('/') => Err(format!("has no file name; {right}")),
        path => Ok(StoreUrl::Sqlite(Path::new(path).to_owned())),
    }
}

/// Other programs write the path `/x` as `sqlite:///x`.
fn plain<'a>(path: &'a str, right: &str) -> Result<&'a str, String> {
    match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => Ok(absolute),
        Some(_) => Err(format!("a path cannot begin with two slashes; {right}")),
        None => Ok(path),
    }
}

fn file(path: &str) -> Result<StoreUrl, String> {
    let right = "write \"file:DIRECTORY\", e.g. \"file:sessions\" or \"file:/var/lib/x/sessions\"";
    let directory = Path::new(plain(path, right)?.trim_end_matches('/'));
    match directory.file_name() {
        Some(_) => Ok(StoreUrl::File(directory.to_owned())),
        None => Err(format!("has no directory; {right}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_url_is_a_path() {
        for (url, path) in [
            ("sqlite:a.db", "a.db"),
            ("sqlite:/x/a.db", "/x/a.db"),
            ("sqlite:///x/a.db", "/x/a.db"),
        ] {
            let Ok(StoreUrl::Sqlite(found)) = url.parse() else { panic!("{url}") };
            assert_eq!(found, Path::new(path), "{url}");
        }
    }

    #[test]
    fn errors_have_no_password() {
        for (url, part) in [
            ("", "not the URL of a store"),
            ("postgres://me:hunter2@db", "not the URL of a store"),
            ("memory:x", "has no path"),
            ("sqlite:", "has no file name"),
            ("sqlite:x/", "has no file name"),
            ("sqlite:x?mode=ro", "options"),
            ("sqlite://x.db", "two slashes"),
            ("sqlite::memory:", "memory:"),
            ("file:", "has no directory"),
            ("file:///", "has no directory"),
            ("file:..", "has no directory"),
            ("file://x", "two slashes"),
            ("cookie:x", "no path"),
            ("rediss+unix:///x", "not the URL of a store"),
            ("redis://me:hunter2@db:x", "port"),
        ] {
            let said = url.parse::<StoreUrl>().expect_err(url);
            assert!(said.contains(part), "{url}: {said}");
            assert!(!said.contains("hunt"), "{url}: {said}");
        }
    }
}
