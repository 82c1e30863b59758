//! Held cookies on their way: out of a client's request, into the one that is forwarded, and out of the response.

use std::time::Duration;

use http::header::{COOKIE, HOST, HeaderMap, HeaderValue, MaxSizeReached, SET_COOKIE};
use http::request::Parts;
use http::{HeaderName, Method, StatusCode};
use percent_encoding::percent_decode;
use smallvec::SmallVec;
use tracing::warn;

use super::list;
use super::readings::{self, Comparison};
use crate::log::{Seen, limited};
use crate::net::host;
use crate::session::cookie::{self, SameSite};
use crate::session::held::{CookieRequest, Lifetime, SetCookie};
use crate::session::navigation::accepted;
use crate::sessions::{HeldResponse, LogIn, RequestSession, SetHeld};
use crate::time::Timestamp;

const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// The cookies of the site that a route holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HoldConfig {
    /// The cookies: at least one.
    pub(crate) cookies: Vec<HeldName>,
    /// The requests that rotate the token, whatever they change; `None` if changed values alone do.
    pub(crate) rotate_on: Option<Vec<RequestPattern>>,
}

/// The name of a held cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldName {
    pub(crate) name: String,
    /// Whether a changed value rotates the token.
    pub(crate) rotates: bool,
}

/// A method and a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPattern {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// The path is the beginning of those that match.
    pub(crate) is_prefix: bool,
}

/// A request of a route that holds cookies, as far as they depend on it.
#[derive(Debug)]
pub(super) struct HeldRequest {
    host: String,
    path: String,
    log_in: LogIn,
    /// Its method is GET or HEAD.
    is_safe: bool,
}

impl HoldConfig {
    /// Returns the name of the held cookie that a Set-Cookie line sets.
    fn set_by(&self, line: &HeaderValue) -> Option<&HeldName> {
        self.cookies.iter().find(|held| cookie::is_sent_as(line.as_bytes(), &held.name))
    }

    /// Removes the held cookies from a client's request, in every spelling that a site may read as theirs. They are
    /// copies from before. Returns their number.
    pub(super) fn remove_copies(&self, headers: &mut HeaderMap) -> usize {
        let is_copy = |pair: &&[u8]| self.cookies.iter().any(|held| is_read_as(pair, &held.name));
        let pairs = |line: &HeaderValue| {
            line.as_bytes().split(|byte| *byte == b';').filter(is_copy).count()
        };
        let copies = headers.get_all(COOKIE).iter().map(pairs).sum();
        if copies > 0 {
            let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
            headers.remove(COOKIE);
            for line in lines {
                let kept =
                    line.as_bytes().split(|byte| *byte == b';').filter(|pair| !is_copy(pair));
                let rest = kept.collect::<Vec<_>>().join(&b";"[..]);
                if let Ok(mut rest) = HeaderValue::from_bytes(rest.trim_ascii()) {
                    rest.set_sensitive(true);
                    // This cannot fail: as many lines have just been removed.
                    let _ =
                        if rest.is_empty() { Ok(false) } else { headers.try_append(COOKIE, rest) };
                }
            }
        }
        copies
    }

    /// Removes the Set-Cookie lines of held cookies, and returns them with their names.
    fn take_lines(&self, headers: &mut HeaderMap) -> SmallVec<[(HeaderValue, &HeldName); 2]> {
        let lines = headers.get_all(SET_COOKIE);
        let held: SmallVec<_> =
            lines.iter().filter_map(|line| Some((line.clone(), self.set_by(line)?))).collect();
        if !held.is_empty() {
            let is_other = |line: &&HeaderValue| self.set_by(line).is_none();
            let others: Vec<_> = lines.iter().filter(is_other).cloned().collect();
            headers.remove(SET_COOKIE);
            for line in others {
                // This cannot fail: more fields than these have just been removed.
                let _ = headers.try_append(SET_COOKIE, line);
            }
        }
        held
    }

    /// Removes what a response on a route without sessions sets. Returns the number of cookies.
    pub(super) fn remove_sets(&self, headers: &mut HeaderMap) -> usize {
        self.take_lines(headers).len()
    }
}

impl RequestPattern {
    /// Returns whether a server may read the path as that of the pattern, whatever its case and with or without a slash
    /// at the end. A rotation too many does no harm.
    fn matches(&self, method: &Method, path: &str) -> bool {
        let pattern = self.path.to_ascii_lowercase();
        let bare = |path: &[u8]| path.strip_suffix(b"/").unwrap_or(path).to_owned();
        let is_other = |reading: &[u8]| {
            let reading = reading.to_ascii_lowercase();
            if self.is_prefix {
                !reading.starts_with(pattern.as_bytes())
            } else {
                bare(&reading) != bare(pattern.as_bytes())
            }
        };
        self.method == *method && readings::compare(path.as_bytes(), is_other) != Comparison::All
    }
}

