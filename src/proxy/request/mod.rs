//! Requests: which ones are taken, and what of their heads goes on to the upstream.

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

/// For the Allow of our own answers: to [`StatusCode::METHOD_NOT_ALLOWED`] (RFC 9110 15.5.6) and to
/// OPTIONS. Other methods are forwarded; whether the upstream has them only it knows.
pub const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// A request that is not forwarded. The connection closes after the answer: where the next request
/// would begin is not certain for all of them (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// What to answer with.
    pub status: StatusCode,
    /// For the log, and harmless to show.
    pub reason: &'static str,
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

/// Who answers an OPTIONS that counts its hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Somebody behind us: forward it.
    Onward,
    /// We: 200 with [`ALLOW`].
    Last,
}

/// Whether a request can be forwarded: what hyper leaves to its user.
pub fn check(parts: &Parts) -> Result<(), Rejected> {
    if !matches!(parts.version, Version::HTTP_10 | Version::HTTP_11 | Version::HTTP_2) {
        return Err(Rejected::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "version of HTTP not supported",
        ));
    }
    // TRACE would show our own fields to scripts (RFC 9110 9.3.8); CONNECT is for forward proxies.
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Rejected::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
    }
    check_target(&parts.method, &parts.uri)?;
    check_host(parts)?;
    check_transfer_encoding(parts)?;
    check_expect(&parts.headers)
}

/// Makes an absolute-form target an origin-form one, its authority the Host (RFC 9112 3.2.2). A
/// request of HTTP/1.0 without a Host gets an empty one (RFC 9112 3.2), since it goes on as HTTP/1.1.
pub fn settle_target(parts: &mut Parts) -> Result<(), Rejected> {
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

/// Joins the crumbs into which HTTP/2 may cut the cookies, for an upstream that does not speak it
/// (RFC 9113 8.2.3).
pub fn join_cookies(parts: &mut Parts) -> Result<(), Rejected> {
    let lines: Vec<&[u8]> =
        parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if parts.version != Version::HTTP_2 || lines.len() < 2 {
        return Ok(());
    }
    let joined = HeaderValue::from_bytes(&lines.join(&b"; "[..]));
    let mut joined = joined.ok().ok_or(Rejected::malformed("invalid cookies"))?;
    joined.set_sensitive(true);
    parts.headers.try_insert(COOKIE, joined)?;
    Ok(())
}

/// Counts this hop on an OPTIONS with Max-Forwards (RFC 9110 7.6.2). A value that is no number, or
/// comes twice, is none.
pub fn count_hop(method: &Method, headers: &mut HeaderMap) -> Hop {
    if method != Method::OPTIONS {
        return Hop::Onward;
    }
    let mut lines = headers.get_all(MAX_FORWARDS).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Hop::Onward;
    };
    let digits = line.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Hop::Onward;
    }
    // More hops than we can count are brought down to what we can count, as the RFC wants.
    let hops = line.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
    let Some(left) = hops.checked_sub(1) else {
        return Hop::Last;
    };
    if let Some(value) = headers.get_mut(MAX_FORWARDS) {
        *value = HeaderValue::from(left);
    }
    Hop::Onward
}

/// What [`clean`] found.
#[derive(Debug)]
pub struct Cleaned {
    /// The options of the Connection lines, for the trailers of the same request
    /// ([`super::trailers::clean`]).
    pub options: hop::Options,
    /// The names of the fields that were dropped because they may not come from a client.
    pub dropped: Vec<HeaderName>,
}

/// Removes what must not reach an upstream: our own names in any spelling, `Proxy`, Expect (hyper
/// answers it), the hop-by-hop fields, save `TE: trailers`, and other spellings of what frames a
/// request.
///
/// `ours` are the configured names that only we may set: the principal headers and the request headers
/// of all routes.
pub fn clean(headers: &mut HeaderMap, ours: &[HeaderName]) -> Cleaned {
    let takes_trailers =
        list::members(headers, &TE).any(|member| member.eq_ignore_ascii_case(b"trailers"));
    let options = hop::remove(headers);
    headers.remove(EXPECT);
    let dropped = names::remove_where(headers, |name| {
        *name == PROXY
            || names::is_reserved(name)
            || names::is_respelled(name)
            || ours.iter().any(|our| names::is_same(our, name))
    });
    // RFC 9110 10.1.4: whoever sends TE names it in Connection. If there is no room, neither goes.
    if takes_trailers && headers.try_insert(CONNECTION, HeaderValue::from_static("te")).is_ok() {
        let _ = headers.try_insert(TE, HeaderValue::from_static("trailers"));
    }
    Cleaned { options, dropped }
}

/// RFC 9112 3.2: origin-form, absolute-form, or `*` for OPTIONS; authority-form is CONNECT's.
fn check_target(method: &Method, uri: &Uri) -> Result<(), Rejected> {
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => {
            if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                return Err(Rejected::malformed("scheme not supported"));
            }
            // User information in it is an error (RFC 9110 4.2.4), and no valid host.
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

/// RFC 9112 3.2: 400 for an HTTP/1.1 request without a Host, also in absolute-form, and for any
/// with several or an invalid one. In HTTP/2 the authority stands for it (RFC 9113 8.3.1).
fn check_host(parts: &Parts) -> Result<(), Rejected> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let authority = parts.uri.authority();
    let line = match (lines.next(), lines.next()) {
        (_, Some(_)) => return Err(Rejected::malformed("several Host fields")),
        (Some(line), None) => line,
        (None, None) if parts.version == Version::HTTP_10 => return Ok(()),
        (None, None) if parts.version == Version::HTTP_2 && authority.is_some() => return Ok(()),
        (None, None) => return Err(Rejected::malformed("no Host")),
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

/// hyper takes `chunked` twice and `gzip, chunked`; the upstream might frame them otherwise.
fn check_transfer_encoding(parts: &Parts) -> Result<(), Rejected> {
    let mut lines = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Ok(()),
        (Some(line), None) if parts.version == Version::HTTP_11 => line.as_bytes(),
        // RFC 9112 6.1 for HTTP/1.0, RFC 9113 8.2.2 for HTTP/2.
        _ => return Err(Rejected::malformed("invalid Transfer-Encoding")),
    };
    let is_chunked = |coding: &&[u8]| list::trim(coding).eq_ignore_ascii_case(b"chunked");
    let mut codings = line.rsplit(|byte| *byte == b',');
    // RFC 9112 6.3: without chunked as the last coding, nobody knows where the body ends.
    if !codings.next().as_ref().is_some_and(is_chunked) {
        return Err(Rejected::malformed("invalid Transfer-Encoding"));
    }
    let others: Vec<&[u8]> = codings.collect();
    if others.iter().any(|coding| is_chunked(coding) || list::trim(coding).is_empty()) {
        return Err(Rejected::malformed("invalid Transfer-Encoding"));
    }
    if !others.is_empty() {
        // RFC 9112 6.1.
        return Err(Rejected::new(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding"));
    }
    Ok(())
}

/// RFC 9110 10.1.1: the one expectation that there is.
fn check_expect(headers: &HeaderMap) -> Result<(), Rejected> {
    if list::members(headers, &EXPECT).all(|member| member.eq_ignore_ascii_case(b"100-continue")) {
        Ok(())
    } else {
        Err(Rejected::new(StatusCode::EXPECTATION_FAILED, "unknown expectation"))
    }
}
