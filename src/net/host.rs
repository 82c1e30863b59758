//! Syntax of `Host` (RFC 9110, section 7.2: `uri-host [ ":" port ]` of RFC 3986), and the host names of a listener.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Uri};
use tracing::warn;

use crate::log::Seen;

/// Host names that a listener accepts, in addition to IP addresses and `localhost`.
///
/// This protects against DNS rebinding: a foreign page in a browser on this network can let its own host name resolve to
/// the listener's address, which makes the listener part of its origin. But the browser sends that host name.
#[derive(Debug)]
pub(crate) struct OwnNames {
    names: Vec<String>,
    key: &'static str,
    refused: Seen,
}

impl OwnNames {
    /// Accepts `names`; `key` is the configuration key that is logged with a refused name.
    pub(crate) fn new(names: impl IntoIterator<Item = String>, key: &'static str) -> Self {
        let without_dot = |own: String| name(&own).to_ascii_lowercase();
        let names = names.into_iter().map(without_dot).collect();
        Self { names, key, refused: Seen::default() }
    }

    /// Returns whether a request has no host name or an accepted one, both in its authority and its Host. A refused name is
    /// logged once.
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
            // A client sends an empty Host if the URI has no authority (RFC 9112, section 3.2).
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

/// Bytes of a refused name that are logged: the maximum length of a DNS name.
const MAX_LOGGED: usize = 253;

/// Returns the host of an absolute URL. `None` for a URL of a Unix socket, e.g. `http+unix://`.
pub(crate) fn of_url(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    (!scheme.ends_with("+unix")).then(|| name(authority))
}

/// Returns whether a text is a host with an optional port: not empty, without user information, and not an `IPvFuture`
/// address, which RFC 3986 allows but does not exist.
pub(crate) fn is_valid(text: &str) -> bool {
    let (name, port) = split(text);
    is_valid_name(name) && port.is_none_or(is_valid_port)
}

/// Returns whether a text is a host without a port.
pub(crate) fn is_valid_name(name: &str) -> bool {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => is_reg_name(name.as_bytes()),
    }
}

/// Returns the host without its port.
pub(crate) fn without_port(text: &str) -> &str {
    split(text).0
}

/// Returns the host without its port and without a trailing dot, which browsers send.
pub(crate) fn name(text: &str) -> &str {
    let (name, _) = split(text);
    name.strip_suffix('.').unwrap_or(name)
}

fn split(text: &str) -> (&str, Option<&str>) {
    let last = text.bytes().rposition(|byte| matches!(byte, b':' | b']'));
    let colon = last.and_then(|at| text.split_at_checked(at));
    match colon.and_then(|(name, rest)| Some((name, rest.strip_prefix(':')?))) {
        Some((name, port)) => (name, Some(port)),
        // A colon within brackets belongs to the address.
        None => (text, None),
    }
}

/// Returns whether a text is a port. An empty one is the default of the scheme (RFC 3986, section 3.2.3).
fn is_valid_port(port: &str) -> bool {
    port.is_empty()
        || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Returns whether a text is a `reg-name` (RFC 3986, section 3.2.2): unreserved, percent-encoded and sub-delims. `,` and
/// `;` are refused, since some upstreams split a Host at them as if it were a list.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return !name.is_empty(),
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                tail
            }
            [byte, tail @ ..] if byte.is_ascii_alphanumeric() => tail,
            [
                b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
                | b'=',
                tail @ ..,
            ] => tail,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_has_an_optional_port() {
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
    fn name_has_no_port_or_trailing_dot() {
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
    fn listener_accepts_its_own_names() {
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
    fn url_has_a_host() {
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
