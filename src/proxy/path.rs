//! Two normalizations of a request path, strict and lenient, to recognize the session API's prefix.
//!
//! Servers differ: some decode twice, merge slashes, or drop parameters. A path is forwarded byte for
//! byte (RFC 9110, section 7.7), so a decision based on it must hold for every upstream's reading.

use std::borrow::Cow;

/// Returns whether a path, in either normalization, is at or below the session API: the prefix itself,
/// or the prefix followed by `s`. The prefix begins with a slash and has at least one segment.
pub(crate) fn is_api_path(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/').as_bytes();
    let is_at_or_below = |path: &[u8]| {
        path.strip_prefix(prefix).is_some_and(|rest| {
            ends_segment(rest) || rest.strip_prefix(b"s").is_some_and(ends_segment)
        })
    };
    // Neither normalization includes the other: the strict one keeps empty segments and parameters.
    is_at_or_below(&strict(path)) || is_at_or_below(&lenient(path))
}

/// Normalizes a path by RFC 3986: unreserved characters decoded (section 6.2.2.2), then dot segments
/// removed (section 5.2.4).
fn strict(path: &str) -> Cow<'_, [u8]> {
    if is_plain(path) {
        return Cow::Borrowed(path.as_bytes());
    }
    let mut unreserved = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => escape(*high, *low),
            _ => None,
        };
        rest = match (escaped, tail) {
            (Some(decoded), [_, _, tail @ ..]) if is_unreserved(decoded) => {
                unreserved.push(decoded);
                tail
            }
            (Some(_), [high, low, tail @ ..]) => {
                unreserved.extend([b'%', high.to_ascii_lowercase(), low.to_ascii_lowercase()]);
                tail
            }
            _ => {
                unreserved.push(*byte);
                tail
            }
        };
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in unreserved.split(|byte| *byte == b'/').skip(1) {
        match segment {
            b"." => {}
            // Above the root, `..` is ignored (RFC 3986, section 5.2.4).
            b".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    Cow::Owned(rooted(&kept))
}

/// Normalizes a path as the most lenient server does: decoded until nothing is left to decode,
/// backslashes read as slashes, slashes merged, parameters dropped, dot segments removed.
fn lenient(path: &str) -> Cow<'_, [u8]> {
    if is_plain(path) {
        return Cow::Borrowed(path.as_bytes());
    }
    let decoded = decode(path.as_bytes());
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        // After another decoding, a query, a fragment or an end of string would begin here.
        let name = segment.split(|byte| matches!(byte, b';' | b'?' | b'#' | 0)).next();
        match name.unwrap_or_default() {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    Cow::Owned(rooted(&kept))
}

/// Returns whether a prefix ends at a segment boundary, given what follows it.
pub(super) fn ends_segment(rest: &[u8]) -> bool {
    matches!(rest, [] | [b'/', ..])
}

/// Returns whether every server reads the path alike, apart from letter case. Most paths are plain.
pub(super) fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    path.starts_with('/')
        && path.bytes().all(|byte| {
            let plain = match byte {
                b'%' | b'\\' | b';' | b'?' | b'#' | 0 => false,
                b'/' | b'.' => !after_slash,
                _ => true,
            };
            after_slash = byte == b'/';
            plain
        })
}

fn rooted(segments: &[&[u8]]) -> Vec<u8> {
    let mut path = Vec::new();
    for segment in segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

/// Decodes until nothing is left to decode, in one pass: an escape that decoding completes ends in
/// the byte that was just written, so only the end needs to be checked again.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded: Vec<u8> = Vec::with_capacity(path.len());
    for byte in path {
        decoded.push(*byte);
        while let [.., b'%', high, low] = decoded[..]
            && let Some(byte) = escape(high, low)
        {
            decoded.truncate(decoded.len() - 3);
            decoded.push(byte);
        }
    }
    decoded
}

/// Returns whether a byte is unreserved (RFC 3986, section 2.3), or not ASCII: such a byte has no
/// other meaning either, and only appears unencoded in configured paths.
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || !byte.is_ascii()
}

/// Decodes the two hexadecimal digits of an escape.
pub(super) fn escape(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(path: &str, expected: bool) {
        assert_eq!(is_api_path(path, "/_session"), expected, "{path}");
        assert_eq!(is_api_path(path, "/_session/"), expected, "{path}");
    }

    #[test]
    fn recognizes_the_api_in_every_spelling() {
        for path in [
            "/_session",
            "/_sessions",
            "/_session/",
            "/_session/values/a",
            "/_sessions/x",
            "//_session",
            "///_session//values",
            "/%5fsession",
            "/%5Fsession",
            "/%255fsession",
            "/%25255fsession",
            "/%%35fsession",
            "/%5%66session",
            "/./_session",
            "/%2e/_session",
            "/x/../_session",
            "/x/%2e%2e/_session",
            "/x/..;a=b/_session",
            "/../_session",
            "/x/..%2f_session",
            "/_session%2fvalues",
            "/_session%252fvalues",
            "/_session;a=b/values",
            "/_session%3ba",
            "/;/_session",
            "/\\_session",
            "/%5c_session",
            "/_session\\values",
            "/_session%3fx",
            "/_session%23x",
            "/_session%00",
            "/_session/..%2fx",
            "/_sessions;x",
        ] {
            check(path, true);
        }
    }

    #[test]
    fn leaves_other_paths_to_the_upstream() {
        for path in [
            "/",
            "*",
            "",
            "/_sessionx",
            "/_sessionss",
            "/_Session",
            "/x/_session",
            "/session",
            "/_session/../x",
            "/_sessions%78",
            "/a;/_session",
            "/%",
            "/%5",
            "/%zz",
        ] {
            check(path, false);
        }
        assert!(is_api_path("/a//b/x", "/a/b"));
        assert!(!is_api_path("/a", "/a/b"));
    }

    #[test]
    fn plain_paths_are_not_copied() {
        assert!(matches!(lenient("/a/b.c/d_e"), Cow::Borrowed(_)));
        assert!(matches!(strict("/a/"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn decoding_is_idempotent(path in "[/%25cfF.;\\\\e]{0,40}") {
            let once = decode(path.as_bytes());
            prop_assert_eq!(&decode(&once), &once);
        }

        #[test]
        fn recognizes_the_prefix_in_any_encoding(depth in 1_usize..6, at in 0_usize..8) {
            let (before, rest) = "_session".split_at(at);
            let (byte, after) = rest.split_at(1);
            let mut encoded = format!("%{:02x}", byte.as_bytes()[0]);
            for _ in 1..depth {
                encoded = encoded.replace('%', "%25");
            }
            let path = format!("/{before}{encoded}{after}/x");
            prop_assert!(is_api_path(&path, "/_session"), "{}", path);
        }

        #[test]
        fn normalizes_any_path_without_panicking(path in ".{0,40}") {
            let _ = (strict(&path), lenient(&path));
        }
    }
}
