//! What SQLite's errors mean.

use std::path::PathBuf;

use rusqlite::ErrorCode;

pub(super) use crate::store::fault::Fault;
pub(super) use crate::store::fault::Kind;

/// Errors that SQLite itself does not report.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("a column holds what was never written there")]
    Unreadable,
    #[error("the transaction was rolled back")]
    RolledBack,
    #[error("{} was deleted or replaced while in use; restart to use what is there now", .0.display())]
    Moved(PathBuf),
    #[error("the database is damaged ({0}); restore it from a backup, or delete it, and restart")]
    Damaged(String),
    #[error("the database is still being checked for damage")]
    BeingChecked,
    #[error("the disk is full")]
    DiskFull,
}

/// Damage, in SQLite's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Found(String);

impl Fault {
    /// Returns a fault that leaves everything unchanged.
    pub(super) fn unavailable(trouble: Trouble) -> Self {
        Self::new(Kind::Unavailable, trouble)
    }

    /// Returns the fault of a row that cannot be read.
    pub(super) fn unreadable() -> Self {
        Self::new(Kind::Corrupt, Trouble::Unreadable)
    }

    /// Returns the fault of a file that is no longer at its path. `kind` says whether a change may
    /// have been made to it.
    pub(super) fn moved(path: PathBuf, kind: Kind) -> Self {
        Self::new(kind, Trouble::Moved(path))
    }

    /// Returns the fault of a damaged file.
    pub(super) fn damaged(detail: String) -> Self {
        Self::new(Kind::Damaged, Trouble::Damaged(detail))
    }

    /// Returns the fault of damage that a check has found.
    pub(super) fn damage_found(detail: String) -> Self {
        Self::new(Kind::Damaged, Found(detail))
    }

    /// Returns the fault of a change that needs room while there is none.
    pub(super) fn full() -> Self {
        Self::new(Kind::Full, Trouble::DiskFull)
    }

    /// Returns the fault of a failed commit. After an I/O error the change may still be found
    /// after a restart.
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
        // These are about the file, not about the row that was asked for.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Damaged,
        Some(_) => Kind::Unavailable,
        // Not from the engine: a column has another type than we write.
        None => Kind::Corrupt,
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(kind_of(&error), error)
    }
}
