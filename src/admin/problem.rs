//! The problems of the admin pages: problem details (RFC 9457) as JSON, a short page as HTML.

use std::time::Duration;

use http::StatusCode;

use crate::wire::Problem;

/// A result whose error is the response.
pub(super) type PageResult<T> = Result<T, Problem>;

fn problem(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
    Problem { status, code, detail: detail.into(), retry_after: None, request_id: None }
}

pub(super) fn not_found() -> Problem {
    let detail = "not found; the pages are /, /sessions and /audit, and probes are /live, /ready and /metrics";
    problem(StatusCode::NOT_FOUND, "not_found", detail)
}

pub(super) fn pages_off(reason: &str) -> Problem {
    problem(StatusCode::NOT_FOUND, "not_found", format!("this page is off: {reason}"))
}

pub(super) fn no_such_session() -> Problem {
    problem(StatusCode::NOT_FOUND, "no_such_session", "there is no such session")
}

pub(super) fn method_not_allowed(allow: &str) -> Problem {
    let detail = format!("allowed methods: {allow}");
    problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

pub(super) fn misdirected() -> Problem {
    let detail = "the host name of the request is not one of this listener; see [admin] hosts";
    problem(StatusCode::MISDIRECTED_REQUEST, "misdirected_request", detail)
}

pub(super) fn token_missing() -> Problem {
    let detail = "this page needs a log-in, or Authorization: Bearer TOKEN; see [admin] token";
    problem(StatusCode::UNAUTHORIZED, "admin_token_missing", detail)
}

pub(super) fn token_wrong() -> Problem {
    problem(StatusCode::UNAUTHORIZED, "admin_token_wrong", "the token is wrong")
}

pub(super) fn too_many_attempts(retry_after: Duration) -> Problem {
    let detail = "too many wrong tokens from this address; try again in a minute";
    let retry_after = Some(retry_after);
    Problem {
        retry_after,
        ..problem(StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_tokens", detail)
    }
}

pub(super) fn read_only() -> Problem {
    problem(StatusCode::FORBIDDEN, "read_only", "this needs [admin] token; read_token only reads")
}

pub(super) fn cross_site() -> Problem {
    let detail = "forms are accepted from this site alone (Sec-Fetch-Site: same-origin), and from programs with \
                  Authorization: Bearer TOKEN";
    problem(StatusCode::FORBIDDEN, "cross_site_request", detail)
}

pub(super) fn form_token_wrong() -> Problem {
    let detail = "the form is of another log-in, or has no form_token; load its page again";
    problem(StatusCode::FORBIDDEN, "form_token_wrong", detail)
}

pub(super) fn values_hidden() -> Problem {
    let detail = "values are not shown here: [admin] show_values = false";
    problem(StatusCode::FORBIDDEN, "values_hidden", detail)
}

pub(super) fn malformed_request(detail: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, "malformed_request", detail)
}

pub(super) fn body_too_large(limit: usize) -> Problem {
    let detail = format!("a form must not exceed {limit} bytes");
    problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

pub(super) fn invalid_principal() -> Problem {
    let detail = "a principal is text of 1 to 256 bytes without control characters";
    problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid_principal", detail)
}

pub(super) fn except_is_of_another() -> Problem {
    let detail = "the session that is to stay is not one of this principal; nothing has changed";
    problem(StatusCode::CONFLICT, "not_of_the_principal", detail)
}

pub(super) fn internal() -> Problem {
    Problem::internal()
}
