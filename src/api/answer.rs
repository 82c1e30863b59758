//! The API's answers: never cached, with the ETag of what they show.

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};

use super::input::Preference;
use crate::body::Body;
use crate::session::json::Json;
use crate::session::patch::value_tag;
use crate::sessions::Destroyed;
use crate::wire::{self, Problem};

/// An answer without a body.
pub(super) fn empty() -> Response<Body> {
    answer(StatusCode::NO_CONTENT, None, String::new())
}

/// An answer of JSON.
pub(super) fn json(text: String) -> Response<Body> {
    answer(StatusCode::OK, Some("application/json"), text)
}

/// What has ended: nothing to read, unless the caller prefers to be told.
pub(super) fn destroyed(destroyed: Destroyed, prefer: Preference) -> Response<Body> {
    match prefer {
        Preference::None | Preference::Minimal => empty(),
        Preference::Representation => applied(
            json(wire::destroyed(destroyed.count, destroyed.replicated)),
            "return=representation",
        ),
    }
}

/// An answer as it was preferred.
pub(super) fn applied(mut response: Response<Body>, preference: &'static str) -> Response<Body> {
    let preference = HeaderValue::from_static(preference);
    response.headers_mut().insert("preference-applied", preference);
    response
}

/// A value: its JSON, or the plain text of the string that it is.
pub(super) fn value(value: &Json, as_text: bool) -> Response<Body> {
    match value.as_string() {
        Some(string) if as_text => text(string),
        _ if as_text => text(value.to_string()),
        _ => json(value.to_string()),
    }
}

/// An answer of plain text.
pub(super) fn text(text: String) -> Response<Body> {
    answer(StatusCode::OK, Some("text/plain; charset=utf-8"), text)
}

/// A problem. Of 503 it is known that trying again may help.
pub(super) fn problem(problem: &Problem) -> Response<Body> {
    let mut response = answer(problem.status, Some(Problem::MEDIA_TYPE), problem.json());
    if problem.status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(problem.retry_after_seconds()));
    }
    response
}

/// A refusal of the method, with those that work.
pub(super) fn not_allowed(refusal: &Problem, allow: &str) -> Response<Body> {
    let mut response = problem(refusal);
    insert(response.headers_mut(), ALLOW, allow);
    response
}

/// The tag of a session: its version.
pub(super) fn tagged_by_version(mut response: Response<Body>, version: u64) -> Response<Body> {
    insert(response.headers_mut(), ETAG, &format!("\"{version}\""));
    response
}

/// The tag of a value: its text's.
pub(super) fn tagged_by_value(mut response: Response<Body>, value: &Json) -> Response<Body> {
    insert(response.headers_mut(), ETAG, &format!("\"{}\"", value_tag(value)));
    response
}

fn answer(status: StatusCode, media_type: Option<&'static str>, text: String) -> Response<Body> {
    let mut response =
        Response::new(if text.is_empty() { Body::empty() } else { Body::full(text) });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(media_type) = media_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}
