//! Retry policy: which requests may be sent again.
//!
//! - A request of which nothing was written, on the next connection.
//! - A safe request without a body, once and on a new connection, if its connection was reused and closed before a byte
//!   of the response. That is the race with the idle timeout of the upstream (RFC 9112, section 9.3.1).
//! - An idempotent request without a body, once and to another upstream, if the balancer has one (RFC 9110, section
//!   9.2.2).

use http::Request;
use http_body::Body as _;

use super::request_body::RequestBody;
use crate::body::Body;

/// Whether a request that fails on a new connection is kept for another upstream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    OnAnotherUpstream,
    Never,
}

/// Returns a copy for a new connection, if the request may be sent again to the same upstream.
pub(super) fn copy_for_new_connection(
    request: &Request<RequestBody>,
) -> Option<Request<RequestBody>> {
    (request.method().is_safe() && request.body().is_end_stream()).then(|| copy(request))
}

/// Returns a copy for another upstream, if the request may be sent to one.
pub(super) fn copy_for_another_upstream(
    request: &Request<RequestBody>,
    retry: Retry,
) -> Option<Request<RequestBody>> {
    let may_repeat = || request.method().is_idempotent() && request.body().is_end_stream();
    match retry {
        Retry::OnAnotherUpstream => may_repeat().then(|| copy(request)),
        Retry::Never => None,
    }
}

/// Copies a request without a body. Its extensions concern the first attempt only.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::new(Body::empty()));
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    copy
}
