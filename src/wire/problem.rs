//! Problem details (RFC 9457).

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

/// A problem, with the stable `code` that programs read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    /// An explanation for developers.
    pub(crate) detail: String,
    /// The duration of a 503, if it is known.
    pub(crate) retry_after: Option<Duration>,
    /// The id of the request, if it has one.
    pub(crate) request_id: Option<String>,
}

#[derive(Serialize)]
struct ProblemObject<'a> {
    /// `about:blank`: the problem has no meaning beyond that of its status (RFC 9457, section
    /// 4.2.1).
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl Problem {
    /// Creates a problem; an invalid status is 500.
    pub(crate) fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, code, detail: detail.into(), retry_after: None, request_id: None }
    }

    /// Creates the problem of an error whose cause only the log has.
    pub(crate) fn internal() -> Self {
        Self::new(500, "internal_error", "internal error; see the log")
    }

    pub(crate) const MEDIA_TYPE: &'static str = "application/problem+json";

    /// Returns the value of Retry-After (RFC 9110, section 10.2.3): whole seconds, at least one.
    pub(crate) fn retry_after_seconds(&self) -> u64 {
        let millis = self.retry_after.unwrap_or_default().as_millis();
        u64::try_from(millis.div_ceil(1000)).unwrap_or(u64::MAX).max(1)
    }

    pub(crate) fn json(&self) -> String {
        let object = ProblemObject {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id: self.request_id.as_deref(),
        };
        serde_json::to_string(&object).expect("text and numbers are serializable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_has_the_members_of_rfc_9457() {
        let detail = "a \"detail\"".to_owned();
        let status = StatusCode::GONE;
        let problem =
            Problem { status, code: "request_gone", detail, retry_after: None, request_id: None };
        let json = "{\"type\":\"about:blank\",\"title\":\"Gone\",\"status\":410,\"detail\":\"a \\\"detail\\\"\",\
                    \"code\":\"request_gone\"";
        assert_eq!(problem.json(), format!("{json}}}"));
        let with_id = Problem { request_id: Some("\"7\"".to_owned()), ..problem.clone() };
        assert_eq!(with_id.json(), format!("{json},\"request_id\":\"\\\"7\\\"\"}}"));
        assert_eq!(problem.retry_after_seconds(), 1);
        let retry_after = Some(Duration::from_millis(2001));
        assert_eq!(Problem { retry_after, ..problem }.retry_after_seconds(), 3);
    }
}
