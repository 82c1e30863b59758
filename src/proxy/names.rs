//! Names of the header fields that the proxy sets, rewrites or removes, and their comparison.
//!
//! CGI and its successors (WSGI, PHP, Rack) replace every `-` of a name by `_`, and some replace every
//! byte that is not alphanumeric. `X_Session_Token` reaches such an upstream as `X-Session-Token`.
//! Names are therefore compared in canonical form: lower case, every other byte replaced by `-`.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

pub(crate) const X_SESSION_URL: HeaderName = HeaderName::from_static("x-session-url");
pub(crate) const X_SESSION_TOKEN: HeaderName = HeaderName::from_static("x-session-token");
pub(crate) const X_SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// The id that the session of a visitor without one would get.
pub(crate) const X_SESSION_NEXT_ID: HeaderName = HeaderName::from_static("x-session-next-id");
pub(crate) const X_SESSION_PRINCIPAL: HeaderName = HeaderName::from_static("x-session-principal");
/// Header exchange: the values of the session.
pub(crate) const X_SESSION_DATA: HeaderName = HeaderName::from_static("x-session-data");
/// Header exchange: the version of the session.
pub(crate) const X_SESSION_VERSION: HeaderName = HeaderName::from_static("x-session-version");
/// Header exchange: the keys of the values that are missing, or the reason why all are.
pub(crate) const X_SESSION_DATA_OMITTED: HeaderName =
    HeaderName::from_static("x-session-data-omitted");
/// The reason why there is no session.
pub(crate) const X_SESSION_ERROR: HeaderName = HeaderName::from_static("x-session-error");
/// The MAC of the session's headers, by which a site verifies that they are this proxy's.
pub(crate) const X_SESSION_PROOF: HeaderName = HeaderName::from_static("x-session-proof");
/// Header exchange: the changes that an upstream requests.
pub(crate) const X_SESSION_PATCH: HeaderName = HeaderName::from_static("x-session-patch");

pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Never written, but passed through from trusted proxies.
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The id of a request.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// CGI upstreams read it as the variable `HTTP_PROXY` ("httpoxy", CVE-2016-5385).
pub(crate) const PROXY: HeaderName = HeaderName::from_static("proxy");
/// Obsolete since RFC 2616, but still sent.
pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Never standardized, but still sent.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Accompanies an upgrade to h2c (RFC 7540, section 3.2.1).
pub(crate) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Takes precedence over Cache-Control in surrogate caches.
pub(crate) const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
/// Takes precedence over Cache-Control in the cache of nginx.
pub(crate) const X_ACCEL_EXPIRES: HeaderName = HeaderName::from_static("x-accel-expires");
/// Takes precedence over Cache-Control in the cache of Akamai.
pub(crate) const EDGE_CONTROL: HeaderName = HeaderName::from_static("edge-control");

/// Prefix of the names that are reserved for the proxy in both directions.
const RESERVED: &[u8] = b"x-session-";

/// Returns whether a name in any spelling is reserved: canonically `x-session-*`.
pub(crate) fn is_reserved(name: &HeaderName) -> bool {
    canonical_starts(name, RESERVED)
}

/// Returns whether two names have the same canonical form.
pub(crate) fn is_same(one: &HeaderName, other: &HeaderName) -> bool {
    one.as_str().len() == other.as_str().len() && canonical(one).eq(canonical(other))
}

/// Returns whether a field, in any spelling, describes the origin of a request or its target before a
/// rewrite, e.g. X-Forwarded-For, CF-Connecting-IP or X-Original-URL. Any client can send such a field
/// with any content. Upstreams read many such names, so they are matched by the words in them.
pub(crate) fn is_forwarding(name: &HeaderName) -> bool {
    const WHOLE: [&[u8]; 4] = [b"x-scheme", b"x-host", b"x-ssl", b"x-https"];
    words(name).any(|rest| forwarding_parts(rest).iter().any(|part| begins_with(rest, part)))
        || WHOLE.iter().any(|whole| canonical_is(name, whole))
}

