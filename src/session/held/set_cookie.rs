//! A `Set-Cookie` of the site, as a browser reads it (RFC 6265, sections 5.2 and 5.3).

use std::net::IpAddr;
use std::time::Duration;

use crate::secret::Secret;
use crate::session::cookie::SameSite;
use crate::time::Timestamp;

/// The longest name and value together that are kept, in bytes (RFC 6265bis, section 5.7).
pub(crate) const MAX_BYTES: usize = 4096;

/// The longest Path and Domain that are kept, in bytes (RFC 6265bis, section 5.6).
const MAX_ATTRIBUTE: usize = 1024;

/// The name, domain and path of a cookie, by which a later one replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// The domain in lower case, without a dot in front.
    pub(crate) domain: String,
    pub(crate) path: String,
}

/// A cookie that a response sets or deletes.
#[derive(Clone, Debug)]
pub(crate) struct SetCookie {
    pub(crate) identity: Identity,
    /// The cookie is for its host alone; otherwise for all hosts of the domain.
    pub(crate) is_host_only: bool,
    pub(crate) value: Secret,
    pub(crate) lifetime: Lifetime,
    pub(crate) is_http_only: bool,
    /// The cross-site requests for which the site wants it, if it says so.
    pub(crate) same_site: Option<SameSite>,
}

/// The lifetime of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// It ends with the browser.
    Browser,
    /// It ends at this instant. One in the past deletes the cookie.
    Until(Timestamp),
}

/// The reason why a browser would ignore a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ignored {
    /// It cannot be parsed, or is not UTF-8.
    #[error("it cannot be read")]
    Unreadable,
    /// Its Domain does not cover the host of the request.
    #[error("its Domain is not that of the host")]
    OtherDomain,
    /// Name and value are longer than [`MAX_BYTES`], or an attribute than [`MAX_ATTRIBUTE`].
    #[error("it is longer than {MAX_BYTES} bytes, or its Path or Domain than {MAX_ATTRIBUTE}")]
    TooLong,
}

/// The request whose response sets a cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CookieRequest<'a> {
    /// The host in lower case, without a port.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) now: Timestamp,
}

impl SetCookie {
    /// Parses the field value of a `Set-Cookie`.
    pub(crate) fn parse(line: &[u8], request: CookieRequest<'_>) -> Result<Self, Ignored> {
        let text = std::str::from_utf8(line).map_err(|_not_utf8| Ignored::Unreadable)?;
        let cookie = cookie::Cookie::parse(text).map_err(|_malformed| Ignored::Unreadable)?;
        let (name, value) = (cookie.name(), cookie.value());
        if name.len() + value.len() > MAX_BYTES {
            return Err(Ignored::TooLong);
        }
        let (domain, is_host_only) = match cookie.domain().filter(|domain| !domain.is_empty()) {
            None => (request.host.to_owned(), true),
            Some(domain) => (domain.to_ascii_lowercase(), false),
        };
        if !domain_matches(request.host, &domain) {
            return Err(Ignored::OtherDomain);
        }
        let path = cookie.path().filter(|path| path.starts_with('/'));
        let path = path.unwrap_or_else(|| default_path(request.path)).to_owned();
        if path.len() > MAX_ATTRIBUTE || domain.len() > MAX_ATTRIBUTE {
            return Err(Ignored::TooLong);
        }
        Ok(Self {
            identity: Identity { name: name.to_owned(), domain, path },
            is_host_only,
            value: Secret::new(value.to_owned()),
            lifetime: lifetime(&cookie, request.now),
            is_http_only: cookie.http_only().unwrap_or_default(),
            same_site: cookie.same_site().map(|same_site| match same_site {
                cookie::SameSite::Strict => SameSite::Strict,
                cookie::SameSite::Lax => SameSite::Lax,
                cookie::SameSite::None => SameSite::None,
            }),
        })
    }

    /// Returns whether it deletes the cookie.
    pub(crate) fn deletes(&self, now: Timestamp) -> bool {
        self.lifetime.is_over(now)
    }
}

impl Lifetime {
    pub(crate) fn is_over(self, now: Timestamp) -> bool {
        matches!(self, Self::Until(end) if end <= now)
    }
}

