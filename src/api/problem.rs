//! The API's refusals: the one place that turns what went wrong into a problem with its code.

use http::StatusCode;

use crate::session::patch::Refusal;
use crate::sessions::Failure;
use crate::store::Error as StoreError;
use crate::wire::{Malformed, Problem};

/// An answer, or the problem in its place.
pub(super) type Answered<T> = Result<T, Problem>;

fn problem(status: u16, code: &'static str, detail: impl Into<String>) -> Problem {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Problem { status, code, detail: detail.into(), retry_after: None }
}

pub(super) fn malformed_request(detail: String) -> Problem {
    problem(400, "malformed_request", detail)
}

pub(super) fn request_token_missing() -> Problem {
    problem(401, "request_token_missing", "a call carries the request's X-Session-Token, once")
}

pub(super) fn request_token_unknown() -> Problem {
    problem(401, "request_token_unknown", "the X-Session-Token is none of ours")
}

pub(super) fn peer_unknown() -> Problem {
    problem(401, "peer_unknown", "the X-Session-Peer is of no instance of ours, or of another time")
}

pub(super) fn service_token_wrong() -> Problem {
    problem(
        401,
        "service_token_wrong",
        "a call on any session carries Authorization: Bearer SERVICE_TOKEN",
    )
}

pub(super) fn no_such_value() -> Problem {
    problem(404, "no_such_value", "there is no value of this key")
}

pub(super) fn no_such_session() -> Problem {
    problem(404, "no_such_session", "there is no such session")
}

pub(super) fn not_found() -> Problem {
    problem(404, "not_found", "the API has no such path")
}

pub(super) fn method_not_allowed() -> Problem {
    problem(405, "method_not_allowed", "see Allow")
}

/// What is answered where the request, or the instance that forwarded it, is no more.
pub(super) const REQUEST_GONE: &str = "request_gone";

pub(super) fn request_gone() -> Problem {
    problem(410, REQUEST_GONE, "the request that this token was made for is over")
}

pub(super) fn instance_gone() -> Problem {
    let detail = "the instance that forwarded the request is not there; nothing has changed";
    problem(410, REQUEST_GONE, detail)
}

pub(super) fn instance_silent() -> Problem {
    let detail = "the instance that forwarded the request took the call and did not answer";
    problem(504, "outcome_unknown", detail)
}

pub(super) fn misdirected() -> Problem {
    let detail = "this listener does not answer to the host name of the request; see [api] hosts";
    problem(421, "misdirected_request", detail)
}

pub(super) fn body_too_large(limit: usize) -> Problem {
    problem(413, "body_too_large", format!("a body has at most {limit} bytes"))
}

pub(super) fn not_json() -> Problem {
    problem(415, "not_json", "a body is JSON, and not encoded")
}

pub(super) fn invalid_patch(detail: &str) -> Problem {
    problem(422, "invalid_patch", detail)
}

pub(super) fn invalid_key() -> Problem {
    problem(422, "invalid_key", format!("{}; in a path neither . nor ..", Malformed::Key))
}

pub(super) fn invalid_principal() -> Problem {
    problem(422, "invalid_principal", Malformed::Principal.to_string())
}

pub(super) fn internal() -> Problem {
    problem(500, "internal_error", "the fault is ours; see the log")
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
            StoreError::Full => problem(503, "store_full", detail),
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
        Refusal::TooManyValues => problem(413, "too_many_values", detail),
        Refusal::TooLarge => problem(413, "session_too_large", detail),
    }
}
