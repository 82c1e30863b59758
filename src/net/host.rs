//! The syntax of `Host` (RFC 9110 7.2: RFC 3986's `uri-host [ ":" port ]`), and the names that a
//! listener answers to.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Uri};
use tracing::warn;

use crate::log::Seen;

/// The host names that a listener answers to, besides IP addresses and `localhost`.
///
/// A page of a stranger in a browser near us can have its own name lead to our address (DNS
/// rebinding), and is then of the same origin: but the browser says that name.
#[derive(Debug)]
pub(crate) struct OwnNames {
    names: Vec<String>,
    key: &'static str,
    refused: Seen,
}

impl OwnNames {
    /// Creates the set of these names; `key` is where further ones are configured.
    pub(crate) fn new(names: impl IntoIterator<Item = String>, key: &'static str) -> Self {
        let without_dot = |own: String| name(&own).to_ascii_lowercase();
        let names = names.into_iter().map(without_dot).collect();
        Self { names, key, refused: Seen::default() }
    }

    /// Whether a request names us, by its authority and its Host, or says no name at all. A foreign
    /// name is logged once.
    pub(crate) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
        let hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
        let foreign = hosts.chain(authority).find(|host| !self.has(host));
        let Some(foreign) = foreign else { return true };
        let foreign = String::from_utf8_lossy(foreign.get(..MAX_LOGGED).unwrap_or(foreign));
        if self.refused.is_first(&foreign) {
            warn!(
                host = &*foreign,
                key = self.key,
                "refused a request for a foreign host name; if the name leads to this listener, add it to the key"
            );
        }
        false
    }

    fn has(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else { return false };
        if host.is_empty() {
            // As good as none (RFC 9112 3.2).
            return true;
        }
        let name = name(host);
        let is_address = name.parse::<Ipv4Addr>().is_ok() || name.starts_with('[');
        is_valid(host)
            && (is_address
                || name.eq_ignore_ascii_case("localhost")
                || self.names.iter().any(|own| name.eq_ignore_ascii_case(own)))
    }
}

/// How much of a foreign name is logged, in bytes.
const MAX_LOGGED: usize = 253;

/// The host of an absolute URL; `None` if it has none that can be asked for by name, as
/// `http+unix://`.
pub(crate) fn of_url(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    (!scheme.ends_with("+unix")).then(|| name(authority))
}

/// Whether a text is a host with an optional port. Not empty, no user information, and no address
/// of a future version (RFC 3986 allows those; nobody has one).
pub(crate) fn is_valid(text: &str) -> bool {
    let (name, port) = split(text);
    is_valid_name(name) && port.is_none_or(is_valid_port)
}

/// Whether a text is a host without a port.
pub(crate) fn is_valid_name(name: &str) -> bool {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => is_reg_name(name.as_bytes()),
    }
}

/// The host without its port.
pub(crate) fn without_port(text: &str) -> &str {
    split(text).0
}

/// The host without its port and without the root's dot, which browsers keep.
pub(crate) fn name(text: &str) -> &str {
    let (name, _) = split(text);
    name.strip_suffix('.').unwrap_or(name)
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        // A colon within brackets belongs to the address.
        Some((_, after)) if after.contains(']') => (text, None),
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    }
}

/// An empty port is the scheme's own (RFC 3986 3.2.3).
fn is_valid_port(port: &str) -> bool {
    port.is_empty()
        || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// RFC 3986 3.2.2: unreserved, percent-encoded and sub-delims, save `,` and `;`, at which upstreams
/// split a Host that they take for a list.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return !name.is_empty(),
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                tail
            }
            [byte, tail @ ..] if byte.is_ascii_alphanumeric() => tail,
            [byte, tail @ ..] if b"-._~!$&'()*+=".contains(byte) => tail,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        for valid in [
            "example.org",
            "example.org.",
            "EXAMPLE.org:8080",
            "a:",
            "127.0.0.1:1",
            "[::1]",
            "[::ffff:1.2.3.4]:443",
            "caf%C3%A9",
            "a_b",
        ] {
            assert!(is_valid(valid), "{valid}");
        }
        for invalid in [
            "",
            ":80",
            "a b",
            "user@a",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a:b",
            "a:+1",
            "a:65536",
            "a:1:2",
            "::1",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:x",
            "[fe80::1%25eth0]",
            "[v1.x]",
            "a%2",
            "a%zz",
            "\"a\"",
            "<a>",
            "a,b",
            "a;b",
            "é",
        ] {
            assert!(!is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn a_name_has_no_port_and_no_last_dot() {
        for (host, expected) in [
            ("a", "a"),
            ("a.:80", "a"),
            ("a:", "a"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(name(host), expected, "{host}");
        }
    }

    #[test]
    fn a_listener_answers_to_its_own_names() {
        let own = OwnNames::new(["Sessions.internal.".to_owned(), "a_b".to_owned()], "api.hosts");
        let admits = |target: &str, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            own.admit(&target.parse().unwrap(), &headers)
        };
        for host in [
            "127.0.0.1",
            "10.0.0.7:8081",
            "[::1]:8081",
            "[::1]",
            "localhost:1",
            "LOCALHOST.",
            "sessions.internal:8081",
            "SESSIONS.internal.",
            "A_B",
            "",
        ] {
            assert!(admits("/", &[host]), "{host}");
        }
        for host in [
            "evil.test",
            "evil.test:8081",
            "127.0.0.1.evil.test",
            "localhost.evil.test",
            "sessions.internal.evil.test",
            "2130706433",
            "127.1",
            "[evil]",
            "::1",
        ] {
            assert!(!admits("/", &[host]), "{host}");
        }
        assert!(admits("/", &[]));
        assert!(admits("http://localhost/", &["127.0.0.1"]));
        assert!(!admits("http://evil.test/", &[]));
        assert!(!admits("http://evil.test/", &["localhost"]));
        assert!(!admits("http://localhost/", &["evil.test"]));
        assert!(!admits("/", &["localhost", "evil.test"]));
    }

    #[test]
    fn an_url_has_its_host() {
        for (url, host) in [
            ("http://Sessions.internal:8081/_session", Some("Sessions.internal")),
            ("https://[::1]:8081/_session", Some("[::1]")),
            ("http://a", Some("a")),
            ("http+unix://%2Frun%2Fapi/_session", None),
            ("a", None),
        ] {
            assert_eq!(of_url(url), host, "{url}");
        }
    }
}
