//! Validation and cleaning of request heads.

#[cfg(test)]
mod tests;

use http::header::{
    CONNECTION, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS,
    MaxSizeReached, TE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Uri, Version};

use super::{
    hop, list,
    names::{self, PROXY},
};
use crate::net::host;

/// The Allow field of the proxy's own responses: 405 (RFC 9110, section 15.5.6) and OPTIONS. Other
/// methods are forwarded too; only the upstream knows whether it supports them.
pub(crate) const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The reason why a request is not forwarded. The connection is closed after the response, because the
/// start of the next request may be uncertain (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Rejected {
    /// The status of the response.
    pub(crate) status: StatusCode,
    /// A description for the log, safe to show to clients.
    pub(crate) reason: &'static str,
}

impl Rejected {
    const fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason }
    }

    const fn malformed(reason: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<MaxSizeReached> for Rejected {
    fn from(_: MaxSizeReached) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    }
}

/// The recipient of a request, according to its Max-Forwards field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipient {
    /// The request is forwarded.
    Upstream,
    /// The proxy itself responds: 200 with [`ALLOW`].
    Proxy,
}

/// Checks what hyper leaves to its user: version, method, target, Host, framing and expectations.
pub(crate) fn check(parts: &Parts) -> Result<(), Rejected> {
    if !matches!(parts.version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(Rejected::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "HTTP version not supported",
        ));
    }
    // TRACE would reveal the session headers to scripts (RFC 9110, section 9.3.8); CONNECT is for
    // forward proxies.
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Rejected::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
    }
    check_target(&parts.method, &parts.uri)?;
    check_host(parts)?;
    check_transfer_encoding(parts)?;
    check_expect(&parts.headers)
}

/// Converts an absolute-form target to origin-form, and its authority to the Host field (RFC 9112,
/// section 3.2.2). An HTTP/1.0 request without a Host gets an empty one (section 3.2), because it is
/// forwarded as HTTP/1.1.
pub(crate) fn normalize_target(parts: &mut Parts) -> Result<(), Rejected> {
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str())
            .ok()
            .ok_or(Rejected::malformed("invalid authority"))?;
        parts.headers.try_insert(HOST, host)?;
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    } else if !parts.headers.contains_key(HOST) {
        parts.headers.try_insert(HOST, HeaderValue::from_static(""))?;
    }
    Ok(())
}

/// Joins Cookie fields that HTTP/2 may have split, because an HTTP/1 upstream expects a single one
/// (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(parts: &mut Parts) -> Result<(), Rejected> {
    if parts.version != Version::HTTP_2 || parts.headers.get_all(COOKIE).iter().nth(1).is_none() {
        return Ok(());
    }
    let lines: Vec<&[u8]> =
        parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&lines.join(&b"; "[..]));
    let mut joined = joined.ok().ok_or(Rejected::malformed("invalid cookies"))?;
    joined.set_sensitive(true);
    parts.headers.try_insert(COOKIE, joined)?;
    Ok(())
}

/// Decrements the Max-Forwards field of an OPTIONS request (RFC 9110, section 7.6.2). A field that is
/// repeated or not a number is ignored.
pub(crate) fn decrement_max_forwards(method: &Method, headers: &mut HeaderMap) -> Recipient {
    if method != Method::OPTIONS {
        return Recipient::Upstream;
    }
    let mut lines = headers.get_all(MAX_FORWARDS).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Recipient::Upstream;
    };
    let digits = line.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Recipient::Upstream;
    }
    // The RFC lets a recipient replace a larger value by its own maximum.
    let hops = line.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
    let Some(left) = hops.checked_sub(1) else {
        return Recipient::Proxy;
    };
    if let Some(value) = headers.get_mut(MAX_FORWARDS) {
        *value = HeaderValue::from(left);
    }
    Recipient::Upstream
}

/// The result of [`clean`].
#[derive(Debug)]
pub(crate) struct Cleaned {
    /// Connection options, for the trailers of the same request ([`super::trailers::clean`]).
    pub(crate) options: hop::Options,
    /// Names of removed fields that clients may not send.
    pub(crate) dropped: Vec<HeaderName>,
}

