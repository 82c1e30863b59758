//! Errors of requests to upstreams.

use std::error::Error as StdError;
use std::fmt;

use super::target::Target;
use crate::body::BodyError;

/// Error of a request that has no response.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    upstream: Option<Box<Target>>,
    cause: Box<dyn StdError + Send + Sync>,
}

/// Kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// No connection could be opened; nothing was sent.
    Connect,
    /// No connection could be opened in time; nothing was sent.
    ConnectTimeout,
    /// The limit of concurrent requests or of file descriptors was reached; nothing was sent.
    Busy,
    /// The upstream closed the connection before the end of the response's head, or sent invalid HTTP.
    Response,
    /// The response's head did not arrive in time, or the upstream did not read the request.
    ResponseTimeout,
    /// The client's request body was truncated or too slow.
    RequestBody,
    /// The client's request body is too large.
    RequestBodyTooLarge,
    /// The response's body is too large for the caller, or was truncated.
    ResponseBody,
    /// The response's body did not arrive in time.
    ResponseBodyTimeout,
}

impl Error {
    pub(super) fn with(kind: ErrorKind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, upstream: None, cause: cause.into() }
    }

    /// Adds the upstream that the request was for.
    pub(super) fn at(self, upstream: &Target) -> Self {
        Self { upstream: Some(Box::new(upstream.clone())), ..self }
    }

    /// Returns the upstream that the request was for, if one was chosen.
    pub(crate) fn upstream(&self) -> Option<&Target> {
        self.upstream.as_deref()
    }

    /// Classifies an error of hyper: a failed request body is among its causes.
    pub(super) fn of_exchange(error: hyper::Error) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(inner) = cause {
            if let Some(body) = inner.downcast_ref() {
                let kind = match body {
                    BodyError::TooLarge => ErrorKind::RequestBodyTooLarge,
                    BodyError::Idle | BodyError::Interrupted | BodyError::Broken(_) => {
                        ErrorKind::RequestBody
                    }
                };
                return Self::with(kind, error);
            }
            cause = inner.source();
        }
        Self::with(ErrorKind::Response, error)
    }

    /// Returns the message, with the innermost cause.
    pub(super) fn explain(&self) -> String {
        format!("{self}: {}", self.innermost())
    }

    /// Returns the innermost cause, e.g. the error of the operating system.
    pub(super) fn innermost(&self) -> &(dyn StdError + 'static) {
        let mut cause: &(dyn StdError + 'static) = &*self.cause;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        cause
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns whether no connection could be opened.
    pub fn is_connect(&self) -> bool {
        matches!(self.kind, ErrorKind::Connect | ErrorKind::ConnectTimeout)
    }

    /// Returns whether the upstream exceeded a timeout.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout | ErrorKind::ResponseBodyTimeout
        )
    }

    /// Returns whether the request's body failed, for which the upstream is not to blame.
    pub(crate) fn is_request_body(&self) -> bool {
        matches!(self.kind, ErrorKind::RequestBody | ErrorKind::RequestBodyTooLarge)
    }
}

impl ErrorKind {
    /// Returns the message for logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "failed to connect to the upstream",
            Self::ConnectTimeout => "connecting to the upstream timed out",
            Self::Busy => "too many requests or connections to the upstream",
            Self::Response => {
                "the upstream closed the connection early or sent an invalid response"
            }
            Self::ResponseTimeout => "the upstream's response timed out",
            Self::RequestBody => "the request's body was truncated or too slow",
            Self::RequestBodyTooLarge => "the request's body is too large",
            Self::ResponseBody => "the response's body was truncated or is too large",
            Self::ResponseBodyTimeout => "the response's body timed out",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.cause)
    }
}
