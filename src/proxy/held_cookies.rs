//! Held cookies on their way: out of a client's request, into the one that is forwarded, and out of the response.

use http::header::{COOKIE, HOST, HeaderMap, HeaderValue, MaxSizeReached, SET_COOKIE};
use http::request::Parts;
use http::{HeaderName, Method, StatusCode};
use smallvec::SmallVec;
use tracing::warn;

use super::list;
use crate::log::{Seen, limited};
use crate::net::host;
use crate::session::cookie::{self, SameSite};
use crate::session::held::{CookieRequest, SetCookie};
use crate::sessions::{HeldResponse, RequestSession, SetHeld};
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
    /// The route rotates the token at this request.
    rotates: bool,
    /// Its method is GET or HEAD.
    is_safe: bool,
}

impl HoldConfig {
    /// Returns the name of the held cookie that a Set-Cookie line sets.
    fn set_by(&self, line: &HeaderValue) -> Option<&HeldName> {
        self.cookies.iter().find(|held| cookie::is_sent_as(line.as_bytes(), &held.name))
    }

    /// Removes the held cookies from a client's request: they are copies from before. Returns their number.
    pub(super) fn remove_copies(&self, headers: &mut HeaderMap) -> usize {
        self.cookies.iter().map(|held| cookie::take(headers, &held.name).len()).sum()
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
    fn matches(&self, method: &Method, path: &str) -> bool {
        let matches_path =
            if self.is_prefix { path.starts_with(&self.path) } else { path == self.path };
        self.method == *method && matches_path
    }
}

impl HeldRequest {
    pub(super) fn new(parts: &Parts, config: &HoldConfig) -> Self {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = parts.uri.path();
        let patterns = config.rotate_on.iter().flatten();
        Self {
            host: host::name(host).to_ascii_lowercase(),
            path: path.to_owned(),
            rotates: patterns.into_iter().any(|pattern| pattern.matches(&parts.method, path)),
            is_safe: matches!(parts.method, Method::GET | Method::HEAD),
        }
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
        seen: &Seen,
        now: Timestamp,
    ) -> HeldResponse {
        let request = self.cookie_request(now);
        let lines = config.take_lines(headers);
        let parsed = lines.iter().filter_map(|(line, held)| {
            match SetCookie::parse(line.as_bytes(), request) {
                Ok(cookie) => {
                    note(&cookie, seen, now);
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
            rotates: self.rotates && !status.is_server_error(),
            has_rotate_on: config.rotate_on.is_some(),
        }
    }
}

/// Logs, once for each cookie, what the site loses by our holding it.
fn note(cookie: &SetCookie, seen: &Seen, now: Timestamp) {
    let name = &cookie.identity.name;
    let note = |applies: bool, kind: &str, message: &'static str| {
        if applies && seen.is_first(&format!("held {name} {kind}")) {
            warn!(cookie = name, "{message} (logged once per cookie)");
        }
    };
    note(
        !cookie.is_http_only && !cookie.deletes(now),
        "script",
        "held cookie has no HttpOnly; if scripts of the site read it, take it out of hold_cookies",
    );
    note(
        !cookie.is_host_only,
        "domain",
        "held cookie has a Domain; hosts of it that are not behind this proxy lose it",
    );
    note(
        cookie.same_site == Some(SameSite::None),
        "none",
        "held cookie has SameSite=None; where other sites embed this one, set cookie.same_site",
    );
    note(
        cookie.same_site == Some(SameSite::Strict),
        "strict",
        "held cookie has SameSite=Strict; if ours is to be as strict, set cookie.same_site",
    );
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
            (Method::POST, "/login/", false),
            (Method::POST, "/sso/a/b", true),
            (Method::POST, "/sso", false),
        ] {
            assert_eq!(request(method, uri).rotates, rotates, "{uri}");
        }
        assert_eq!(request(Method::GET, "/").host, "a.example");
    }

    #[test]
    fn only_held_cookies_are_taken() {
        let mut headers = HeaderMap::new();
        for line in ["a=1", "PHPSESSID=2; path=/; HttpOnly", "=laravel=3", "PHPSESSIDx=4"] {
            headers.append(SET_COOKIE, HeaderValue::from_static(line));
        }
        let get = request(Method::GET, "/");
        let taken = get.take(
            &mut headers,
            StatusCode::OK,
            &config(),
            &Seen::default(),
            Timestamp::default(),
        );
        let names: Vec<_> =
            taken.cookies.iter().map(|set| (&*set.cookie.identity.name, set.rotates)).collect();
        assert_eq!(names, [("PHPSESSID", true)]);
        assert!(!taken.clears && !taken.rotates);
        assert_eq!(headers.get_all(SET_COOKIE).iter().collect::<Vec<_>>(), ["a=1", "PHPSESSIDx=4"]);
        let rest = get.take(
            &mut headers,
            StatusCode::OK,
            &config(),
            &Seen::default(),
            Timestamp::default(),
        );
        assert!(rest.is_empty());
    }

    #[test]
    fn clear_site_data_clears() {
        let get = request(Method::GET, "/");
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
                &Seen::default(),
                Timestamp::default(),
            );
            assert_eq!(taken.clears, clears, "{value}");
        }
    }
}
