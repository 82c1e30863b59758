//! URLs of Redis deployments: one server, a socket, sentinels or a cluster.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::redis::config::{Address, Topology};
use crate::secret::Secret;
use crate::store::config::Redis;

/// The URL of a deployment, taken apart and decoded.
#[derive(Clone, Debug)]
pub(crate) struct RedisUrl {
    pub(crate) topology: Topology,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: u32,
    pub(crate) encryption: Encryption,
}

/// The encryption of connections to a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encryption {
    None,
    Tls,
}

/// The kind of a deployment, from the scheme.
#[derive(Clone, Copy)]
enum Kind {
    Server,
    Unix,
    Sentinel,
    Cluster,
}

impl Kind {
    /// Returns what to write.
    fn right(self) -> &'static str {
        match self {
            Self::Server => "write \"redis://[user[:password]@]HOST:PORT/DB\"",
            Self::Unix => "write \"redis+unix:///PATH?db=DB\"",
            Self::Sentinel => "write \"redis+sentinel://HOST:PORT,HOST:PORT/SERVICE?db=DB\"",
            Self::Cluster => "write \"redis+cluster://HOST:PORT,HOST:PORT\"",
        }
    }

    /// Returns the default port.
    fn port(self) -> &'static str {
        match self {
            Self::Server | Self::Unix | Self::Cluster => "6379",
            Self::Sentinel => "26379",
        }
    }
}

impl RedisUrl {
    /// Returns the URL of a deployment without its user and password.
    pub(super) fn of(redis: &Redis) -> Self {
        Self {
            topology: redis.topology.clone(),
            user: None,
            password: None,
            database: redis.database,
            encryption: if redis.tls.is_some() { Encryption::Tls } else { Encryption::None },
        }
    }
}

/// Leaves the password out.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let joined = |addresses: &[Address]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let user = self.user.as_deref().map_or_else(String::new, |user| encoded(user) + "@");
        let scheme = match self.encryption {
            Encryption::None => "redis",
            Encryption::Tls => "rediss",
        };
        let database = self.database;
        match &self.topology {
            Topology::Server(Address::Unix(path)) => {
                write!(f, "{scheme}+unix://{user}{}?db={database}", path.display())
            }
            Topology::Server(address) => write!(f, "{scheme}://{user}{address}/{database}"),
            Topology::Sentinel { sentinels, service } => {
                let (sentinels, service) = (joined(sentinels), encoded(service));
                write!(f, "{scheme}+sentinel://{user}{sentinels}/{service}?db={database}")
            }
            Topology::Cluster { nodes } => write!(f, "{scheme}+cluster://{user}{}", joined(nodes)),
        }
    }
}

/// Reads what follows a scheme and its colon; `None` if the scheme is not one of Redis. An error says what
/// is wrong and what would be right, without the URL, which may have a password.
pub(super) fn parse(scheme: &str, rest: &str) -> Option<Result<RedisUrl, String>> {
    let (kind, encryption) = match scheme {
        "redis" => (Kind::Server, Encryption::None),
        "rediss" => (Kind::Server, Encryption::Tls),
        "redis+unix" => (Kind::Unix, Encryption::None),
        "redis+sentinel" => (Kind::Sentinel, Encryption::None),
        "rediss+sentinel" => (Kind::Sentinel, Encryption::Tls),
        "redis+cluster" => (Kind::Cluster, Encryption::None),
        "rediss+cluster" => (Kind::Cluster, Encryption::Tls),
        _ => return None,
    };
    let url = read(kind, rest).map(|url| RedisUrl { encryption, ..url });
    Some(url.map_err(|wrong| format!("{wrong}; {}", kind.right())))
}

/// `//[user[:password]@]hosts[/path][?db=N]`
fn read(kind: Kind, rest: &str) -> Result<RedisUrl, &'static str> {
    let rest = rest.strip_prefix("//").ok_or("not the URL of a store")?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    if rest.contains('#') || query.is_some_and(|query| query.contains(['?', '#', '@', '&'])) {
        return Err("a password has %3F and %23 for ? and #, and db is the only option");
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, password, hosts) = log_in(authority)?;
    let asked = match query {
        None => None,
        Some(query) => {
            let number = query.strip_prefix("db=").ok_or("has an unknown option")?;
            Some(database(number)?)
        }
    };
    let in_path = matches!(kind, Kind::Server);
    let number = match (in_path, asked) {
        (true, Some(_)) => return Err("the database belongs in the path"),
        (true, None) => database(path)?,
        (false, asked) => asked.unwrap_or(0),
    };
    let topology = topology(kind, hosts, path)?;
    if matches!(kind, Kind::Cluster) && number != 0 {
        return Err("a cluster has only database 0");
    }
    Ok(RedisUrl { topology, user, password, database: number, encryption: Encryption::None })
}