/// Returns the lifetime: Max-Age counts before Expires.
fn lifetime(cookie: &cookie::Cookie<'_>, now: Timestamp) -> Lifetime {
    if let Some(age) = cookie.max_age() {
        let seconds = u64::try_from(age.whole_seconds()).unwrap_or_default();
        return Lifetime::Until(now + Duration::from_secs(seconds));
    }
    match cookie.expires_datetime() {
        Some(end) => {
            let millis = i64::try_from(end.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
            Lifetime::Until(Timestamp::from_millis(millis.max(0)))
        }
        None => Lifetime::Browser,
    }
}

/// Returns whether a cookie of a domain is sent to a host (RFC 6265, section 5.1.3).
pub(super) fn domain_matches(host: &str, domain: &str) -> bool {
    if host == domain {
        return true;
    }
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    !is_address && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// Returns the path of a cookie without one (RFC 6265, section 5.1.4).
fn default_path(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((directory, _)) if directory.starts_with('/') => directory,
        _ => "/",
    }
}

/// Returns whether a cookie of a path is sent with a request (RFC 6265, section 5.1.4).
pub(super) fn path_matches(request: &str, path: &str) -> bool {
    request
        .strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || path.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::at;

    fn parse(line: &str, host: &str, path: &str) -> Result<SetCookie, Ignored> {
        SetCookie::parse(line.as_bytes(), CookieRequest { host, path, now: at(1000) })
    }

    #[track_caller]
    fn check(line: &str, domain: &str, path: &str, lifetime: Lifetime) {
        let cookie = parse(line, "a.example.org", "/shop/basket").expect(line);
        assert_eq!((&*cookie.identity.domain, &*cookie.identity.path), (domain, path), "{line}");
        assert_eq!(cookie.lifetime, lifetime, "{line}");
    }

    #[test]
    fn attributes_are_read_as_by_a_browser() {
        let (host, end) = ("a.example.org", Lifetime::Browser);
        check("id=1", host, "/shop", end);
        check("id=1; Path=/; HttpOnly; Secure; SameSite=Lax", host, "/", end);
        check("id=1; path=x", host, "/shop", end);
        check("id=1; Domain=.Example.org; Path=/x", "example.org", "/x", end);
        check("id=1; domain=", host, "/shop", end);
        check("id=1; Max-Age=60", host, "/shop", Lifetime::Until(at(1060)));
        check(
            "id=1; Max-Age=-1; Expires=Fri, 31 Dec 2100 00:00:00 GMT",
            host,
            "/shop",
            Lifetime::Until(at(1000)),
        );
        check("id=; Expires=Thu, 01 Jan 1970 00:00:01 GMT", host, "/shop", Lifetime::Until(at(1)));
    }

    #[test]
    fn foreign_and_long_cookies_are_ignored() {
        for domain in ["other.org", "b.a.example.org", "org.", "xample.org"] {
            let line = format!("id=1; Domain={domain}");
            assert_eq!(
                parse(&line, "a.example.org", "/").err(),
                Some(Ignored::OtherDomain),
                "{domain}"
            );
        }
        assert_eq!(parse("id=1; Domain=0.0.1", "127.0.0.1", "/").err(), Some(Ignored::OtherDomain));
        assert!(parse("id=1; Domain=127.0.0.1", "127.0.0.1", "/").is_ok());
        let long = format!("id={}", "x".repeat(4095));
        assert_eq!(parse(&long, "a.example.org", "/").err(), Some(Ignored::TooLong));
        assert_eq!(parse("id", "a.example.org", "/").err(), Some(Ignored::Unreadable));
    }

    #[test]
    fn paths_match_whole_segments() {
        for (request, path, matches) in [
            ("/", "/", true),
            ("/a", "/", true),
            ("/a", "/a", true),
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/ab", "/a", false),
            ("/a", "/a/", false),
            ("/", "/a", false),
        ] {
            assert_eq!(path_matches(request, path), matches, "{request} {path}");
        }
        for (request, path) in
            [("/", "/"), ("/a", "/"), ("/a/b", "/a"), ("/a/b/", "/a/b"), ("*", "/")]
        {
            assert_eq!(default_path(request), path, "{request}");
        }
    }
}
