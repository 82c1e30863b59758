//! The page that makes no call: it reads the session from the request's headers, and changes it by
//! a patch in the response's headers.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use percent_encoding::percent_decode_str;

use super::api::Session;
use super::html::Frame;
use super::page::Page;
use super::pages;
use super::response::{header, html, method_not_allowed, see_other};
use crate::body::Body;

pub(super) fn respond(method: &Method, headers: &HeaderMap) -> Response<Body> {
    let (mut response, patch) = match *method {
        Method::GET | Method::HEAD => (page(headers), r#"{"increment": {"exchange_visits": 1}}"#),
        Method::POST => {
            (see_other(Page::Exchange.path()), r#"{"values": {"exchange_visits": null}}"#)
        }
        _ => return method_not_allowed(),
    };
    response.headers_mut().insert("x-session-patch", HeaderValue::from_static(patch));
    response
}

fn page(headers: &HeaderMap) -> Response<Body> {
    let session = session(headers);
    // The proxy applies the patch after this page is written, so the page adds one itself.
    let count = header(headers, "x-session-data")
        .map(|_| session.number("exchange_visits").unwrap_or_default().saturating_add(1));
    let frame = Frame {
        page: Some(Page::Exchange),
        title: Page::Exchange.title(),
        flash: None,
        session_error: header(headers, "x-session-error"),
        session: Some(&session),
        received: Some(headers),
    };
    html(StatusCode::OK, frame.render(&pages::exchange(count)))
}

/// Returns the session as it was when the proxy forwarded the request.
fn session(headers: &HeaderMap) -> Session {
    let text = |name| header(headers, name).map(str::to_owned);
    let data = header(headers, "x-session-data").unwrap_or("{}");
    Session {
        id: text("x-session-id"),
        version: header(headers, "x-session-version").and_then(|version| version.parse().ok()),
        principal: header(headers, "x-session-principal")
            .map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned()),
        values: serde_json::from_str(data).unwrap_or_default(),
        ..Session::default()
    }
}
