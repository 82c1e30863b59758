//! Errors of calls, as the store reports them.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::redis::{CallError, ErrorReply, is_demoted, is_denied, whole};
use crate::store::Error;

/// An error that the server replied with.
#[derive(Debug, thiserror::Error)]
#[error("Redis server {} replied {}", .0.server, text_of(&.0.error))]
pub(super) struct Refusal(Box<ErrorReply>);

/// Returns the server's words, without the place in our script.
pub(super) fn text_of(error: &RedisError) -> String {
    match error.code().zip(error.detail()) {
        Some((code, detail)) => words(code, detail),
        None => whole(error),
    }
}

fn words(code: &str, detail: &str) -> String {
    // Redis 7 adds the place; before, the words are at the end of an error of the script.
    match (detail.split_once(" script: "), detail.split_once(": -")) {
        (Some((words, place)), _) if place.contains("@user_script") => {
            format!("{code} {}", words.trim_end_matches(['.', ' ']))
        }
        (_, Some((place, words))) if place.contains("user_script") => {
            words.trim_end_matches(['.', ' ']).to_owned()
        }
        _ => format!("{code} {}", detail.trim_end_matches(['.', ' '])),
    }
}

impl Refusal {
    /// Returns the error if the access list is the cause.
    pub(super) fn denial(&self) -> Option<&RedisError> {
        Some(&self.0.error).filter(|error| is_denied(error))
    }
}

/// Converts the error of a read.
pub(super) fn of_read(error: CallError) -> Error {
    match error {
        CallError::NotSent(cause) | CallError::Closed(cause) | CallError::TimedOut(cause) => {
            Error::Unavailable(cause)
        }
        CallError::Refused(reply) => refused(reply),
    }
}

/// Converts the error of a change, which may have happened unless it was not sent.
pub(super) fn of_write(error: CallError) -> Error {
    match error {
        CallError::NotSent(cause) => Error::Unavailable(cause),
        CallError::Closed(cause) | CallError::TimedOut(cause) => Error::OutcomeUnknown(cause),
        CallError::Refused(reply) => refused(reply),
    }
}

/// Returns the error of a server that replies and accepts no changes at present: its memory is full, it cannot
/// write to its disk, it lacks replicas, or its access list refuses the command. Errors about one session are
/// not among them, nor those after which the client reconnects by itself.
pub(super) fn refuses_changes(error: &CallError) -> Option<&ErrorReply> {
    let CallError::Refused(reply) = error else { return None };
    let error = &reply.error;
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
    (!is_demoted(error) && !is_redirected && !is_of_one).then_some(reply)
}

/// Converts the error of a reply. Before Redis 7, the error of a command in a script is in the text of the
/// script's own.
fn refused(reply: Box<ErrorReply>) -> Error {
    let is_full = says(&reply.error, "OOM");
    let is_of_one = is_about_a_session(&reply.error);
    let cause = Refusal(reply).into();
    if is_full {
        Error::Full(cause)
    } else if is_of_one {
        Error::Corrupt(cause)
    } else {
        Error::Unavailable(cause)
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
    fn place_in_a_script_is_left_out() {
        let full = "OOM command not allowed when used memory > 'maxmemory'";
        let detail = "command not allowed when used memory > 'maxmemory'";
        for (code, detail) in [
            ("OOM", format!("{detail}.")),
            ("OOM", format!("{detail}. script: 40c4, on @user_script:126.")),
            (
                "ERR",
                format!(
                    "Error running script (call to f_40c4): @user_script:126: @user_script: 126: -{full}. "
                ),
            ),
        ] {
            assert_eq!(words(code, &detail), full);
        }
    }

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
