//! Errors of calls.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::Cause;
use super::config::Address;

/// The reason why a call returned no value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request was not sent.
    #[error(transparent)]
    NotSent(Cause),
    /// The request may have been sent, and the connection closed.
    #[error(transparent)]
    Closed(Cause),
    /// The request may have been sent, and no reply came before the deadline.
    #[error(transparent)]
    TimedOut(Cause),
    /// The server replied with an error.
    #[error(transparent)]
    Refused(Box<ErrorReply>),
}

/// An error that a server replied with.
#[derive(Debug, thiserror::Error)]
#[error("Redis server {server}: {error}")]
pub(crate) struct ErrorReply {
    pub(crate) server: Address,
    pub(crate) error: RedisError,
}

impl CallError {
    /// Returns the kind of the server's error.
    pub(crate) fn server_error(&self) -> Option<ServerErrorKind> {
        match self {
            Self::Refused(reply) => match reply.error.kind() {
                ErrorKind::Server(kind) => Some(kind),
                _ => None,
            },
            Self::NotSent(_) | Self::Closed(_) | Self::TimedOut(_) => None,
        }
    }
}

/// Returns whether an error is a reply of the server.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Returns whether the server does not accept writes: another one may, or this one later.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    )
}

/// Returns whether the access list refuses a command. In a script, only the text tells.
pub(crate) fn is_denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.detail().is_some_and(|detail| {
            ["NOPERM", "ACL failure", "can't run this command"]
                .iter()
                .any(|words| detail.contains(words))
        })
}

/// Returns whether the server refuses a command, or does not have it.
pub(crate) fn is_unavailable(error: &RedisError) -> bool {
    is_denied(error) || error.detail().is_some_and(|detail| detail.starts_with("unknown command"))
}

/// Writes an error and its causes in one line.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        // Some errors repeat their cause.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
