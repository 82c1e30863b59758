//! Hop-by-hop fields (RFC 9110 7.6.1): they are meant for the next recipient, which is us, and never
//! go on.

use http::header::{CONNECTION, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};

use super::{
    list,
    names::{self, HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION},
};

/// Those that are hop-by-hop whether or not a Connection line names them.
const FIXED: [HeaderName; 7] =
    [CONNECTION, PROXY_CONNECTION, KEEP_ALIVE, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS];

/// Removes the hop-by-hop fields of a head.
///
/// Returns the further names that its Connection lines gave: they go from the trailers too
/// ([`super::trailers::clean`]).
pub fn remove(headers: &mut HeaderMap) -> Vec<HeaderName> {
    let nominated: Vec<HeaderName> =
        list::members(headers, &CONNECTION).filter_map(nominated).collect();
    for name in FIXED.iter().chain(&nominated) {
        headers.remove(name);
    }
    nominated
}

/// Whether a name is hop-by-hop by itself.
pub(super) fn is_fixed(name: &HeaderName) -> bool {
    FIXED.contains(name)
}

fn nominated(option: &[u8]) -> Option<HeaderName> {
    // The everyday ones, which need no name made of them.
    if option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive") {
        return None;
    }
    let name = HeaderName::from_bytes(option).ok()?;
    (!is_fixed(&name) && !is_end_to_end(&name)).then_some(name)
}

/// Fields that a Connection line can't take away: with them a client would strip what a proxy before
/// us said (CVE-2024-45410, CVE-2022-31813), or the framing. RFC 9110 7.6.1 forbids to name fields
/// that are for all recipients; such an option is ignored.
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
    use http::HeaderValue;

    use super::*;

    #[test]
    fn every_connection_line_is_honoured_and_end_to_end_fields_stay() {
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
        assert_eq!(remove(&mut headers), ["x-foo", "x-bar"]);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["authorization", "content-length", "cookie", "host", "via", "x-forwarded-for"]
        );
    }
}
