//! The responses of the site, and their headers.

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, LOCATION,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::body::Body;

/// Allows what the site serves itself, and nothing inline or from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// Returns a page. It must not be cached: it shows a session.
pub(super) fn html(status: StatusCode, page: String) -> Response<Body> {
    respond(
        status,
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (CONTENT_SECURITY_POLICY, POLICY),
        ],
        page,
    )
}

/// Returns a file that every page uses, or `None` for any other path.
pub(super) fn asset(path: &str) -> Option<Response<Body>> {
    let (media_type, text) = match path {
        "/demo.css" => ("text/css; charset=utf-8", include_str!("assets/demo.css")),
        "/demo.js" => ("text/javascript; charset=utf-8", include_str!("assets/demo.js")),
        "/favicon.svg" => ("image/svg+xml", include_str!("assets/favicon.svg")),
        _ => return None,
    };
    let headers = [(CONTENT_TYPE, media_type), (CACHE_CONTROL, "no-cache")];
    Some(respond(StatusCode::OK, headers, text.to_owned()))
}

/// Redirects from a form to a page, so that reloading the page does not submit the form again.
pub(super) fn see_other(path: &'static str) -> Response<Body> {
    respond(
        StatusCode::SEE_OTHER,
        [(LOCATION, path), (CACHE_CONTROL, "no-store"), (CONTENT_TYPE, "text/plain")],
        String::new(),
    )
}

pub(super) fn method_not_allowed() -> Response<Body> {
    let mut response =
        plain(StatusCode::METHOD_NOT_ALLOWED, "pages are loaded by GET, forms are sent by POST");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    response
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
    respond(status, headers, format!("{text}\n"))
}

fn respond<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, &'static str); N],
    body: String,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns a header as text. Headers may hold UTF-8, which `HeaderValue::to_str` refuses.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}
