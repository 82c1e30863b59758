//! The store's URL: which store, and where.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use crate::secret::Secret;
use crate::store::config::RedisUrl;

/// What a store's URL says.
#[derive(Debug)]
pub(super) enum StoreUrl {
    Memory,
    Sqlite(PathBuf),
    Redis(RedisUrl),
}

const RIGHT: &str = "write \"memory:\", \"sqlite:PATH\" or \"redis://HOST:PORT/DB\"";

/// What later versions have.
const NOT_YET: [&str; 8] = [
    "file",
    "cookie",
    "rediss",
    "redis+unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
];

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
        "redis" => redis(rest).map(StoreUrl::Redis),
        scheme if NOT_YET.contains(&scheme) => {
            Err(format!("`{scheme}:` is not in this version; {RIGHT}"))
        }
        _ => Err(format!("is no store's URL; {RIGHT}")),
    }
}

fn sqlite(path: &str) -> Result<StoreUrl, String> {
    let right = "write \"sqlite:PATH\", as \"sqlite:cloakroom.db\" or \"sqlite:/var/lib/x.db\"";
    // `sqlite:///x` is how others write the path `/x`.
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return Err(format!("two slashes begin no path; {right}")),
        None => path,
    };
    match path {
        ":memory:" => Err("SQLite in memory is not supported; write \"memory:\"".to_owned()),
        path if path.contains('?') => Err(format!("options are not supported; {right}")),
        path if path.is_empty() || path.ends_with('/') => Err(format!("names no file; {right}")),
        path => Ok(StoreUrl::Sqlite(Path::new(path).to_owned())),
    }
}

/// `//[user[:password]@]host[:port][/db]`
fn redis(rest: &str) -> Result<RedisUrl, String> {
    const RIGHT: &str = "write \"redis://[user[:password]@]HOST:PORT/DB\"";
    let wrong = |what: &str| format!("{what}; {RIGHT}");
    let rest = rest.strip_prefix("//").ok_or_else(|| wrong("is no store's URL"))?;
    if rest.contains(['?', '#']) {
        return Err(wrong("options are not supported, and ? and # in a password are %3F and %23"));
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, authority),
    };
    let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
        Some((user, password)) => (decode(user), decode(password)),
        None => (Some(String::new()), Some(String::new())),
    };
    let (Some(user), Some(password)) = (user, password) else {
        return Err(wrong("user or password are not UTF-8"));
    };
    let (host, port) = host_and_port(place).ok_or_else(|| wrong("has no host, or a wrong port"))?;
    let is_number = database.bytes().all(|byte| byte.is_ascii_digit());
    let number = if database.is_empty() { "0" } else { database };
    let database = number.parse().ok().filter(|_| is_number);
    let database = database.ok_or_else(|| wrong("the database is no number, or too great"))?;
    Ok(RedisUrl {
        host,
        port,
        user: Some(user).filter(|user| !user.is_empty()),
        password: Some(password).filter(|password| !password.is_empty()).map(Secret::new),
        database,
    })
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(String::from)
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, after.strip_prefix(':').or_else(|| after.is_empty().then_some("6379"))?)
        }
        None => text.split_once(':').unwrap_or((text, "6379")),
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_name(host).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_redis(url: &str, expected: (&str, u16, Option<&str>, Option<&str>, u32)) {
        let Ok(StoreUrl::Redis(redis)) = parse(url) else { panic!("{url}") };
        let password = redis.password.as_ref().map(Secret::reveal);
        let found =
            (redis.host.as_str(), redis.port, redis.user.as_deref(), password, redis.database);
        assert_eq!(found, expected, "{url}");
    }

    #[test]
    fn a_redis_url_has_a_host_and_perhaps_more() {
        check_redis("redis://db", ("db", 6379, None, None, 0));
        check_redis("redis://db/", ("db", 6379, None, None, 0));
        check_redis("redis://db:7000/3", ("db", 7000, None, None, 3));
        check_redis("redis://[::1]:7000", ("::1", 7000, None, None, 0));
        check_redis("redis://[::1]", ("::1", 6379, None, None, 0));
        check_redis("redis://me@db", ("db", 6379, Some("me"), None, 0));
        check_redis("redis://:p%40ss@db", ("db", 6379, None, Some("p@ss"), 0));
        check_redis("redis://me:a:b@db", ("db", 6379, Some("me"), Some("a:b"), 0));
    }

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
            ("redis:db", "is no store's URL"),
            ("redis://", "no host"),
            ("redis://:hunter2@", "no host"),
            ("redis://me:hunter2@db:x", "no host"),
            ("redis://me:hunter2@db:0", "no host"),
            ("redis://me:hunt/er2@db", "no host"),
            ("redis://me:hunt?er2@db", "%3F"),
            ("redis://me:hunter2@db/x", "is no number"),
            ("redis://me:hunter2@db/99999999999", "too great"),
            ("file:x", "`file:` is not in this version"),
            ("cookie:", "`cookie:` is not in this version"),
            ("rediss://me:hunter2@db", "not in this version"),
            ("redis+unix:///x", "not in this version"),
            ("redis+sentinel://h/s", "not in this version"),
            ("redis+cluster://h", "not in this version"),
            ("rediss+cluster://h", "not in this version"),
        ] {
            let said = parse(url).expect_err(url);
            assert!(said.contains(part), "{url}: {said}");
            assert!(!said.contains("hunt"), "{url}: {said}");
        }
    }
}
