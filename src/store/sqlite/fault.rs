//! Why SQLite did not do it. One fault may be told to a whole group, so it can be cloned.

use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::store::Error;

/// An [`Error`] that can be told to several.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    kind: Kind,
    cause: Arc<dyn std::error::Error + Send + Sync>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unavailable,
    OutcomeUnknown,
    Full,
    Corrupt,
}

/// What is wrong where SQLite itself has nothing to say.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the queue is full")]
    QueueFull,
    #[error("the store's thread has ended")]
    ThreadEnded,
    #[error("a column holds what was never written there")]
    Unreadable,
    #[error("the transaction was rolled back")]
    RolledBack,
}

impl Fault {
    /// The queue takes no more, or nobody works on it.
    pub(super) fn unavailable(trouble: Trouble) -> Self {
        Self { kind: Kind::Unavailable, cause: Arc::new(trouble) }
    }

    /// What a row holds cannot be read.
    pub(super) fn unreadable() -> Self {
        Self { kind: Kind::Corrupt, cause: Arc::new(Trouble::Unreadable) }
    }

    /// A commit that failed. Where the disk did not do as it was told, the change may yet be
    /// found there after a restart.
    pub(super) fn of_commit(error: rusqlite::Error) -> Self {
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::SystemIoFailure) => Kind::OutcomeUnknown,
            _ => Kind::of(&error),
        };
        Self { kind, cause: Arc::new(error) }
    }
}

impl Kind {
    fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            // None is not the engine: a column is of another type than we write.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => Self::Corrupt,
            Some(_) => Self::Unavailable,
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self { kind: Kind::of(&error), cause: Arc::new(error) }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let cause = Box::new(fault.cause);
        match fault.kind {
            Kind::Unavailable => Self::Unavailable(cause),
            Kind::OutcomeUnknown => Self::OutcomeUnknown(cause),
            Kind::Full => Self::Full,
            Kind::Corrupt => Self::Corrupt(cause),
        }
    }
}
