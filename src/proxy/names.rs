//! The names of header fields that are ours or that we treat, and how names are compared.
//!
//! CGI and its heirs (WSGI, PHP, Rack) turn every `-` of a name into `_`, and some turn every byte
//! that is no letter or digit. So `X_Session_Token` reaches such an upstream as `X-Session-Token`,
//! and names that matter are compared in their canonical form: lower case, every other byte a `-`.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

/// Absolute URL of the session API.
pub const X_SESSION_URL: HeaderName = HeaderName::from_static("x-session-url");
/// The request token.
pub const X_SESSION_TOKEN: HeaderName = HeaderName::from_static("x-session-token");
/// The session id.
pub const X_SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// The session's principal.
pub const X_SESSION_PRINCIPAL: HeaderName = HeaderName::from_static("x-session-principal");
/// Header exchange: the session's values.
pub const X_SESSION_DATA: HeaderName = HeaderName::from_static("x-session-data");
/// Header exchange: the session's version.
pub const X_SESSION_VERSION: HeaderName = HeaderName::from_static("x-session-version");
/// Header exchange: why the values are not there.
pub const X_SESSION_DATA_OMITTED: HeaderName = HeaderName::from_static("x-session-data-omitted");
/// Why there is no session.
pub const X_SESSION_ERROR: HeaderName = HeaderName::from_static("x-session-error");
/// Header exchange: the change that an upstream asks for.
pub const X_SESSION_PATCH: HeaderName = HeaderName::from_static("x-session-patch");

/// RFC 7239.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// The addresses that a request came through.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Only read: it passes from trusted proxies.
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// The scheme as the browser sees it.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host as the browser sees it.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The client's address alone.
pub const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// CGI upstreams take it for `HTTP_PROXY` ("httpoxy").
pub const PROXY: HeaderName = HeaderName::from_static("proxy");
/// RFC 2068's; obsolete, and still sent.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Never standardised, and still sent.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// RFC 7540 3.2.1; goes with an Upgrade to h2c.
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What caches in front of the site obey instead of Cache-Control.
pub const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
/// nginx's cache obeys it before Cache-Control.
pub const X_ACCEL_EXPIRES: HeaderName = HeaderName::from_static("x-accel-expires");
/// Akamai's cache obeys it before Cache-Control.
pub const EDGE_CONTROL: HeaderName = HeaderName::from_static("edge-control");

/// Where the names begin that are ours in both directions.
const RESERVED: &[u8] = b"x-session-";

/// Whether a name is ours, in any spelling: canonically `x-session-*`.
pub fn is_reserved(name: &HeaderName) -> bool {
    canonical_starts(name, RESERVED)
}

/// Whether two names are one in canonical form.
pub fn is_same(one: &HeaderName, other: &HeaderName) -> bool {
    one.as_str().len() == other.as_str().len() && canonical(one).eq(canonical(other))
}

/// Whether a field tells an upstream, in any spelling, where a request came from or what it asked for
/// before it was rewritten: as X-Forwarded-For, CF-Connecting-IP or X-Original-URL do. A stranger can
/// send anything in it. Upstreams read many such names, so they are matched by the words in them.
pub fn is_forwarding(name: &HeaderName) -> bool {
    /// Words of which one begins at the name's beginning or after a dash.
    const PARTS: [&[u8]; 19] = [
        b"forward",
        b"original-",
        b"originating-",
        b"rewrite-",
        b"client-ip",
        b"clientip",
        b"client-addr",
        b"real-ip",
        b"realip",
        b"connecting-ip",
        b"remote-addr",
        b"remote-ip",
        b"source-ip",
        b"user-ip",
        b"external-address",
        b"host-override",
        b"url-scheme",
        b"front-end-https",
        b"client-cert",
    ];
    const WHOLE: [&[u8]; 4] = [b"x-scheme", b"x-host", b"x-ssl", b"x-https"];
    PARTS.iter().any(|part| has_part(name, part))
        || WHOLE.iter().any(|whole| canonical_is(name, whole))
}

