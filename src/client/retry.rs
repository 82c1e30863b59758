//! Retry policy: which requests may be sent again.
//!
//! - A request of which nothing was written, on the next connection.
//! - A safe request without a body, once and on a new connection, if its connection was reused and closed before a byte
//!   of the response. That is the race with the idle timeout of the upstream (RFC 9112, section 9.3.1).
//! - An idempotent request without a body, once and to another upstream, if the balancer has one (RFC 9110, section
//!   9.2.2).
//!
//! The last two apply to HTTP/1 only, where it is known whether a byte has arrived.

use http::Request;
use http_body::Body as _;

use super::request_body::RequestBody;
use crate::body::Body;

/// Where a request may be sent again if its connection closes before a byte of the response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    OnNewConnection,
    OnAnotherUpstream,
    Never,
}

impl Retry {
    /// Returns a copy of a request that may be repeated. Its extensions concern the first attempt only.
    pub(super) fn copy(self, request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
        let may_repeat = match self {
            Self::OnNewConnection => request.method().is_safe(),
            Self::OnAnotherUpstream => request.method().is_idempotent(),
            Self::Never => false,
        };
        if !may_repeat || !request.body().is_end_stream() {
            return None;
        }
        let mut copy = Request::new(RequestBody::new(Body::empty()));
        request.method().clone_into(copy.method_mut());
        request.uri().clone_into(copy.uri_mut());
        request.headers().clone_into(copy.headers_mut());
        Some(copy)
    }
}
