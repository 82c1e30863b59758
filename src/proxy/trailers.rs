//! Cleaning of trailer fields, of requests and responses.
//!
//! Fields that are needed for framing, routing, authentication or control are not allowed in trailers
//! (RFC 9110, section 6.5.1), and some recipients merge trailers into the head. Others pass, such as
//! digests, timings, and the gRPC status.

use http::header::{HeaderMap, HeaderName};

use super::{hop, names};

/// Prefixes of refused names, in canonical form.
const PREFIXES: [&[u8]; 6] =
    [b"content-", b"if-", b"sec-", b"access-control-", b"proxy-", b"cookie"];
/// Refused names, in canonical form.
const NAMES: [&[u8]; 31] = [
    b"accept",
    b"accept-encoding",
    b"age",
    b"allow",
    b"authorization",
    b"cache-control",
    b"cdn-cache-control",
    b"connection",
    b"date",
    b"expect",
    b"expires",
    b"host",
    b"keep-alive",
    b"location",
    b"max-forwards",
    b"origin",
    b"pragma",
    b"proxy",
    b"range",
    b"referer",
    b"refresh",
    b"retry-after",
    b"set-cookie",
    b"surrogate-control",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"vary",
    b"via",
    b"www-authenticate",
];

/// Removes fields that are not allowed in trailers, in any spelling.
///
/// `injected` are the configured names that only the proxy may set; `options` is the result of
/// [`hop::remove`] for the head of the same message.
pub(crate) fn clean(trailers: &mut HeaderMap, injected: &[HeaderName], options: &hop::Options) {
    names::remove_matching(trailers, |name| {
        is_refused(name) || injected.iter().any(|injected| names::is_same(injected, name))
    });
    options.remove_named(trailers);
}

fn is_refused(name: &HeaderName) -> bool {
    // A digest is often known only after the content (RFC 9530, section 6.3).
    if name == "content-digest" {
        return false;
    }
    // By name rather than by a list of allowed fields: applications define trailers of their own.
    hop::is_hop_by_hop(name)
        || names::is_reserved(name)
        || names::is_forwarding(name)
        || PREFIXES.iter().any(|prefix| names::canonical_starts(name, prefix))
        || NAMES.iter().any(|refused| names::canonical_is(name, refused))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn check(name: &'static str, passes: bool) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.append(&name, HeaderValue::from_static("1"));
        trailers.append(&name, HeaderValue::from_static("2"));
        let injected = [HeaderName::from_static("x-remote-user")];
        let mut head = HeaderMap::new();
        head.insert(http::header::CONNECTION, HeaderValue::from_static("close, X-Foo"));
        clean(&mut trailers, &injected, &hop::remove(&mut head));
        assert_eq!(trailers.len(), if passes { 2 } else { 0 }, "{name}");
    }

    #[test]
    fn drops_routing_framing_and_authentication_fields() {
        for name in [
            "X-Session-Token",
            "X_Session_Patch",
            "Transfer-Encoding",
            "transfer_encoding",
            "Content-Length",
            "Content-Type",
            "Host",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "Connection",
            "Trailer",
            "TE",
            "Forwarded",
            "X-Forwarded-For",
            "X-Original-URL",
            "Via",
            "HTTP2-Settings",
            "X_Remote_User",
            "X-Foo",
        ] {
            check(name, false);
        }
    }

    #[test]
    fn keeps_other_fields() {
        for name in
            ["Content-Digest", "Digest", "ETag", "Server-Timing", "grpc-status", "X-Checksum"]
        {
            check(name, true);
        }
    }

    proptest! {
        #[test]
        fn removes_all_reserved_names(
            found in proptest::collection::vec("[Xx][-_.]session[-_.~][a-z]{0,8}|[a-z-]{1,9}", 0..20),
        ) {
            let mut trailers = HeaderMap::new();
            for name in found {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                trailers.append(name, HeaderValue::from_static(""));
            }
            clean(&mut trailers, &[], &hop::Options::default());
            prop_assert!(!trailers.keys().any(names::is_reserved));
        }
    }
}
