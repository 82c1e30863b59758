//! Trailer fields, of requests and of responses.
//!
//! RFC 9110 6.5.1: a field that routes, frames, authenticates or controls may not come after the
//! content, and some recipients merge trailers into the head. What passes is the rest: digests,
//! timings, gRPC's status.

use http::header::{HeaderMap, HeaderName};

use super::{hop, names};

/// In canonical form.
const STARTS: [&[u8]; 6] = [b"content-", b"if-", b"sec-", b"access-control-", b"proxy-", b"cookie"];
/// In canonical form.
const WHOLE: [&[u8]; 31] = [
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

/// Removes from a trailer section what may not stand in one, in any spelling.
///
/// `ours` are the configured names that only we may set, `options` what [`hop::remove`] returned of
/// the same message's head.
pub fn clean(trailers: &mut HeaderMap, ours: &[HeaderName], options: &hop::Options) {
    names::remove_where(trailers, |name| {
        is_refused(name) || ours.iter().any(|our| names::is_same(our, name))
    });
    options.remove_named(trailers);
}

fn is_refused(name: &HeaderName) -> bool {
    // RFC 9530 6.3: a digest is known only when all content has been seen.
    if name == "content-digest" {
        return false;
    }
    hop::is_fixed(name)
        || names::is_reserved(name)
        || names::is_forwarding(name)
        || STARTS.iter().any(|start| names::canonical_starts(name, start))
        || WHOLE.iter().any(|whole| names::canonical_is(name, whole))
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
        let ours = [HeaderName::from_static("x-remote-user")];
        let mut head = HeaderMap::new();
        head.insert(http::header::CONNECTION, HeaderValue::from_static("close, X-Foo"));
        clean(&mut trailers, &ours, &hop::remove(&mut head));
        assert_eq!(trailers.len(), if passes { 2 } else { 0 }, "{name}");
    }

    #[test]
    fn what_routes_frames_or_authenticates_is_dropped() {
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
    fn the_rest_passes() {
        for name in
            ["Content-Digest", "Digest", "ETag", "Server-Timing", "grpc-status", "X-Checksum"]
        {
            check(name, true);
        }
    }

    proptest! {
        #[test]
        fn nothing_reserved_is_left(
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
