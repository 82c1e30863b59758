//! The problems of the API itself, as problem details (RFC 9457) with a stable code. Those of sessions and of the store
//! are in `sessions`.

use crate::session::patch::Refusal;
use crate::sessions::{Failure, REQUEST_GONE};
use crate::wire::{Malformed, Problem};

/// A result whose error is the response to the caller.
pub(super) type ApiResult<T> = Result<T, Problem>;

fn problem(status: u16, code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(status, code, detail)
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

pub(super) fn no_such_value() -> Problem {
    Failure::Refused(Refusal::NoSuchValue).into()
}

pub(super) fn no_such_session() -> Problem {
    Failure::NoSuchSession.into()
}

pub(super) fn not_found() -> Problem {
    problem(404, "not_found", "the API has no such path")
}

pub(super) fn method_not_allowed() -> Problem {
    problem(405, "method_not_allowed", "the header Allow has the methods of this path")
}

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
    Problem::internal()
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
