//! Checks that the database file is still the one that was opened, and not damaged.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::{Connection, InterruptHandle};
use tokio::sync::watch;

use super::fault::{Fault, Kind};
use super::schema::{self, OpenError};

/// The files of a database, as they were when it was opened, and the damage found in them since.
///
/// Damage stays until a restart: in a damaged tree an existing row may not be found, which must not count as
/// "no session".
#[derive(Debug)]
pub(super) struct Database {
    parts: Vec<Part>,
    damage: OnceLock<String>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    identity: Identity,
}

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Returns the path of a file that belongs to the database at `path`.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Database {
    /// Records the files. All connections must have read once, so that they have them open; `opened` is the file
    /// at the path before the first of them.
    pub(super) fn of(path: &Path, opened: Identity) -> io::Result<Self> {
        // A commit in a deleted log is lost with it, and without the log's index other processes neither see
        // nor respect our changes.
        let parts = ["", "-wal", "-shm"].into_iter().map(|suffix| {
            let path = sibling(path, suffix);
            let identity = Identity::of(&path)?;
            Ok(Part { path, identity })
        });
        let parts: Vec<Part> = parts.collect::<io::Result<_>>()?;
        if parts.first().is_none_or(|part| part.identity != opened) {
            return Err(io::Error::other("it was replaced while it was being opened"));
        }
        Ok(Self { parts, damage: OnceLock::new() })
    }

    /// Checks that the open files are those at their paths. Writes to other files are lost.
    pub(super) fn in_place(&self, otherwise: Kind) -> Result<(), Fault> {
        for part in &self.parts {
            // Another error does not tell which file it is.
            let moved = match Identity::of(&part.path) {
                Ok(identity) => identity != part.identity,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if moved {
                return Err(Fault::moved(part.path.clone(), otherwise));
            }
        }
        Ok(())
    }

    /// Checks that no damage has been found.
    pub(super) fn sound(&self) -> Result<(), Fault> {
        match self.damage.get() {
            None => Ok(()),
            Some(detail) => Err(Fault::damaged(detail.clone())),
        }
    }

    /// Records damage, if `fault` is about that.
    pub(super) fn note(&self, fault: &Fault) {
        if fault.kind() == Kind::Damaged {
            self.damage.get_or_init(|| fault.to_string());
        }
    }
}

/// A thread that reads the whole file once, after the start, and looks for damage.
pub(super) struct Check {
    done: watch::Receiver<bool>,
    interrupt: InterruptHandle,
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Check {
    pub(super) fn start(
        path: &Path,
        patience: Duration,
        database: Arc<Database>,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
        let connection = schema::connect(path, patience).map_err(failed)?;
        let interrupt = connection.get_interrupt_handle();
        let (done, checked) = watch::channel(false);
        let (end, ended) = sync_channel::<()>(0);
        let thread = thread::Builder::new()
            .name("sqlite-check".to_owned())
            .spawn(move || {
                if let Err(fault) = check(&connection) {
                    database.note(&fault);
                }
                drop(connection);
                done.send_replace(true);
                drop(end);
            })
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { done: checked, interrupt, ended: Mutex::new(ended), thread: Some(thread) })
    }

    /// Waits until the file has been read.
    pub(super) async fn done(&self) {
        // An error means that the thread has ended, by a panic that was reported as such.
        let _ = self.done.clone().wait_for(|done| *done).await;
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        // An interruption reaches only the statement that is running at that moment.
        loop {
            self.interrupt.interrupt();
            let waited = ended.recv_timeout(Duration::from_millis(1));
            if waited == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        // A panic has been reported as such.
        let _ = thread.join();
    }
}

/// Fails if the structure of the file is damaged.
fn check(connection: &Connection) -> Result<(), Fault> {
    let mut statement = connection.prepare("PRAGMA quick_check(100)")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let found: String = row.get(0)?;
        // A value of the wrong type makes one record unreadable, and says nothing of the others.
        if found != "ok" && !found.contains(" value in ") {
            return Err(Fault::damage_found(found));
        }
    }
    Ok(())
}
