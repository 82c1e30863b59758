//! Disk space reserved for log-outs: a file of zeros, which is deleted when the disk is full.
//!
//! A destroy frees pages of the database, but has to be written to the log first, and what the log
//! holds already may need room in the database. The reserve has room for both: SQLite works a log
//! of 1,000 pages (4 MB) into the database.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use tracing::warn;

use super::database::sibling;

/// Size in bytes; on a small disk a share of the free space, down to the minimum.
const SIZE: u64 = 6 * 1024 * 1024;
const SHARE: u64 = 4;
const MINIMUM: u64 = 96 * 1024;

/// Interval of attempts to restore a reserve.
const RETRY: Duration = Duration::from_secs(1);

/// The reserve of a database. Processes that share the database share it.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// The time when it was released, or of the last attempt to restore it; `None` unless it was released.
    missing_since: Option<Instant>,
}

impl Reserve {
    /// Creates the file unless it is there. A disk without room for it is no error: then a
    /// log-out on a full disk may fail.
    pub(super) fn of(database: &Path) -> Self {
        let path = sibling(database, "-reserve");
        if let Err(error) = allocate(&path) {
            let path = path.display();
            warn!(%error, %path, "no disk space reserved: log-outs will fail when the disk is full");
        }
        Self { path, missing_since: None }
    }

    /// Returns whether changes that need room may use it: not while the reserve is released, since they would take
    /// the room of log-outs. Tries to restore it.
    pub(super) fn is_kept(&mut self) -> bool {
        let Some(since) = self.missing_since else { return true };
        if since.elapsed() < RETRY {
            return false;
        }
        self.missing_since = match allocate(&self.path) {
            Ok(()) => None,
            Err(_) => Some(Instant::now()),
        };
        self.missing_since.is_none()
    }

    /// Deletes the file. Returns whether that made room.
    pub(super) fn give_up(&mut self) -> bool {
        let given_up = fs::remove_file(&self.path).is_ok();
        if given_up {
            warn!(path = %self.path.display(), "disk full: reserved space given up for log-outs");
            self.missing_since = Some(Instant::now());
        }
        given_up
    }
}

fn allocate(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() >= MINIMUM) {
        return Ok(());
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let disk = statvfs(directory.unwrap_or_else(|| Path::new(".")))?;
    let size = SIZE.min(disk.f_bavail.saturating_mul(disk.f_frsize) / SHARE);
    if size < MINIMUM {
        return Err(io::ErrorKind::StorageFull.into());
    }
    allocate_exactly(path, size)
}

fn allocate_exactly(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let allocated = match fallocate(&file, FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&file, size),
        allocated => Ok(allocated?),
    };
    if allocated.is_err() {
        // Its room is needed elsewhere; the error has the cause.
        let _ = fs::remove_file(path);
    }
    allocated
}

fn fill(mut file: &fs::File, size: u64) -> io::Result<()> {
    let chunk = [0x5a; 16 * 1024];
    let mut left = usize::try_from(size).unwrap_or(usize::MAX);
    while left > 0 {
        let length = left.min(chunk.len());
        file.write_all(chunk.get(..length).unwrap_or_default())?;
        left -= length;
    }
    file.sync_all()
}
