//! Request errors: their outcome in logs and metrics, and the one place that turns them into responses.

use std::time::Duration;

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, InvalidHeaderValue,
    LOCATION, MaxSizeReached, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};

use super::request::{self, Rejected};
use super::via::ViaError;
use crate::body::Body;
use crate::client::{self, ErrorKind, Target};
use crate::metrics::Outcome;
use crate::session::navigation;
use crate::sessions::{Busy, Failure, OpenError};
use crate::store::Error as StoreError;
use crate::wire::Problem;

/// The reason why the response is not that of the upstream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("request rejected: {}", .0.reason)]
    Rejected(#[from] Rejected),
    #[error("ambiguous path: it matches different routes depending on decoding")]
    AmbiguousPath,
    #[error("no route matches this host and path")]
    NoRoute,
    /// The path is that of the session API. With its URL, for clients on the same machine.
    #[error("the session API is not served on public listeners")]
    ApiPath(Option<String>),
    /// The connection was opened for another host.
    #[error("the host is not served on this connection")]
    Misdirected,
    /// The declared length of the body exceeds the limit.
    #[error("request body too large")]
    TooLarge,
    /// With the URL of the login page, for clients that request a page.
    #[error("the route requires a logged-in user")]
    NotLoggedIn(Option<HeaderValue>),
    #[error("upstream request failed")]
    Upstream(#[from] client::Error),
    #[error("upstream switched to a protocol that was not requested")]
    Switched,
    #[error("failed to open the session")]
    Store(#[source] StoreError),
    #[error("the request did not get its turn on its session")]
    SessionBusy(#[source] Busy),
    /// With a description for the log only.
    #[error("failed to apply X-Session-Patch: {0}")]
    Patch(String),
    /// The store did not take the patch in a response header.
    #[error("failed to apply X-Session-Patch")]
    PatchNotStored(#[source] Failure),
    /// With the time until another session may be created.
    #[error("too many new sessions from the client's address")]
    TooManyNewSessions(Duration),
    #[error("invalid header value")]
    Header(#[source] InvalidHeaderValue),
}

impl From<MaxSizeReached> for Error {
    fn from(full: MaxSizeReached) -> Self {
        Self::Rejected(full.into())
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(error) => Self::Store(error),
            OpenError::Busy(busy) => Self::SessionBusy(busy),
        }
    }
}

impl From<ViaError> for Error {
    fn from(error: ViaError) -> Self {
        Self::Rejected(error.into())
    }
}

/// The code and message for a body that exceeds the limit of its route.
const TOO_LARGE: (&str, &str) = ("body_too_large", "The request is larger than this site accepts.");

/// The media type of error responses that a client prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// `text/html` is listed.
    Html,
    /// JSON is listed, and HTML is not.
    Json,
    /// Neither is listed.
    Anything,
}

impl Accepts {
    pub(super) fn from_headers(headers: &HeaderMap) -> Self {
        let is_html = |media: &str| media.eq_ignore_ascii_case("text/html");
        let is_json = |media: &str| {
            let suffix = media.rsplit_once('+').map_or("", |(_, suffix)| suffix);
            media.eq_ignore_ascii_case("application/json") || suffix.eq_ignore_ascii_case("json")
        };
        if navigation::accepted(headers).any(is_html) {
            Self::Html
        } else if navigation::accepted(headers).any(is_json) {
            Self::Json
        } else {
            Self::Anything
        }
    }
}

impl Error {
    /// Returns the error for a patch by header that could not be applied.
    pub(super) fn from_patch_failure(failure: Failure) -> Self {
        match failure {
            Failure::TooManyNewSessions { retry_after } => Self::TooManyNewSessions(retry_after),
            failure @ (Failure::Store(_) | Failure::NotLoaded) => Self::PatchNotStored(failure),
            failure => Self::Patch(failure.to_string()),
        }
    }

    /// Converts the failure of keeping the site's cookies.
    pub(super) fn from_held_failure(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => Self::Store(error),
            failure => Self::from_patch_failure(failure),
        }
    }

    /// Returns the outcome that the request is counted under.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Rejected(_)
            | Self::AmbiguousPath
            | Self::NoRoute
            | Self::ApiPath(_)
            | Self::Misdirected
            | Self::NotLoggedIn(_)
            | Self::TooManyNewSessions(_)
            | Self::TooLarge => Outcome::ClientError,
            // The client's fault: it has not sent the body that it announced.
            Self::Upstream(error) if error.is_request_body() => Outcome::ClientError,
            // An earlier request of the session is slow, or requests its own site.
            Self::SessionBusy(_) | Self::Upstream(_) | Self::Switched | Self::Patch(_) => {
                Outcome::UpstreamError
            }
            Self::Store(_) | Self::PatchNotStored(_) => Outcome::StoreError,
            Self::Header(_) => Outcome::InternalError,
        }
    }

    /// Returns the key of the log's rate limit: one line per second for each cause.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Upstream(error) => error.kind().as_str(),
            _ => self.public_message().0,
        }
    }

    /// Returns the upstream, if one was selected.
    pub(super) fn upstream(&self) -> Option<&Target> {
        match self {
            Self::Upstream(error) => error.upstream(),
            _ => None,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Rejected(rejected) => rejected.status,
            Self::AmbiguousPath => StatusCode::BAD_REQUEST,
            Self::NoRoute | Self::ApiPath(_) => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NotLoggedIn(Some(_)) => StatusCode::SEE_OTHER,
            Self::NotLoggedIn(None) => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Upstream(error) if error.kind() == ErrorKind::RequestBodyTooLarge => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Upstream(error) if error.kind() == ErrorKind::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Upstream(error) if error.is_request_body() => StatusCode::BAD_REQUEST,
            Self::Upstream(error) if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(_) | Self::Switched | Self::Patch(_) | Self::PatchNotStored(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Store(StoreError::Corrupt(_)) | Self::Header(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Store(_) | Self::TooManyNewSessions(_) | Self::SessionBusy(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// Returns the code and a message that is safe to show to clients: it reveals no hosts, addresses or
    /// versions.
    fn public_message(&self) -> (&'static str, &'static str) {
        match self {
            Self::Rejected(_) | Self::AmbiguousPath => {
                ("request_rejected", "This site does not accept the request.")
            }
            Self::NoRoute | Self::ApiPath(_) => ("not_found", "This page does not exist."),
            Self::Misdirected => {
                ("misdirected_request", "This connection does not serve the requested host.")
            }
            Self::NotLoggedIn(_) => ("not_logged_in", "You need to log in to see this page."),
            Self::TooLarge => TOO_LARGE,
            Self::Upstream(error) if error.kind() == ErrorKind::RequestBodyTooLarge => TOO_LARGE,
            Self::Upstream(error) if error.kind() == ErrorKind::Busy => {
                ("upstream_busy", "The site is overloaded. Please try again in a moment.")
            }
            Self::Upstream(error) if error.is_request_body() => {
                ("request_incomplete", "The request was incomplete.")
            }
            Self::Upstream(error) if error.is_timeout() => (
                "upstream_timeout",
                "The site took too long to respond. Please try again in a moment.",
            ),
            Self::Upstream(_) | Self::Switched => {
                ("upstream_unavailable", "The site did not respond. Please try again in a moment.")
            }
            Self::Patch(_) | Self::PatchNotStored(_) => {
                ("session_patch_failed", "The site's changes to your session could not be saved.")
            }
            Self::TooManyNewSessions(_) => (
                "too_many_new_sessions",
                "There are too many new visitors from your network. Please try again in a minute.",
            ),
            Self::SessionBusy(_) => (
                "session_busy",
                "The site is still working on your other requests. Please try again in a moment.",
            ),
            Self::Store(_) => {
                ("store_unavailable", "Your session is unavailable. Please try again in a moment.")
            }
            Self::Header(_) => ("internal_error", "Internal error."),
        }
    }

    fn is_of_patch(&self) -> bool {
        matches!(self, Self::Patch(_) | Self::PatchNotStored(_))
    }

    /// Returns the response: a short HTML page, or a problem (RFC 9457) for clients that prefer JSON.
    /// Errors that the site's developer must fix are problems unless the client prefers HTML.
    pub(super) fn response(&self, accepts: Accepts, request_id: String) -> Response<Body> {
        let (code, detail) = self.public_message();
        let detail = match self {
            Self::ApiPath(Some(url)) => api_detail(url),
            _ => detail.to_owned(),
        };
        // Only this error knows when a retry can succeed. Others that are 503 use a default.
        let retry_after = match self {
            Self::TooManyNewSessions(retry_after) => Some(*retry_after),
            _ => None,
        };
        let (status, request_id) = (self.status(), Some(request_id));
        let problem = Problem { status, code, detail, retry_after, request_id };
        let as_problem = match accepts {
            Accepts::Html => false,
            Accepts::Json => true,
            Accepts::Anything => self.is_of_patch() || matches!(self, Self::TooManyNewSessions(_)),
        };
        let (media_type, text) = if as_problem {
            (Problem::MEDIA_TYPE, problem.json())
        } else {
            ("text/html; charset=utf-8", page(&problem))
        };
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = problem.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // The error replaces a resource of another type, e.g. a script, which a browser might
        // guess.
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match problem.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                drop(headers.insert(RETRY_AFTER, HeaderValue::from(problem.retry_after_seconds())));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                drop(headers.insert(ALLOW, HeaderValue::from_static(request::ALLOW)));
            }
            _ => {}
        }
        match self {
            // The peer may disagree about where this request ends, so what follows is not read.
            Self::Rejected(_) => {
                drop(headers.insert(CONNECTION, HeaderValue::from_static("close")));
            }
            Self::NotLoggedIn(Some(location)) => {
                drop(headers.insert(LOCATION, location.clone()));
            }
            // RFC 9110, section 15.5.2, requires a scheme. None is registered for cookies.
            Self::NotLoggedIn(None) => {
                drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Cookie")));
            }
            _ => {}
        }
        response
    }
}

/// Joins the causes of an error, outermost first.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(error.source(), |cause| cause.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn api_detail(url: &str) -> String {
    format!(
        "The session API is not on this listener. It is at {url}, for requests with an X-Session-Token."
    )
}

fn page(problem: &Problem) -> String {
    let title = problem.status.canonical_reason().unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1rem}}</style>\
         <h1>{title}</h1><p>{}</p><p><small>Request id: {}</small></p></html>\n",
        problem.detail,
        escaped(problem.request_id.as_deref().unwrap_or_default())
    )
}

/// Returns a text for HTML. A proxy may have taken the id of a request from its client.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_escapes_the_id() {
        let (status, code) = (StatusCode::BAD_GATEWAY, "upstream_unavailable");
        let (detail, request_id) = ("Sorry.".to_owned(), Some("<b>&".to_owned()));
        let page = page(&Problem { status, code, detail, retry_after: None, request_id });
        assert!(page.contains("<p><small>Request id: &lt;b&gt;&amp;</small></p>"), "{page}");
    }
}
