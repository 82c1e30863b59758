//! What SQLite's errors mean.

use rusqlite::ErrorCode;

pub(super) use crate::store::fault::Fault;
use crate::store::fault::Kind;

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
        Self::new(Kind::Unavailable, trouble)
    }

    /// What a row holds cannot be read.
    pub(super) fn unreadable() -> Self {
        Self::new(Kind::Corrupt, Trouble::Unreadable)
    }

    /// A commit that failed. Where the disk did not do as it was told, the change may yet be
    /// found there after a restart.
    pub(super) fn of_commit(error: rusqlite::Error) -> Self {
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::SystemIoFailure) => Kind::OutcomeUnknown,
            _ => kind_of(&error),
        };
        Self::new(kind, error)
    }
}

fn kind_of(error: &rusqlite::Error) -> Kind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Kind::Full,
        // None is not the engine: a column is of another type than we write.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => Kind::Corrupt,
        Some(_) => Kind::Unavailable,
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(kind_of(&error), error)
    }
}
