//! Errors of calls, as the store reports them.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::redis::{CallError, is_demoted, is_denied};
use crate::store::{Cause, Error};

/// The server has not replied within the deadline.
#[derive(Debug, thiserror::Error)]
#[error("Redis does not reply")]
struct NoReply(#[source] Cause);

/// Converts the error of a read.
pub(super) fn of_read(error: CallError) -> Error {
    match error {
        CallError::NotSent(cause) => unsent(cause),
        CallError::Closed(cause) => Error::Unavailable(cause),
        CallError::TimedOut(cause) => Error::Unavailable(NoReply(cause).into()),
        CallError::Refused(error) => refused(error),
    }
}

/// Converts the error of a change, which may have happened unless it was not sent.
pub(super) fn of_write(error: CallError) -> Error {
    match error {
        CallError::NotSent(cause) => unsent(cause),
        CallError::Closed(cause) => Error::OutcomeUnknown(cause),
        CallError::TimedOut(cause) => Error::OutcomeUnknown(NoReply(cause).into()),
        CallError::Refused(error) => refused(error),
    }
}

/// Returns the error of a call that was not sent. One that waited for a connection in vain has had no reply either.
fn unsent(cause: Cause) -> Error {
    let is_late = cause.is::<tokio::time::error::Elapsed>();
    Error::Unavailable(if is_late { NoReply(cause).into() } else { cause })
}

/// Returns the error of a server that replies and accepts no changes at present: its memory is full, it cannot
/// write to its disk, it lacks replicas, or its access list refuses the command. Errors about one session are
/// not among them, nor those after which the client reconnects by itself.
pub(super) fn refuses_changes(error: &CallError) -> Option<&RedisError> {
    let CallError::Refused(error) = error else { return None };
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

/// Converts the error of a reply. Before Redis 7, the error of a command in a script is in the text of the
/// script's own.
fn refused(error: RedisError) -> Error {
    if says(&error, "OOM") {
        Error::Full(error.into())
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

/// Returns whether the content of the key is the cause. Our scripts fail by themselves only on fields that
/// they did not write.
fn is_about_a_session(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    let script_failed = error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && detail.contains("user_script")
        && !detail.contains(": -")
        && !is_denied(error);
    says(error, "WRONGTYPE") || (script_failed && !says(error, "OOM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_of_an_unsent_change_is_known() {
        let cause = || "a cause".into();
        let sent = [CallError::Closed, CallError::TimedOut];
        for error in sent {
            let (read, write) = (of_read(error(cause())), of_write(error(cause())));
            assert!(matches!(read, Error::Unavailable(_)), "{read:?}");
            assert!(matches!(write, Error::OutcomeUnknown(_)), "{write:?}");
        }
        for convert in [of_read, of_write] {
            let error = convert(CallError::NotSent(cause()));
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        }
    }
}