/// Whether a name is another spelling of a field that frames or routes a request, or is hop-by-hop.
/// Upstreams that make one of both (Werkzeug before 2.1 reads `Transfer_Encoding`) would see a request
/// that we did not.
pub fn is_respelled(name: &HeaderName) -> bool {
    const MATTER: [HeaderName; 14] = [
        CONNECTION,
        CONTENT_LENGTH,
        COOKIE,
        EXPECT,
        HOST,
        HTTP2_SETTINGS,
        KEEP_ALIVE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    let bytes = name.as_str().as_bytes();
    bytes.iter().any(|byte| *byte != b'-' && !byte.is_ascii_alphanumeric())
        && MATTER.iter().any(|matters| is_same(name, matters))
}

/// Whether the canonical form of a name has `part`, which is in canonical form, at its beginning or
/// after a dash.
fn has_part(name: &HeaderName, part: &[u8]) -> bool {
    let bytes = name.as_str().as_bytes();
    let matches = |at: usize| {
        let rest = bytes.get(at..).unwrap_or_default();
        rest.len() >= part.len() && rest.iter().zip(part).all(|(a, b)| canonical_byte(*a) == *b)
    };
    let after_dash = bytes.iter().enumerate().filter(|(_, byte)| canonical_byte(**byte) == b'-');
    matches(0) || after_dash.into_iter().any(|(at, _)| matches(at + 1))
}

/// Whether the canonical form of a name is `whole`, which is in canonical form.
pub(super) fn canonical_is(name: &HeaderName, whole: &[u8]) -> bool {
    name.as_str().len() == whole.len() && canonical_starts(name, whole)
}

/// Whether the canonical form of a name begins with `start`, which is in canonical form.
pub(super) fn canonical_starts(name: &HeaderName, start: &[u8]) -> bool {
    name.as_str().len() >= start.len() && canonical(name).zip(start).all(|(a, b)| a == *b)
}

/// Removes every field whose name `is_doomed`, and returns their names; allocates only if there is one.
pub(super) fn remove_where(
    headers: &mut HeaderMap,
    is_doomed: impl Fn(&HeaderName) -> bool,
) -> Vec<HeaderName> {
    let doomed: Vec<HeaderName> = headers.keys().filter(|name| is_doomed(name)).cloned().collect();
    for name in &doomed {
        headers.remove(name);
    }
    doomed
}

fn canonical(name: &HeaderName) -> impl Iterator<Item = u8> + '_ {
    name.as_str().bytes().map(canonical_byte)
}

/// A `HeaderName` is in lower case already.
fn canonical_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn our_names_are_reserved_in_every_spelling() {
        for ours in [
            "X-Session-Token",
            "x_session_token",
            "X-Session_Token",
            "x.session.token",
            "X~Session!Id",
            "x-session-",
            "X-Session-Handle",
        ] {
            assert!(is_reserved(&name(ours)), "{ours}");
        }
        for theirs in
            ["x-session", "xsession-id", "x-sessions-id", "session", "x", "a-x-session-id"]
        {
            assert!(!is_reserved(&name(theirs)), "{theirs}");
        }
    }

    #[test]
    fn names_are_one_whatever_stands_for_the_dash() {
        assert!(is_same(&name("X-Remote-User"), &name("x_remote.user")));
        assert!(!is_same(&name("X-Remote-User"), &name("x-remote-users")));
        assert!(!is_same(&name("X-Remote-User"), &name("x-remote-usex")));
    }

    #[test]
    fn forwarding_names_are_known_in_every_spelling() {
        for spoof in [
            "Forwarded",
            "X-Forwarded-For",
            "X_Forwarded_Proto",
            "X-Forwarded-Prefix",
            "X-Original-URL",
            "X-Rewrite-URL",
            "X.Real.IP",
            "Client-IP",
            "X-Client-IP-Address",
            "X-Cluster-Client-Ip",
            "True-Client-IP",
            "Fastly_Client_IP",
            "X-Azure-ClientIP",
            "CF-Connecting-IPv6",
            "X-Remote-Addr",
            "Remote-Addr",
            "X-ProxyUser-IP-Forward",
            "X-Forward-For",
            "X_Forwarder",
            "X-Original-Host",
            "X-MS-Original-URL",
            "X-Envoy-External-Address",
            "X-HTTP-Host-Override",
            "X-Originating-IP",
            "Front-End-Https",
            "X-Client-Cert",
        ] {
            assert!(is_forwarding(&name(spoof)), "{spoof}");
        }
        for plain in [
            "X-Requested-With",
            "Via",
            "Host",
            "X-Real",
            "Origin",
            "X-Straightforward",
            "X-Aboriginal-Art",
            "X-Unreal-Ip",
            "Client",
            "X-Client-Id",
            "X-HTTP-Method-Override",
            "User-Agent",
        ] {
            assert!(!is_forwarding(&name(plain)), "{plain}");
        }
    }

    #[test]
    fn fields_that_frame_have_one_spelling() {
        for other in [
            "Transfer_Encoding",
            "content_length",
            "Content.Length",
            "Keep_Alive",
            "HTTP2_Settings",
        ] {
            assert!(is_respelled(&name(other)), "{other}");
        }
        for own in ["Transfer-Encoding", "Content-Length", "Host", "Cookie", "X_Content_Length"] {
            assert!(!is_respelled(&name(own)), "{own}");
        }
    }
}