/// Returns the parts of forwarding names, each at the beginning of a name or after a dash, that begin with the same
/// byte as `rest`. Every field of a request is compared, and most have none.
fn forwarding_parts(rest: &[u8]) -> &'static [&'static [u8]] {
    match rest.first() {
        Some(b'c') => {
            &[b"client-ip", b"clientip", b"client-addr", b"client-cert", b"connecting-ip"]
        }
        Some(b'e') => &[b"external-address"],
        Some(b'f') => &[b"forward", b"front-end-https"],
        Some(b'h') => &[b"host-override"],
        Some(b'o') => &[b"original-", b"originating-"],
        Some(b'r') => &[b"real-ip", b"realip", b"remote-addr", b"remote-ip", b"rewrite-"],
        Some(b's') => &[b"source-ip"],
        Some(b'u') => &[b"url-scheme", b"user-ip"],
        _ => &[],
    }
}

/// Returns whether a name is another spelling of a field that frames or routes a request, that is
/// hop-by-hop, or that the proxy writes. Upstreams that treat both spellings as the same field (Werkzeug before 2.1 reads
/// `Transfer_Encoding`) would see a different request than the proxy: request smuggling.
pub(crate) fn is_respelled(name: &HeaderName) -> bool {
    const CRITICAL: [HeaderName; 15] = [
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
        X_REQUEST_ID,
    ];
    let bytes = name.as_str().as_bytes();
    bytes.iter().any(|byte| *byte != b'-' && !byte.is_ascii_alphanumeric())
        && CRITICAL.iter().any(|critical| is_same(name, critical))
}

/// Returns a name from each of its words on: the name itself, and what follows each dash of its canonical form.
fn words(name: &HeaderName) -> impl Iterator<Item = &[u8]> {
    let mut next = Some(name.as_str().as_bytes());
    std::iter::from_fn(move || {
        let word = next?;
        let dash = word.iter().position(|byte| canonical_byte(*byte) == b'-');
        next = dash.and_then(|dash| word.get(dash + 1..));
        Some(word)
    })
}

/// Returns whether the canonical form of a name is `whole`, itself canonical.
pub(super) fn canonical_is(name: &HeaderName, whole: &[u8]) -> bool {
    name.as_str().len() == whole.len() && canonical_starts(name, whole)
}

/// Returns whether the canonical form of a name begins with `start`, itself canonical.
pub(super) fn canonical_starts(name: &HeaderName, start: &[u8]) -> bool {
    begins_with(name.as_str().as_bytes(), start)
}

/// Returns whether the canonical form of `bytes` begins with `start`, itself canonical.
fn begins_with(bytes: &[u8], start: &[u8]) -> bool {
    bytes
        .get(..start.len())
        .is_some_and(|head| head.iter().zip(start).all(|(a, b)| canonical_byte(*a) == *b))
}

/// Removes every field whose name matches, and returns the removed names. Allocates only if there are
/// any.
pub(super) fn remove_matching(
    headers: &mut HeaderMap,
    matches: impl Fn(&HeaderName) -> bool,
) -> Vec<HeaderName> {
    let removed: Vec<HeaderName> = headers.keys().filter(|name| matches(name)).cloned().collect();
    for name in &removed {
        headers.remove(name);
    }
    removed
}

fn canonical(name: &HeaderName) -> impl Iterator<Item = u8> + '_ {
    name.as_str().bytes().map(canonical_byte)
}

/// Returns the canonical form of a byte of a `HeaderName`, which is in lower case already.
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
    fn reserves_our_names_in_every_spelling() {
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
    fn names_match_with_other_separators() {
        assert!(is_same(&name("X-Remote-User"), &name("x_remote.user")));
        assert!(!is_same(&name("X-Remote-User"), &name("x-remote-users")));
        assert!(!is_same(&name("X-Remote-User"), &name("x-remote-usex")));
    }

    #[test]
    fn recognizes_forwarding_names_in_every_spelling() {
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
    fn recognizes_respelled_framing_fields() {
        for other in [
            "Transfer_Encoding",
            "content_length",
            "Content.Length",
            "Keep_Alive",
            "HTTP2_Settings",
            "X_Request_Id",
        ] {
            assert!(is_respelled(&name(other)), "{other}");
        }
        for own in ["Transfer-Encoding", "Content-Length", "Host", "Cookie", "X_Content_Length"] {
            assert!(!is_respelled(&name(own)), "{own}");
        }
    }
}