/// Returns whether a site may read a cookie pair as that of a name: PHP reads dots, spaces and brackets as underscores,
/// and older releases decode the name.
fn is_read_as(pair: &[u8], name: &str) -> bool {
    let (found, _) = list::split_once(pair, b'=').unwrap_or((pair, b""));
    normalized(found.trim_ascii()).eq(normalized(name.as_bytes()))
}

fn normalized(name: &[u8]) -> impl Iterator<Item = u8> {
    percent_decode(name).map(|byte| match byte {
        b'.' | b' ' | b'[' | b'+' => b'_',
        byte => byte,
    })
}

impl HeldRequest {
    pub(super) fn new(parts: &Parts, config: &HoldConfig) -> Self {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = parts.uri.path();
        let patterns = config.rotate_on.iter().flatten();
        let is_safe = matches!(parts.method, Method::GET | Method::HEAD);
        let is_named = patterns.into_iter().any(|pattern| pattern.matches(&parts.method, path));
        let log_in = if is_named {
            LogIn::Named
        } else if !is_safe && may_be_form(&parts.headers) {
            LogIn::Form
        } else {
            LogIn::No
        };
        Self { host: host::name(host).to_ascii_lowercase(), path: path.to_owned(), log_in, is_safe }
    }

    pub(super) fn is_safe(&self) -> bool {
        self.is_safe
    }

    fn cookie_request(&self, now: Timestamp) -> CookieRequest<'_> {
        CookieRequest { host: &self.host, path: &self.path, now }
    }

    /// Adds the held cookies of the session to a request, after its other cookies. Returns whether there are any.
    pub(super) fn give(
        &self,
        headers: &mut HeaderMap,
        session: &RequestSession,
        now: Timestamp,
    ) -> Result<bool, MaxSizeReached> {
        let held = session.held_cookies(self.cookie_request(now));
        if held.is_empty() {
            return Ok(false);
        }
        let mut line = headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect::<Vec<_>>()
            .join(&b"; "[..]);
        for (name, value) in &held {
            if !line.is_empty() {
                line.extend_from_slice(b"; ");
            }
            line.extend_from_slice(name.as_bytes());
            line.push(b'=');
            line.extend_from_slice(value.reveal().as_bytes());
        }
        // What was received as a field value is one again.
        if let Ok(mut line) = HeaderValue::from_bytes(&line) {
            line.set_sensitive(true);
            headers.try_insert(COOKIE, line)?;
        }
        Ok(true)
    }

    /// Takes what a response does to held cookies out of its head.
    pub(super) fn take(
        &self,
        headers: &mut HeaderMap,
        status: StatusCode,
        config: &HoldConfig,
        notes: &Notes<'_>,
        now: Timestamp,
    ) -> HeldResponse {
        let request = self.cookie_request(now);
        let lines = config.take_lines(headers);
        let parsed = lines.iter().filter_map(|(line, held)| {
            match SetCookie::parse(line.as_bytes(), request) {
                Ok(cookie) => {
                    notes.of(&cookie, now);
                    Some(SetHeld { cookie, rotates: held.rotates })
                }
                Err(ignored) => {
                    let name = &held.name;
                    limited!(warn, "held_ignored", cookie = name, reason = %ignored, "cookie of the site cannot be held");
                    None
                }
            }
        });
        HeldResponse {
            cookies: parsed.collect(),
            clears: clears_cookies(headers),
            log_in: if status.is_server_error() { LogIn::No } else { self.log_in },
            has_rotate_on: config.rotate_on.is_some(),
            is_taken_from: !lines.is_empty(),
        }
    }
}

/// Returns whether a request by a browser without Fetch metadata may be a form: it accepts a page.
fn may_be_form(headers: &HeaderMap) -> bool {
    !headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"))
        && accepted(headers).any(|media| media.eq_ignore_ascii_case("text/html"))
}

/// Notes on what a site loses by our holding its cookies, each logged once for each cookie.
pub(super) struct Notes<'a> {
    pub(super) seen: &'a Seen,
    /// That of our cookie.
    pub(super) same_site: SameSite,
    pub(super) idle_timeout: Duration,
}

impl Notes<'_> {
    fn of(&self, cookie: &SetCookie, now: Timestamp) {
        if cookie.deletes(now) {
            return;
        }
        let wants = |same_site| cookie.same_site == Some(same_site) && self.same_site != same_site;
        let outlasts =
            matches!(cookie.lifetime, Lifetime::Until(end) if end > now + self.idle_timeout);
        for (applies, kind, message) in [
            (
                !cookie.is_http_only,
                "script",
                "held cookie has no HttpOnly; if scripts of the site read it, take it out of hold_cookies",
            ),
            (
                !cookie.is_host_only,
                "domain",
                "held cookie has a Domain; hosts of it that are not behind this proxy lose it",
            ),
            (
                wants(SameSite::None),
                "none",
                "held cookie has SameSite=None; where other sites embed this one, set cookie.same_site",
            ),
            (
                wants(SameSite::Strict),
                "strict",
                "held cookie has SameSite=Strict; if ours is to be as strict, set cookie.same_site",
            ),
            (
                outlasts,
                "lifetime",
                "held cookie lasts longer than session.idle_timeout, which ends it; set that as long",
            ),
        ] {
            let name = &cookie.identity.name;
            if applies && self.seen.is_first(&format!("held {name} {kind}")) {
                warn!(cookie = name, "{message} (logged once per cookie)");
            }
        }
    }
}

