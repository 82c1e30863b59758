//! What can go wrong with a request, whom to blame, and the one place that makes a response of it.

use std::time::Duration;

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, InvalidHeaderValue,
    LOCATION, MaxSizeReached, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};

use super::request::{self, Rejected};
use super::via::ViaError;
use crate::body::Body;
use crate::client::{self, Kind, Target};
use crate::metrics::Outcome;
use crate::session::navigation;
use crate::sessions::Failure;
use crate::store::Error as StoreError;
use crate::wire::Problem;

/// Why a request was not answered by its upstream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the request was refused: {}", .0.reason)]
    Rejected(#[from] Rejected),
    #[error("ambiguous path: it matches different routes, depending on how a server reads it")]
    AmbiguousPath,
    #[error("no route has this host and path")]
    NoRoute,
    /// The path is the session API's. With its URL, for clients on this machine.
    #[error("the session API is not on a public listener")]
    ApiPath(Option<String>),
    /// The connection was opened for another host, which is served here.
    #[error("the host is not served on this connection")]
    Misdirected,
    /// It says so before it is sent.
    #[error("the request's body is larger than it may be")]
    TooLarge,
    /// Where to log in, for those who ask for a page.
    #[error("the route is for those who are logged in")]
    NotLoggedIn(Option<HeaderValue>),
    #[error("the upstream did not answer")]
    Upstream(#[from] client::Error),
    #[error("the upstream switched to another protocol than was asked for")]
    Switched,
    #[error("the session could not be opened")]
    Store(#[from] StoreError),
    /// The text is for the log alone.
    #[error("the upstream's X-Session-Patch was not applied: {0}")]
    Patch(String),
    /// How long until another may be created.
    #[error("the client's address has created too many sessions")]
    TooManyNewSessions(Duration),
    #[error("a value does not fit a header")]
    Header(#[source] InvalidHeaderValue),
}

impl From<MaxSizeReached> for Error {
    fn from(full: MaxSizeReached) -> Self {
        Self::Rejected(full.into())
    }
}

impl From<ViaError> for Error {
    fn from(error: ViaError) -> Self {
        Self::Rejected(error.into())
    }
}

/// What is told of a body that is larger than the route takes.
const TOO_LARGE: (&str, &str) = ("body_too_large", "What was sent is larger than this site takes.");

/// Which form of an error page a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// It names text/html.
    Html,
    /// It names JSON, and no HTML.
    Json,
    /// It names neither.
    Anything,
}

impl Accepts {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut json = false;
        for media in navigation::accepted(headers).map(str::to_ascii_lowercase) {
            if media == "text/html" {
                return Self::Html;
            }
            json |= media == "application/json" || media.ends_with("+json");
        }
        if json { Self::Json } else { Self::Anything }
    }
}

impl Error {
    /// Why a patch by header was not applied.
    pub(super) fn of_patch(failure: &Failure) -> Self {
        match failure {
            Failure::TooManyNewSessions { retry_after } => Self::TooManyNewSessions(*retry_after),
            failure => Self::Patch(failure.to_string()),
        }
    }

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
            Self::Upstream(error) if error.is_request_body() => Outcome::ClientError,
            Self::Upstream(_) | Self::Switched | Self::Patch(_) => Outcome::UpstreamError,
            Self::Store(_) => Outcome::StoreError,
            Self::Header(_) => Outcome::InternalError,
        }
    }

    /// What its lines in the log are limited by: one a second for each.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Upstream(error) => error.kind().as_str(),
            _ => self.told().0,
        }
    }

    /// The upstream that was asked, if the request got as far.
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
            Self::Upstream(error) if error.kind() == Kind::RequestBodyTooLarge => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Upstream(error) if error.kind() == Kind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(error) if error.is_request_body() => StatusCode::BAD_REQUEST,
            Self::Upstream(error) if error.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(_) | Self::Switched | Self::Patch(_) => StatusCode::BAD_GATEWAY,
            Self::Store(StoreError::Corrupt(_)) | Self::Header(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Store(_) | Self::TooManyNewSessions(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The code, and what a stranger is told: nothing of hosts, addresses or versions.
    fn told(&self) -> (&'static str, &'static str) {
        match self {
            Self::Rejected(_) | Self::AmbiguousPath => {
                ("request_rejected", "The request is not one that this site takes.")
            }
            Self::NoRoute | Self::ApiPath(_) => ("not_found", "There is no such page here."),
            Self::Misdirected => {
                ("misdirected_request", "That host is not served on this connection.")
            }
            Self::NotLoggedIn(_) => ("not_logged_in", "You need to log in to see this."),
            Self::TooLarge => TOO_LARGE,
            Self::Upstream(error) if error.kind() == Kind::RequestBodyTooLarge => TOO_LARGE,
            Self::Upstream(error) if error.kind() == Kind::Busy => {
                ("upstream_busy", "The site has too much to do. Please try again in a moment.")
            }
            Self::Upstream(error) if error.is_request_body() => {
                ("request_incomplete", "The request broke off.")
            }
            Self::Upstream(error) if error.is_timeout() => (
                "upstream_timeout",
                "The site took too long to answer. Please try again in a moment.",
            ),
            Self::Upstream(_) | Self::Switched => {
                ("upstream_unavailable", "The site did not answer. Please try again in a moment.")
            }
            Self::Patch(_) => {
                ("session_patch_failed", "What the site wanted to remember could not be kept.")
            }
            Self::TooManyNewSessions(_) => (
                "too_many_new_sessions",
                "There are too many new visitors from your network. Please try again in a minute.",
            ),
            Self::Store(_) => (
                "store_unavailable",
                "Your session cannot be reached. Please try again in a moment.",
            ),
            Self::Header(_) => ("internal_error", "Something went wrong here."),
        }
    }

    /// The response: a small page, or a problem for those that ask for JSON. A patch's refusal is
    /// for the site's developer, and so a problem unless a browser asks.
    pub(super) fn response(&self, accepts: Accepts) -> Response<Body> {
        let (code, detail) = self.told();
        let detail = match self {
            Self::ApiPath(Some(url)) => format!(
                "The session API is not on this listener. It is at {url}, for requests with an X-Session-Token."
            ),
            _ => detail.to_owned(),
        };
        let retry_after = match self {
            Self::TooManyNewSessions(retry_after) => Some(*retry_after),
            _ => None,
        };
        let problem = Problem { status: self.status(), code, detail, retry_after };
        let as_problem = match accepts {
            Accepts::Html => false,
            Accepts::Json => true,
            Accepts::Anything => matches!(self, Self::Patch(_) | Self::TooManyNewSessions(_)),
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
            // Whoever sent this may have meant what follows to be read otherwise.
            Self::Rejected(_) => {
                drop(headers.insert(CONNECTION, HeaderValue::from_static("close")));
            }
            Self::NotLoggedIn(Some(location)) => {
                drop(headers.insert(LOCATION, location.clone()));
            }
            // RFC 9110, section 15.5.2, wants a scheme; that of cookies has no registered one.
            Self::NotLoggedIn(None) => {
                drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Cookie")));
            }
            _ => {}
        }
        response
    }
}

/// The causes of an error, outermost first.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(error.source(), |cause| cause.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn page(problem: &Problem) -> String {
    let title = problem.status.canonical_reason().unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1rem}}</style>\
         <h1>{title}</h1><p>{}</p></html>\n",
        problem.detail
    )
}
