//! Responses of the API: never cached, with the ETag of what they represent.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};
use serde::Serialize;

use super::problem::{self, ApiResult};
use super::request::Preference;
use crate::body::Body;
use crate::session::json::Json;
use crate::session::patch::value_tag;
use crate::sessions::Destroyed;
use crate::wire::{DestroyedObject, Problem};

/// Returns 204.
pub(super) fn empty() -> Response<Body> {
    respond(StatusCode::NO_CONTENT, None, Bytes::new())
}

/// Returns JSON that was written already.
pub(super) fn json(text: String) -> Response<Body> {
    json_bytes(text.into())
}

pub(super) fn json_bytes(text: Bytes) -> Response<Body> {
    respond(StatusCode::OK, Some("application/json"), text)
}

/// Returns a value as JSON.
pub(super) fn serialize(value: &impl Serialize) -> ApiResult<Response<Body>> {
    Ok(json(serde_json::to_string(value).map_err(|_unserializable| problem::internal())?))
}

/// Returns what was destroyed: 204, unless the caller prefers a representation.
pub(super) fn destroyed(destroyed: Destroyed, prefer: Preference) -> ApiResult<Response<Body>> {
    match prefer {
        Preference::None | Preference::Minimal => Ok(empty()),
        Preference::Representation => {
            Ok(preference_applied(destroyed_json(destroyed)?, "return=representation"))
        }
    }
}

/// Returns what was destroyed, as JSON.
pub(super) fn destroyed_json(destroyed: Destroyed) -> ApiResult<Response<Body>> {
    let Destroyed { count, replicated } = destroyed;
    serialize(&DestroyedObject { destroyed: count, replicated })
}

/// Adds the preference that a response follows (RFC 7240, section 3).
pub(super) fn preference_applied(
    mut response: Response<Body>,
    preference: &'static str,
) -> Response<Body> {
    let preference = HeaderValue::from_static(preference);
    response.headers_mut().insert("preference-applied", preference);
    response
}

/// Returns a value as JSON, with its ETag.
pub(super) fn value(value: &Json) -> Response<Body> {
    tagged_by_value(json(value.to_string()), value)
}

/// Returns a value as plain text, with its ETag: a string as it is, anything else as JSON.
pub(super) fn value_as_text(value: &Json) -> Response<Body> {
    tagged_by_value(text(value.as_string().unwrap_or_else(|| value.to_string())), value)
}

pub(super) fn text(text: String) -> Response<Body> {
    respond(StatusCode::OK, Some("text/plain; charset=utf-8"), text.into())
}

/// Returns a problem. A 503 has Retry-After, since nothing has changed.
pub(super) fn problem(problem: &Problem) -> Response<Body> {
    let mut response = respond(problem.status, Some(Problem::MEDIA_TYPE), problem.json().into());
    if problem.status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(problem.retry_after_seconds()));
    }
    response
}

/// Returns 405 with the methods that are allowed.
pub(super) fn method_not_allowed(allow: &str) -> Response<Body> {
    let mut response = problem(&problem::method_not_allowed());
    insert(response.headers_mut(), ALLOW, allow);
    response
}

/// Adds the version of a session as ETag, if there is a session.
pub(super) fn tagged_by_version(
    mut response: Response<Body>,
    version: Option<u64>,
) -> Response<Body> {
    if let Some(version) = version {
        insert(response.headers_mut(), ETAG, &format!("\"{version}\""));
    }
    response
}

fn tagged_by_value(mut response: Response<Body>, value: &Json) -> Response<Body> {
    insert(response.headers_mut(), ETAG, &format!("\"{}\"", value_tag(value.as_str())));
    response
}

fn respond(status: StatusCode, media_type: Option<&'static str>, text: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // A session is private to its request: no cache on the way may keep it (RFC 9111, section 5.2.2.5).
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(media_type) = media_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        // A value may be a visitor's own text. A browser that is led here must not take it for a page.
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}
