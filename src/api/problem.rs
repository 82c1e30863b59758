//! The problems of the API: the one place where errors become problem details (RFC 9457) with a stable code.

use http::StatusCode;

use crate::session::patch::Refusal;
use crate::sessions::Failure;
use crate::store::Error as StoreError;
use crate::wire::{Malformed, Problem};

/// A result whose error is the response to the caller.
pub(super) type ApiResult<T> = Result<T, Problem>;

fn problem(status: u16, code: &'static str, detail: impl Into<String>) -> Problem {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Problem { status, code, detail: detail.into(), retry_after: None, request_id: None }
}

pub(super) fn malformed_request(detail: String) -> Problem {
    problem(400, "malformed_request", detail)
}

pub(super) fn request_token_missing() -> Problem {
    problem(
        401,
        "request_token_missing",
        "a call needs one X-Session-Token header, with the token of the request",
    )
}

pub(super) fn request_token_unknown() -> Problem {
    problem(401, "request_token_unknown", "the X-Session-Token is not valid here")
}

pub(super) fn invalid_peer_signature() -> Problem {
    problem(
        401,
        "peer_unknown",
        "the X-Session-Peer is not signed by an instance with our keys, or has expired",
    )
}

pub(super) fn service_token_wrong() -> Problem {
    problem(
        401,
        "service_token_wrong",
        "a call on any session needs Authorization: Bearer SERVICE_TOKEN",
    )
}

/// The code if there is no value with a key.
pub(super) const NO_SUCH_VALUE: &str = "no_such_value";

pub(super) fn no_such_value() -> Problem {
    problem(404, NO_SUCH_VALUE, "there is no value with this key")
}

pub(super) fn no_such_session() -> Problem {
    problem(404, "no_such_session", "there is no such session")
}

pub(super) fn not_found() -> Problem {
    problem(404, "not_found", "the API has no such path")
}

pub(super) fn method_not_allowed() -> Problem {
    problem(405, "method_not_allowed", "the header Allow has the methods of this path")
}

/// The code if the request has ended, or the instance that forwarded it is gone.
pub(super) const REQUEST_GONE: &str = "request_gone";

pub(super) fn request_gone() -> Problem {
    problem(410, REQUEST_GONE, "the request of this token has ended")
}

pub(super) fn instance_unreachable() -> Problem {
    let detail = "the instance that forwarded the request is unreachable; nothing has changed";
    problem(410, REQUEST_GONE, detail)
}

pub(super) fn instance_did_not_respond() -> Problem {
    let detail = "the instance that forwarded the request received the call and did not respond";
    problem(504, "outcome_unknown", detail)
}

pub(super) fn misdirected() -> Problem {
    let detail = "the host name of the request is not one of this listener; see [api] hosts";
    problem(421, "misdirected_request", detail)
}

pub(super) fn body_too_large(limit: usize) -> Problem {
    problem(413, "body_too_large", format!("the body must not exceed {limit} bytes"))
}

pub(super) fn not_json() -> Problem {
    problem(415, "not_json", "the body must be JSON without Content-Encoding")
}

pub(super) fn invalid_patch(detail: &str) -> Problem {
    problem(422, "invalid_patch", detail)
}

pub(super) fn invalid_key() -> Problem {
    problem(422, "invalid_key", format!("{}; in a path, neither . nor ..", Malformed::Key))
}

pub(super) fn invalid_principal() -> Problem {
    problem(422, "invalid_principal", Malformed::Principal.to_string())
}

pub(super) fn internal() -> Problem {
    problem(500, "internal_error", "internal error; see the log")
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        let detail = malformed.to_string();
        match malformed {
            Malformed::Json(_) | Malformed::Header { .. } => problem(400, "malformed_json", detail),
            Malformed::Patch(_) => problem(422, "invalid_patch", detail),
            Malformed::Expiry => problem(422, "invalid_expiry", detail),
            Malformed::Key => problem(422, "invalid_key", detail),
            Malformed::Principal => problem(422, "invalid_principal", detail),
            Malformed::Increment => problem(422, "not_an_integer", detail),
            Malformed::NotAnArray(_) => problem(422, "not_an_array", detail),
            Malformed::NotAnObject(_) => problem(422, "not_an_object", detail),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let detail = failure.to_string();
        match failure {
            Failure::Refused(refusal) => refused(&refusal, detail),
            Failure::ResponseCommitted => problem(409, "response_committed", detail),
            Failure::AmbiguousCookie => problem(409, "ambiguous_cookie", detail),
            Failure::TooManySessions => problem(409, "too_many_sessions", detail),
            Failure::TooManyNewSessions { retry_after } => Self {
                retry_after: Some(retry_after),
                ..problem(503, "too_many_new_sessions", detail)
            },
            Failure::NoSuchSession => no_such_session(),
            Failure::OtherInstance => problem(410, REQUEST_GONE, detail),
            Failure::NoStore => problem(501, "not_supported", detail),
            Failure::NotLoaded => problem(503, "store_unavailable", detail),
            Failure::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Unavailable(_) => problem(503, "store_unavailable", detail),
            StoreError::Full(_) => problem(503, "store_full", detail),
            StoreError::OutcomeUnknown(_) => problem(504, "outcome_unknown", detail),
            StoreError::Corrupt(_) => internal(),
        }
    }
}

fn refused(refusal: &Refusal, detail: String) -> Problem {
    match refusal {
        Refusal::Gone | Refusal::Ended => problem(409, "session_gone", detail),
        Refusal::Rotated | Refusal::OtherPrincipal => problem(409, "session_rotated", detail),
        Refusal::VersionMoved | Refusal::ValueMoved => problem(412, "version_moved", detail),
        Refusal::ValueExists => problem(412, "value_exists", detail),
        Refusal::NoSuchValue => no_such_value(),
        Refusal::NotAnInteger(_) => problem(422, "not_an_integer", detail),
        Refusal::OutOfRange(_) => problem(422, "out_of_range", detail),
        Refusal::NotAnArray(_) => problem(422, "not_an_array", detail),
        Refusal::NotAnObject(_) => problem(422, "not_an_object", detail),
        Refusal::TooManyValues => problem(413, "too_many_values", detail),
        Refusal::TooLarge => problem(413, "session_too_large", detail),
    }
}
