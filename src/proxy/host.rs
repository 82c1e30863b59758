//! The syntax of `Host` (RFC 9110 7.2: RFC 3986's `uri-host [ ":" port ]`).

use std::net::Ipv6Addr;

/// Whether a text is a host with an optional port. Not empty, no user information, and no address
/// of a future version (RFC 3986 allows those; nobody has one).
pub(super) fn is_valid(text: &str) -> bool {
    let (name, port) = split(text);
    is_valid_name(name) && port.is_none_or(is_valid_port)
}

/// Whether a text is a host without a port.
pub(super) fn is_valid_name(name: &str) -> bool {
    match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => is_reg_name(name.as_bytes()),
    }
}

/// The host without its port.
pub(super) fn without_port(text: &str) -> &str {
    split(text).0
}

/// The host without its port and without the root's dot, which browsers keep.
pub(super) fn name(text: &str) -> &str {
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

/// RFC 3986 3.2.2: unreserved, percent-encoded and sub-delims.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return !name.is_empty(),
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                tail
            }
            [byte, tail @ ..] if byte.is_ascii_alphanumeric() => tail,
            [byte, tail @ ..] if b"-._~!$&'()*+,;=".contains(byte) => tail,
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
}
