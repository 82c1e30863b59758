//! What has gone wrong with a command, and what that means.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::store::{Cause, Error};

/// Why a command has no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was not sent.
    NotSent(Cause),
    /// It was sent, perhaps, and the connection ended.
    Cut(Cause),
    /// It was sent, perhaps, and no answer came in time.
    Silent(Cause),
    /// The server says no.
    Refused(RedisError),
}

impl Trouble {
    /// What it means to one who asked.
    pub(super) fn of_read(self) -> Error {
        match self {
            Self::NotSent(cause) | Self::Cut(cause) | Self::Silent(cause) => {
                Error::Unavailable(cause)
            }
            Self::Refused(error) => refused(error),
        }
    }

    /// What it means to one who wanted a change.
    pub(super) fn of_write(self) -> Error {
        match self {
            Self::NotSent(cause) => Error::Unavailable(cause),
            Self::Cut(cause) | Self::Silent(cause) => Error::OutcomeUnknown(cause),
            Self::Refused(error) => refused(error),
        }
    }

    /// The error of a server that answers, and takes no changes now: its memory is full, it cannot
    /// write to its disk, it misses its replicas, it may not be used so. What makes a link leave a
    /// server is told by the link; what is wrong with one session is no such error.
    pub(super) fn refuses_changes(&self) -> Option<&RedisError> {
        let Self::Refused(error) = self else { return None };
        let is_redirected = matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::Moved
                    | ServerErrorKind::Ask
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::NoScript
            )
        );
        let is_of_one = is_about_a_session(error);
        (!is_demoted(error) && !is_redirected && !is_of_one).then_some(error)
    }

    /// Which error the server answered.
    pub(super) fn answered(&self) -> Option<ServerErrorKind> {
        match self {
            Self::Refused(error) => match error.kind() {
                ErrorKind::Server(kind) => Some(kind),
                _ => None,
            },
            Self::NotSent(_) | Self::Cut(_) | Self::Silent(_) => None,
        }
    }
}

/// Whether the server has answered, if only by an error.
pub(super) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// Whether the server is not, or no more, one that takes writes: another may, or this one later.
pub(super) fn is_demoted(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    )
}

/// Whether the access list keeps a command from us; in a script that is told in words alone.
pub(super) fn is_denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.detail().is_some_and(|detail| {
            ["NOPERM", "ACL failure", "can't run this command"]
                .iter()
                .any(|words| detail.contains(words))
        })
}

/// Whether the server does not let us use a command, or does not have it.
pub(super) fn is_unavailable(error: &RedisError) -> bool {
    is_denied(error) || error.detail().is_some_and(|detail| detail.starts_with("unknown command"))
}

/// What an error that the server answered means. Before Redis 7 the error of a command in a script
/// is in the text of the script's own.
fn refused(error: RedisError) -> Error {
    if says(&error, "OOM") {
        Error::Full
    } else if is_about_a_session(&error) {
        Error::Corrupt(error.into())
    } else {
        Error::Unavailable(error.into())
    }
}

fn says(error: &RedisError, code: &str) -> bool {
    let detail = error.detail().unwrap_or_default();
    error.code() == Some(code) || detail.contains(&format!(": -{code} "))
}

/// Whether what stands under the key is the reason. A script of ours fails by itself only over fields
/// that it did not write.
fn is_about_a_session(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    let script_failed = error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && detail.contains("user_script")
        && !detail.contains(": -")
        && !is_denied(error);
    says(error, "WRONGTYPE") || (script_failed && !says(error, "OOM"))
}

/// An error with all that lies beneath it.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut beneath = error.source();
    while let Some(cause) = beneath {
        let told = cause.to_string();
        // Some repeat in their own words what lies beneath them.
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        beneath = cause.source();
    }
    text
}