/// Returns whether the response deletes all cookies (W3C Clear Site Data).
fn clears_cookies(headers: &HeaderMap) -> bool {
    headers.contains_key(CLEAR_SITE_DATA)
        && list::members(headers, &CLEAR_SITE_DATA)
            .any(|member| member == b"\"cookies\"" || member == b"\"*\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> HoldConfig {
        let held = |name: &str, rotates| HeldName { name: name.to_owned(), rotates };
        let log_in =
            RequestPattern { method: Method::POST, path: "/login".into(), is_prefix: false };
        let any = RequestPattern { method: Method::POST, path: "/sso/".into(), is_prefix: true };
        HoldConfig {
            cookies: vec![held("PHPSESSID", true), held("laravel", false)],
            rotate_on: Some(vec![log_in, any]),
        }
    }

    fn notes(seen: &Seen) -> Notes<'_> {
        Notes { seen, same_site: SameSite::Lax, idle_timeout: Duration::from_hours(1) }
    }

    #[test]
    fn copies_are_removed_in_every_spelling() {
        let mut headers = HeaderMap::new();
        headers.insert(
            COOKIE,
            HeaderValue::from_static("a=1; PHPSESSID=x; PHPSESSID =y;b=2; %50HPSESSID=z"),
        );
        headers.append(
            COOKIE,
            HeaderValue::from_static("my.name=1; my_name=2; my[name=3; my%2Ename=4"),
        );
        let held = |name: &str| HeldName { name: name.to_owned(), rotates: true };
        let config =
            HoldConfig { cookies: vec![held("PHPSESSID"), held("my_name")], rotate_on: None };
        assert_eq!(config.remove_copies(&mut headers), 7);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1;b=2"]);
        assert_eq!(config.remove_copies(&mut headers), 0);
    }

    fn request(method: Method, uri: &str) -> HeldRequest {
        let request =
            http::Request::builder().method(method).uri(uri).header(HOST, "A.example:8080");
        HeldRequest::new(&request.body(()).expect("a request").into_parts().0, &config())
    }

    #[test]
    fn request_patterns_are_exact_or_prefixes() {
        for (method, uri, rotates) in [
            (Method::POST, "/login?x=1", true),
            (Method::GET, "/login", false),
            (Method::POST, "/login/", true),
            (Method::POST, "/%6Cogin", true),
            (Method::POST, "//LOGIN;x", true),
            (Method::POST, "/x/../login", true),
            (Method::POST, "/log", false),
            (Method::POST, "/SSO/a", true),
            (Method::POST, "/sso/a/b", true),
            (Method::POST, "/sso", false),
        ] {
            assert_eq!(request(method, uri).log_in == LogIn::Named, rotates, "{uri}");
        }
        assert_eq!(request(Method::GET, "/").host, "a.example");
    }

    #[test]
    fn only_held_cookies_are_taken() {
        let mut headers = HeaderMap::new();
        for line in ["a=1", "PHPSESSID=2; path=/; HttpOnly", "=laravel=3", "PHPSESSIDx=4"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(line));
        }
        let (get, seen) = (request(Method::GET, "/"), Seen::default());
        let taken =
            get.take(&mut headers, StatusCode::OK, &config(), &notes(&seen), Timestamp::default());
        let names: Vec<_> =
            taken.cookies.iter().map(|set| (&*set.cookie.identity.name, set.rotates)).collect();
        assert_eq!(names, [("PHPSESSID", true)]);
        assert!(!taken.clears && taken.log_in == LogIn::No);
        assert_eq!(headers.get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=1", "PHPSESSIDx=4"]);
        let rest =
            get.take(&mut headers, StatusCode::OK, &config(), &notes(&seen), Timestamp::default());
        assert!(rest.is_empty());
    }

    #[test]
    fn clear_site_data_clears() {
        let (get, seen) = (request(Method::GET, "/"), Seen::default());
        for (value, clears) in [
            ("\"cookies\"", true),
            ("\"cache\", \"cookies\"", true),
            ("\"*\"", true),
            ("\"cache\"", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CLEAR_SITE_DATA, HeaderValue::from_static(value));
            let taken = get.take(
                &mut headers,
                StatusCode::OK,
                &config(),
                &notes(&seen),
                Timestamp::default(),
            );
            assert_eq!(taken.clears, clears, "{value}");
        }
    }
}