fn topology(kind: Kind, hosts: &str, path: &str) -> Result<Topology, &'static str> {
    let addresses = || -> Result<Vec<Address>, &'static str> {
        let found = hosts.split(',').map(|host| address(host, kind.port()));
        found.collect::<Option<_>>().ok_or("has no host, or a wrong port")
    };
    match kind {
        Kind::Server => match addresses()?.as_slice() {
            [address] => Ok(Topology::Server(address.clone())),
            _ => Err("has several servers; only sentinels and cluster nodes may be several"),
        },
        Kind::Unix if !hosts.is_empty() => Err("has a host and a socket"),
        Kind::Unix if path.is_empty() => Err("has no socket path"),
        Kind::Unix => {
            let path = decode(path).ok_or("the socket's path is not UTF-8")?;
            Ok(Topology::Server(Address::Unix(PathBuf::from(format!("/{path}")))))
        }
        Kind::Sentinel => {
            let service = decode(path).filter(|name| !name.is_empty() && !name.contains('/'));
            let service = service.ok_or("has no service name, or more than one")?;
            Ok(Topology::Sentinel { sentinels: addresses()?, service })
        }
        Kind::Cluster if !path.is_empty() => Err("a cluster has no path"),
        Kind::Cluster => Ok(Topology::Cluster { nodes: addresses()? }),
    }
}

/// Splits off user and password.
fn log_in(authority: &str) -> Result<(Option<String>, Option<Secret>, &str), &'static str> {
    let Some((login, place)) = authority.rsplit_once('@') else {
        return Ok((None, None, authority));
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let unreadable = "user or password are not UTF-8";
    let user = decode(user).ok_or(unreadable)?;
    let password = decode(password).ok_or(unreadable)?;
    let user = Some(user).filter(|user| !user.is_empty());
    let password = Some(password).filter(|password| !password.is_empty()).map(Secret::new);
    Ok((user, password, place))
}

fn database(text: &str) -> Result<u32, &'static str> {
    let wrong = "the database is not a number, or too large";
    match text {
        "" => Ok(0),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().or(Err(wrong)),
        _ => Err(wrong),
    }
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(String::from)
}

fn address(text: &str, default_port: &'static str) -> Option<Address> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, after.strip_prefix(':').or_else(|| after.is_empty().then_some(default_port))?)
        }
        None => text.split_once(':').unwrap_or((text, default_port)),
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_name(host).then(|| Address::Tcp { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<RedisUrl, String> {
        let (scheme, rest) = url.split_once(':').unwrap();
        parse(scheme, rest).unwrap()
    }

    #[track_caller]
    fn check(url: &str, topology: &str, (user, password, database): (&str, &str, u32)) {
        let read = parsed(url).unwrap();
        let shown = match &read.topology {
            Topology::Server(address) => address.to_string(),
            Topology::Sentinel { sentinels, service } => format!("{} {service}", joined(sentinels)),
            Topology::Cluster { nodes } => format!("cluster {}", joined(nodes)),
        };
        assert_eq!(shown, topology, "{url}");
        assert_eq!(read.user.as_deref().unwrap_or_default(), user, "{url}");
        assert_eq!(read.password.as_ref().map_or("", Secret::reveal), password, "{url}");
        assert_eq!(read.database, database, "{url}");
        assert_eq!(parsed(&read.to_string()).unwrap().topology, read.topology, "{url}");
        assert_eq!(read.encryption == Encryption::Tls, url.starts_with("rediss"), "{url}");
    }

    fn joined(addresses: &[Address]) -> String {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn parts_are_decoded() {
        check("redis://db", "db:6379", ("", "", 0));
        check("redis://db/", "db:6379", ("", "", 0));
        check("rediss://db:7000/3", "db:7000", ("", "", 3));
        check("redis://[::1]:7000", "[::1]:7000", ("", "", 0));
        check("redis://[::1]", "[::1]:6379", ("", "", 0));
        check("redis://me@db", "db:6379", ("me", "", 0));
        check("redis://:p%40ss@db", "db:6379", ("", "p@ss", 0));
        check("redis://me:a:b@db", "db:6379", ("me", "a:b", 0));
        check("redis+unix:///run/r.sock", "unix:/run/r.sock", ("", "", 0));
        check("redis+unix://me:x@/run/r.sock?db=4", "unix:/run/r.sock", ("me", "x", 4));
        check("redis+sentinel://a,b:7/main?db=2", "a:26379 b:7 main", ("", "", 2));
        check("rediss+sentinel://me:x@a/main", "a:26379 main", ("me", "x", 0));
        check("redis+cluster://a,[::1]:7", "cluster a:6379 [::1]:7", ("", "", 0));
        check("rediss+cluster://:x@a:7000", "cluster a:7000", ("", "x", 0));
    }

    #[test]
    fn errors_have_no_password() {
        for (url, part) in [
            ("redis:db", "not the URL of a store"),
            ("redis://", "no host"),
            ("redis://:hunter2@", "no host"),
            ("redis://me:hunter2@db:x", "no host"),
            ("redis://me:hunter2@db:0", "no host"),
            ("redis://me:hunt/er2@db", "not a number"),
            ("redis://me:hunt?er2@db", "%3F"),
            ("redis://me:hunter2@db/x", "is not a number"),
            ("redis://me:hunter2@db/99999999999", "too large"),
            ("redis://me:hunter2@db?db=1", "in the path"),
            ("redis://me:hunter2@db,db", "several servers"),
            ("redis://me:hunter2@db?x=1", "unknown option"),
            ("redis+unix://host/x", "a host and a socket"),
            ("redis+unix://", "no socket path"),
            ("redis+sentinel://h", "no service name"),
            ("redis+sentinel://h/a/b", "more than one"),
            ("redis+sentinel:///a", "no host"),
            ("redis+cluster://h?db=1", "only database 0"),
            ("redis+cluster://h/1", "has no path"),
        ] {
            let said = parsed(url).expect_err(url);
            assert!(said.contains(part), "{url}: {said}");
            assert!(!said.contains("hunt"), "{url}: {said}");
        }
    }
}
