//! The store's URL: which store, and where.

use std::path::{Path, PathBuf};

use super::redis_url::{self, RedisUrl};

/// What a store's URL says.
#[derive(Debug)]
pub(super) enum StoreUrl {
    Memory,
    Sqlite(PathBuf),
    File(PathBuf),
    Redis(RedisUrl),
    Cookies,
}

const RIGHT: &str = "write \"memory:\", \"sqlite:PATH\", \"redis://HOST:PORT/DB\", or another that the \
                     documentation names";

/// Reads a store's URL. An error says what is wrong and what would be right, without the URL, which
/// may hold a password.
pub(super) fn parse(url: &str) -> Result<StoreUrl, String> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(format!("is no store's URL; {RIGHT}"));
    };
    match scheme {
        "memory" if rest.is_empty() => Ok(StoreUrl::Memory),
        "memory" => Err("a store in memory has no path; write \"memory:\"".to_owned()),
        "sqlite" => sqlite(rest),
        "file" => file(rest),
        "cookie" if rest.is_empty() => Ok(StoreUrl::Cookies),
        "cookie" => Err("sessions in cookies have no path; write \"cookie:\"".to_owned()),
        scheme => match redis_url::parse(scheme, rest) {
            Some(url) => url.map(StoreUrl::Redis),
            None => Err(format!("is no store's URL; {RIGHT}")),
        },
    }
}

fn sqlite(path: &str) -> Result<StoreUrl, String> {
    let right = "write \"sqlite:PATH\", as \"sqlite:cloakroom.db\" or \"sqlite:/var/lib/x.db\"";
    match plain(path, right)? {
        ":memory:" => Err("SQLite in memory is not supported; write \"memory:\"".to_owned()),
        path if path.contains('?') => Err(format!("options are not supported; {right}")),
        path if path.is_empty() || path.ends_with('/') => Err(format!("names no file; {right}")),
        path => Ok(StoreUrl::Sqlite(Path::new(path).to_owned())),
    }
}

/// `sqlite:///x` is how others write the path `/x`.
fn plain<'a>(path: &'a str, right: &str) -> Result<&'a str, String> {
    match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => Ok(absolute),
        Some(_) => Err(format!("two slashes begin no path; {right}")),
        None => Ok(path),
    }
}

fn file(path: &str) -> Result<StoreUrl, String> {
    let right = "write \"file:DIRECTORY\", as \"file:sessions\" or \"file:/var/lib/x/sessions\"";
    let directory = Path::new(plain(path, right)?.trim_end_matches('/'));
    match directory.file_name() {
        Some(_) => Ok(StoreUrl::File(directory.to_owned())),
        None => Err(format!("names no directory; {right}")),
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
            let Ok(StoreUrl::Sqlite(found)) = parse(url) else { panic!("{url}") };
            assert_eq!(found, Path::new(path), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for (url, part) in [
            ("", "is no store's URL"),
            ("postgres://me:hunter2@db", "is no store's URL"),
            ("memory:x", "has no path"),
            ("sqlite:", "names no file"),
            ("sqlite:x/", "names no file"),
            ("sqlite:x?mode=ro", "options"),
            ("sqlite://x.db", "two slashes"),
            ("sqlite::memory:", "memory:"),
            ("file:", "names no directory"),
            ("file:///", "names no directory"),
            ("file:..", "names no directory"),
            ("file://x", "two slashes"),
            ("cookie:x", "no path"),
            ("rediss+unix:///x", "is no store's URL"),
            ("redis://me:hunter2@db:x", "port"),
        ] {
            let said = parse(url).expect_err(url);
            assert!(said.contains(part), "{url}: {said}");
            assert!(!said.contains("hunt"), "{url}: {said}");
        }
    }
}
