//! The database file: how it is created, opened and recognised.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

/// "Clkr", in the file's header.
const APPLICATION_ID: i32 = 0x436c_6b72;
const VERSION: i32 = 1;

/// Size of the page cache of a reader, which fills as pages are read. SQLite's default, 2 MiB, holds the index pages of
/// 500 sessions among a million. (Mapping the file needs no cache, but then an I/O error, or a file that another
/// program truncates, ends the process.)
const READER_CACHE_KIB: i32 = 16 * 1024;

/// Values come last: SQLite reads a row from its start, and only as far as needed.
pub(super) const SCHEMA: &str = "
CREATE TABLE sessions (
    id BLOB NOT NULL PRIMARY KEY,
    ended INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    version INTEGER,
    generation INTEGER,
    generation_since INTEGER,
    previous_until INTEGER,
    floor INTEGER,
    login_at INTEGER,
    principal TEXT,
    created_at INTEGER,
    last_seen_at INTEGER,
    cookie_set_at INTEGER,
    expiry TEXT,
    withheld INTEGER,
    client_address TEXT,
    client_user_agent TEXT,
    json TEXT
) STRICT;
CREATE INDEX sessions_by_end ON sessions (ends_at);
CREATE INDEX sessions_by_principal ON sessions (principal, id) WHERE principal IS NOT NULL;
";

/// The columns that older releases did not have, and their types: a session's `last_seen_at` if it is unproven, its
/// past and its held cookies (`encode.rs`). They are added to files without them, under the same format number: an older release names the
/// columns that it uses, and continues to work. They are the last columns, since NULL takes no room at the end of a
/// row.
const ADDED: [(&str, &str); 3] = [("unproven_at", "INTEGER"), ("past", "TEXT"), ("held", "TEXT")];

/// Why a file could not be opened as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is missing and cannot be created.
    #[error("cannot create the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is missing and cannot be created.
    #[error("cannot create the file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file belongs to another program.
    #[error("{} is not a session store of Cloakroom; it was left unchanged", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later Cloakroom wrote it.
    #[error("{} was written by a later Cloakroom (format {version}; this one knows {VERSION})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: i32,
    },
    /// SQLite cannot open it.
    #[error("cannot open {}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A thread of the store could not be started.
    #[error("cannot start a thread for the store")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// Creates the file if it is missing, with its final mode, which SQLite gives to its other files too.
pub(super) fn make_file(path: &Path) -> Result<(), OpenError> {
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
    }
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenError::File { path: path.to_owned(), source }),
    }
}

/// Opens the connection that writes. Checks whose file it is before it changes anything.
pub(super) fn open(path: &Path, patience: Duration) -> Result<Connection, OpenError> {
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { path: path.to_owned() },
        _ => OpenError::Sqlite { path: path.to_owned(), source },
    };
    let mut connection = connect(path, patience).map_err(failed)?;
    match whose(&connection).map_err(failed)? {
        Whose::Ours | Whose::Nobodys => {}
        Whose::Foreign => {
            return Err(OpenError::Foreign { path: path.to_owned() });
        }
        Whose::Newer(version) => {
            return Err(OpenError::Newer { path: path.to_owned(), version });
        }
    }
    prepare(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// Opens a connection to an existing file.
pub(super) fn connect(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(patience)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Damage of a page is an error when it is read, and not a missing row.
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Opens a connection for a thread that reads.
pub(super) fn open_reader(path: &Path, patience: Duration) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let connection = connect(path, patience).map_err(failed)?;
    connection.pragma_update(None, "query_only", true).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB).map_err(failed)?;
    // SQLite opens the log at the first read. Later, another file may be at its path.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    Ok(connection)
}

enum Whose {
    Ours,
    Nobodys,
    Foreign,
    Newer(i32),
}

fn whose(connection: &Connection) -> rusqlite::Result<Whose> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match application {
        APPLICATION_ID if version > VERSION => Whose::Newer(version),
        APPLICATION_ID => Whose::Ours,
        0 if version == 0 && tables == 0 => Whose::Nobodys,
        _ => Whose::Foreign,
    })
}

/// Migrates the file to our format. Two processes may do so at once: the second finds it done.
fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // With NORMAL, a commit to the log is not synced: an acknowledged change could be lost.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The file may come from elsewhere: its schema must not call functions with side effects.
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if matches!(whose(&transaction)?, Whose::Nobodys) {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    for (name, of) in ADDED {
        if !transaction.column_exists(None, "sessions", name)? {
            transaction.execute_batch(&format!("ALTER TABLE sessions ADD COLUMN {name} {of}"))?;
        }
    }
    transaction.commit()
}
