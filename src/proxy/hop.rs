//! Hop-by-hop fields (RFC 9110, section 7.6.1): meant for the next recipient only, and not forwarded.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};

use super::{list, names};

/// The Connection options of a message. They name fields of its head and of its trailers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    lines: Vec<HeaderValue>,
}

/// Removes the hop-by-hop fields of a head. The returned options apply to the trailers too
/// ([`super::trailers::clean`]).
pub(crate) fn remove(headers: &mut HeaderMap) -> Options {
    // `close` and `keep-alive` name no fields that are kept, so most requests have nothing to copy.
    let lines = headers.get_all(CONNECTION).iter().filter(|line| !is_common(line.as_bytes()));
    let options = Options { lines: lines.cloned().collect() };
    // Removed after the options have been copied: Connection is one of them.
    names::remove_matching(headers, is_hop_by_hop);
    options.remove_named(headers);
    options
}

impl Options {
    /// Removes the fields that the options name.
    ///
    /// A head can hold thousands of options. An option that names no present field, or one that was
    /// removed or kept before, costs at most a lookup and no allocation.
    pub(super) fn remove_named(&self, fields: &mut HeaderMap) {
        if self.lines.is_empty() || fields.is_empty() {
            return;
        }
        let lengths = fields.keys().fold(0, |lengths, name| lengths | length_bit(name.as_str()));
        let mut kept = HeaderMap::<()>::with_capacity(0);
        let options =
            self.lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        for option in options.map(list::trim).filter_map(|option| str::from_utf8(option).ok()) {
            if lengths & length_bit(option) == 0
                || !fields.contains_key(option)
                || kept.contains_key(option)
            {
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(option.as_bytes()) else { continue };
            if is_end_to_end(&name) {
                kept.insert(name, ());
            } else {
                fields.remove(name);
            }
        }
    }
}

/// Returns one bit for the length of a name. A set of them rules out most options without a lookup.
fn length_bit(name: &str) -> u64 {
    1 << name.len().min(63)
}

fn is_common(line: &[u8]) -> bool {
    line.eq_ignore_ascii_case(b"close") || line.eq_ignore_ascii_case(b"keep-alive")
}

/// Returns whether a name is hop-by-hop even if no Connection option lists it.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Returns whether a field is end-to-end even if a Connection option lists it. Otherwise a client could
/// strip what a trusted proxy has added (CVE-2024-45410, CVE-2022-31813), or the framing. RFC 9110,
/// section 7.6.1, forbids options that name such fields; they are ignored.
fn is_end_to_end(name: &HeaderName) -> bool {
    const STARTS: [&str; 5] = ["content-", "if-", "sec-", "access-control-", "x-session-"];
    const WHOLE: [&str; 24] = [
        "accept-ranges",
        "age",
        "authorization",
        "cache-control",
        "cookie",
        "date",
        "etag",
        "expect",
        "expires",
        "host",
        "last-modified",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "set-cookie",
        "strict-transport-security",
        "vary",
        "via",
        "www-authenticate",
    ];
    let text = name.as_str();
    WHOLE.contains(&text)
        || STARTS.iter().any(|start| text.starts_with(start))
        || names::is_forwarding(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn removes_listed_fields_except_end_to_end() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", ""),
            ("connection", "close, X-Foo, ,host,\"x\""),
            ("connection", "cOOkie,x-bar ,Content-Length, X-Forwarded-For,Authorization,Via"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("x-foo", "1"),
            ("x-foo", "2"),
            ("x-bar", "1"),
            ("host", "a"),
            ("cookie", "a=b"),
            ("content-length", "0"),
            ("x-forwarded-for", "1.2.3.4"),
            ("authorization", "x"),
            ("via", "1.1 a"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let options = remove(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["authorization", "content-length", "cookie", "host", "via", "x-forwarded-for"]
        );
        let mut trailers = HeaderMap::new();
        for name in ["x-foo", "x-bar", "x-baz", "etag"] {
            trailers.append(name, HeaderValue::from_static("1"));
        }
        options.remove_named(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["etag", "x-baz"]);
    }

    proptest! {
        /// Compares with a naive implementation that checks every option on its own.
        #[test]
        fn agrees_with_naive_removal(
            lines in proptest::collection::vec("([aAbBx-]{0,3}|cookie|Via|x-a|é|[ \t,]){0,12}", 0..4),
            names in proptest::collection::vec("[abx-]{1,3}|cookie|via|te", 0..8),
        ) {
            let mut headers = HeaderMap::new();
            for name in &names {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1"));
            }
            let mut expected: Vec<HeaderName> = headers.keys().filter(|name| {
                let named = lines.iter().flat_map(|line| line.split(','))
                    .any(|option| option.trim_matches([' ', '\t']).eq_ignore_ascii_case(name.as_str()));
                !is_hop_by_hop(name) && (!named || is_end_to_end(name))
            }).cloned().collect();
            for line in &lines {
                headers.append(CONNECTION, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            remove(&mut headers);
            let mut left: Vec<HeaderName> = headers.keys().cloned().collect();
            left.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            expected.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            prop_assert_eq!(left, expected);
        }
    }
}
