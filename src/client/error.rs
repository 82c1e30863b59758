//! Why a request had no answer.

use std::error::Error as StdError;
use std::fmt;

use super::target::Target;
use crate::body::BodyError;

/// Why a request had no answer, with its cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    upstream: Option<Box<Target>>,
    cause: Box<dyn StdError + Send + Sync>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection could be made; nothing was sent.
    Connect,
    /// None could be made in time; nothing was sent.
    ConnectTimeout,
    /// It has as many requests as it may have, and none ended in time; nothing was sent.
    Busy,
    /// The upstream closed, broke off, or sent what is no HTTP, before its response's head was there.
    Response,
    /// The response's head did not come in time, or the upstream did not take the request.
    ResponseTimeout,
    /// The request's body broke off or fell silent: the client's fault.
    RequestBody,
    /// The request's body is larger than it may be: likewise.
    RequestBodyTooLarge,
    /// The response's body is larger than the caller takes, or broke off.
    ResponseBody,
    /// The response's body did not come in time.
    ResponseBodyTimeout,
}

impl Error {
    pub(super) fn with(kind: ErrorKind, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind, upstream: None, cause: cause.into() }
    }

    /// Notes which upstream the request was for.
    pub(super) fn at(self, upstream: &Target) -> Self {
        Self { upstream: Some(Box::new(upstream.clone())), ..self }
    }

    /// The upstream that was asked, if the request got as far.
    pub fn upstream(&self) -> Option<&Target> {
        self.upstream.as_deref()
    }

    /// Of a request that hyper could not see through.
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

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether nothing of the request can have reached the upstream.
    pub fn is_connect(&self) -> bool {
        matches!(self.kind, ErrorKind::Connect | ErrorKind::ConnectTimeout)
    }

    /// Whether a deadline passed that the upstream had.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::ConnectTimeout | ErrorKind::ResponseTimeout | ErrorKind::ResponseBodyTimeout
        )
    }

    /// Whether it was the request's own body that failed.
    pub fn is_request_body(&self) -> bool {
        matches!(self.kind, ErrorKind::RequestBody | ErrorKind::RequestBodyTooLarge)
    }
}

impl ErrorKind {
    /// The same in words, for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "the upstream cannot be connected to",
            Self::ConnectTimeout => "connecting to the upstream took too long",
            Self::Busy => "the upstream has as many requests as it may have",
            Self::Response => "the upstream closed before its response, or sent a malformed one",
            Self::ResponseTimeout => "the upstream's response took too long",
            Self::RequestBody => "the request's body broke off",
            Self::RequestBodyTooLarge => "the request's body is larger than it may be",
            Self::ResponseBody => "the response's body broke off or is too large",
            Self::ResponseBodyTimeout => "the response's body took too long",
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