/// Removes what must not reach an upstream: reserved names in any spelling, `Proxy`, Expect (hyper
/// handles it), hop-by-hop fields except `TE: trailers`, and respelled framing fields.
///
/// `injected` are the configured names that only the proxy may set: the principal headers and request
/// headers of all routes.
pub(crate) fn clean(headers: &mut HeaderMap, injected: &[HeaderName]) -> Cleaned {
    let takes_trailers =
        list::members(headers, &TE).any(|member| member.eq_ignore_ascii_case(b"trailers"));
    let options = hop::remove(headers);
    headers.remove(EXPECT);
    let dropped = names::remove_matching(headers, |name| {
        *name == PROXY
            || names::is_reserved(name)
            || names::is_respelled(name)
            || injected.iter().any(|injected| names::is_same(injected, name))
    });
    // RFC 9110, section 10.1.4: a sender of TE must list it in Connection. If the head is full, neither
    // is sent.
    if takes_trailers && headers.try_insert(CONNECTION, HeaderValue::from_static("te")).is_ok() {
        let _ = headers.try_insert(TE, HeaderValue::from_static("trailers"));
    }
    Cleaned { options, dropped }
}

/// Checks the form of a target (RFC 9112, section 3.2): origin-form, absolute-form, or `*` for OPTIONS.
/// Authority-form is for CONNECT only.
fn check_target(method: &Method, uri: &Uri) -> Result<(), Rejected> {
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                return Err(Rejected::malformed("scheme not supported"));
            }
            // This also rejects user information (RFC 9110, section 4.2.4).
            if !host::is_valid(authority.as_str()) {
                return Err(Rejected::malformed("invalid authority"));
            }
            check_path(method, uri)
        }
        (None, None) => check_path(method, uri),
        _ => Err(Rejected::malformed("invalid request target")),
    }
}

fn check_path(method: &Method, uri: &Uri) -> Result<(), Rejected> {
    match uri.path() {
        "*" if method == Method::OPTIONS => Ok(()),
        path if path.starts_with('/') => Ok(()),
        _ => Err(Rejected::malformed("invalid request target")),
    }
}

/// Rejects an HTTP/1.1 request without a Host, even in absolute-form, and any request with several or
/// an invalid one (RFC 9112, section 3.2). HTTP/2 has the authority instead (RFC 9113, section 8.3.1).
fn check_host(parts: &Parts) -> Result<(), Rejected> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let authority = parts.uri.authority();
    let line = match (lines.next(), lines.next()) {
        (_, Some(_)) => return Err(Rejected::malformed("multiple Host fields")),
        (Some(line), None) => line,
        (None, None) if parts.version == Version::HTTP_10 => return Ok(()),
        (None, None) if parts.version == Version::HTTP_2 && authority.is_some() => return Ok(()),
        (None, None) => return Err(Rejected::malformed("missing Host")),
    };
    let valid = line.to_str().is_ok_and(host::is_valid);
    let differs = parts.version == Version::HTTP_2
        && authority.is_some_and(|authority| {
            !authority.as_str().as_bytes().eq_ignore_ascii_case(line.as_bytes())
        });
    if !valid || differs {
        return Err(Rejected::malformed("invalid Host"));
    }
    Ok(())
}

/// Rejects transfer codings other than a single `chunked`. hyper accepts `chunked` twice and `gzip,
/// chunked`, which the upstream might frame differently.
fn check_transfer_encoding(parts: &Parts) -> Result<(), Rejected> {
    let mut lines = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Ok(()),
        (Some(line), None) if parts.version == Version::HTTP_11 => line.as_bytes(),
        // RFC 9112, section 6.1, for HTTP/1.0; RFC 9113, section 8.2.2, for HTTP/2.
        _ => return Err(Rejected::malformed("invalid Transfer-Encoding")),
    };
    let is_chunked = |coding: &&[u8]| list::trim(coding).eq_ignore_ascii_case(b"chunked");
    let mut codings = line.rsplit(|byte| *byte == b',');
    // RFC 9112, section 6.3: the end of the body is unknown unless the last coding is chunked.
    if !codings.next().as_ref().is_some_and(is_chunked) {
        return Err(Rejected::malformed("invalid Transfer-Encoding"));
    }
    let others: Vec<&[u8]> = codings.collect();
    if others.iter().any(|coding| is_chunked(coding) || list::trim(coding).is_empty()) {
        return Err(Rejected::malformed("invalid Transfer-Encoding"));
    }
    if !others.is_empty() {
        // RFC 9112, section 6.1: 501 for an unknown coding.
        return Err(Rejected::new(StatusCode::NOT_IMPLEMENTED, "unsupported transfer coding"));
    }
    Ok(())
}

/// Rejects expectations other than 100-continue, the only one defined (RFC 9110, section 10.1.1).
fn check_expect(headers: &HeaderMap) -> Result<(), Rejected> {
    if list::members(headers, &EXPECT).all(|member| member.eq_ignore_ascii_case(b"100-continue")) {
        Ok(())
    } else {
        Err(Rejected::new(StatusCode::EXPECTATION_FAILED, "unsupported expectation"))
    }
}
