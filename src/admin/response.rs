//! Responses of the pages: as HTML or JSON, never cached, and with a policy that permits nothing from elsewhere.

use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};

use super::logins::Login;
use crate::body::Body;
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::Peer;
use crate::session::cookie::ADMIN_COOKIE;
use crate::wire::Problem;

/// The format of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Json,
}

impl Format {
    /// Returns the format that a client accepts: JSON if it lists that and no HTML.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let types: Vec<String> = lines
            .flat_map(|line| line.split(','))
            .filter_map(|range| range.split(';').next())
            .map(|range| range.trim().to_ascii_lowercase())
            .collect();
        let has = |wanted: &str| types.iter().any(|found| found == wanted);
        let takes_json = has("application/json") || has(Problem::MEDIA_TYPE);
        if takes_json && !has("text/html") { Self::Json } else { Self::Html }
    }
}

/// Returns a page.
pub(super) fn html(status: StatusCode, page: String) -> Response<Body> {
    respond(status, "text/html; charset=utf-8", page)
}

pub(super) fn json(text: String) -> Response<Body> {
    respond(StatusCode::OK, "application/json", text)
}

pub(super) fn stylesheet() -> Response<Body> {
    let text = include_str!("assets/admin.css").to_owned();
    respond(StatusCode::OK, "text/css; charset=utf-8", text)
}

pub(super) fn problem(problem: &Problem) -> Response<Body> {
    with_problem_headers(respond(problem.status, Problem::MEDIA_TYPE, problem.json()), problem)
}

/// Adds the headers that the status of a problem asks for.
pub(super) fn with_problem_headers(
    mut response: Response<Body>,
    problem: &Problem,
) -> Response<Body> {
    let headers = response.headers_mut();
    match problem.status {
        StatusCode::UNAUTHORIZED => {
            let challenge = HeaderValue::from_static("Bearer realm=\"admin\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from(problem.retry_after_seconds()));
        }
        _ => {}
    }
    response
}

pub(super) fn with_allow(mut response: Response<Body>, allow: &'static str) -> Response<Body> {
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// Redirects from a form to a page.
pub(super) fn see_other(path: &str) -> Response<Body> {
    let mut response = respond(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", String::new());
    let location = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Sets the cookie of a log-in.
pub(super) fn with_cookie(response: Response<Body>, login: &Login, peer: &Peer) -> Response<Body> {
    with_cookie_line(response, &login.id, Login::LIFETIME.as_secs(), peer)
}

/// Deletes the cookie of a log-in.
pub(super) fn without_cookie(response: Response<Body>, peer: &Peer) -> Response<Body> {
    with_cookie_line(response, &Secret::new(String::new()), 0, peer)
}

fn with_cookie_line(
    mut response: Response<Body>,
    value: &Secret,
    max_age: u64,
    peer: &Peer,
) -> Response<Body> {
    // Without TLS the attribute would hide the cookie from some browsers, even on localhost.
    let secure = if peer.scheme == Scheme::Https { "; Secure" } else { "" };
    let value = value.reveal();
    let line = format!(
        "{ADMIN_COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age}{secure}"
    );
    if let Ok(mut line) = HeaderValue::from_str(&line) {
        line.set_sensitive(true);
        response.headers_mut().insert(SET_COOKIE, line);
    }
    response
}

fn respond(status: StatusCode, media_type: &'static str, text: String) -> Response<Body> {
    const HEADERS: [(HeaderName, &str); 4] = [
        (CACHE_CONTROL, "no-store"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
        ),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_ask_for_json() {
        for (accept, format) in [
            ("application/json", Format::Json),
            ("application/problem+json, application/json;q=0.9", Format::Json),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Html),
            ("text/html, application/json", Format::Html),
            ("*/*", Format::Html),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::of(&headers), format, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Format::Html);
    }
}
