//! The directory: files that are complete or missing, for their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::format::Stored;
use crate::session::id::Id;
pub(super) use crate::store::fault::Fault;
pub(super) use crate::store::fault::Kind;

/// The directory of one store, locked against other processes.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Open for syncing.
    handle: File,
    /// Its device and inode.
    identity: (u64, u64),
    /// Locked while it is open.
    _lock: File,
    changes: AtomicU64,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be created, read or locked.
    #[error("the directory {path} cannot be used")]
    Directory {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a file or a symbolic link.
    #[error("{0} is not a directory; symbolic links are not followed")]
    NotDirectory(PathBuf),
    /// Other users may write there.
    #[error("{0} is writable by group or others; run chmod go-w")]
    Shared(PathBuf),
    /// Another process has locked it.
    #[error("another process uses {0}")]
    InUse(PathBuf),
    /// A thread could not be started.
    #[error("a thread of the store could not be started")]
    Thread(#[source] io::Error),
}

/// The directory was deleted or replaced while in use.
#[derive(Debug, thiserror::Error)]
#[error("{} was replaced while in use; restart to use the new one", .0.display())]
struct Replaced(PathBuf);

/// The name of the lock file: not an id.
const LOCK: &str = "lock";

/// The suffix of files that are being written.
const UNFINISHED: &str = ".new";

/// Maximum size of a session's file.
const MAX_FILE: u64 = 256 * 1024 * 1024;

impl Directory {
    /// Opens the directory, creates it if it is missing, and removes incomplete files of a crash.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Directory { path: path.to_owned(), source };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if !metadata.is_dir() {
            return Err(OpenError::NotDirectory(path.to_owned()));
        }
        // Another user with write permission could replace a session's file.
        if metadata.permissions().mode() & 0o022 != 0 {
            return Err(OpenError::Shared(path.to_owned()));
        }
        let handle = File::open(path).map_err(failed)?;
        let identity = handle.metadata().map(|opened| (opened.dev(), opened.ino()));
        let identity = identity.map_err(failed)?;
        let lock = private().create(true).truncate(false).open(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let directory = Self {
            path: path.to_owned(),
            handle,
            identity,
            _lock: lock,
            changes: AtomicU64::new(0),
        };
        for name in directory.names().map_err(failed)? {
            if name.ends_with(UNFINISHED) {
                fs::remove_file(path.join(name)).map_err(failed)?;
            }
        }
        Ok(directory)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Lists the sessions that have a file; other files are ignored.
    pub(super) fn ids(&self) -> Result<Vec<Id>, OpenError> {
        let failed = |source| OpenError::Directory { path: self.path.clone(), source };
        Ok(self.names().map_err(failed)?.iter().filter_map(|name| Id::parse(name)).collect())
    }

    fn file(&self, id: Id) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// Returns whether a session has a file.
    pub(super) fn has(&self, id: Id) -> Result<bool, Fault> {
        match fs::symlink_metadata(self.file(id)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => self.check().map(|()| false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn read(&self, id: Id) -> Result<Option<Stored>, Fault> {
        self.check()?;
        let mut options = OpenOptions::new();
        let file = match nofollow(options.read(true)).open(self.file(id)) {
            Ok(file) => file,
            // A missing file is no session; a missing directory is an error.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return self.check().map(|()| None);
            }
            Err(error) if is_link(&error) => return Err(Fault::corrupt(error)),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(Fault::corrupt(io::Error::other("no regular file")));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Stored::parse(&bytes).map(Some).map_err(Fault::corrupt)
    }

    /// Replaces a file as a whole. Its content is on disk afterwards; its name is after the next [`Self::sync`].
    pub(super) fn write(&self, id: Id, stored: &Stored) -> Result<(), Fault> {
        self.check()?;
        let unfinished = self.path.join(format!("{id}{UNFINISHED}"));
        let written = (|| {
            let mut file = private().create(true).truncate(true).open(&unfinished)?;
            file.write_all(&stored.to_bytes())?;
            // Before the rename: after a crash, the name must not lead to an incomplete file.
            file.sync_all()?;
            fs::rename(&unfinished, self.file(id))
        })();
        if let Err(error) = written {
            // Otherwise the next opening removes the rest.
            let _ = fs::remove_file(&unfinished);
            return Err(error.into());
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, id: Id) -> Result<(), Fault> {
        self.check()?;
        match fs::remove_file(self.file(id)) {
            Ok(()) => {
                self.changes.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the number of changed names.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Syncs the names of the directory at the path.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        let unknown = |error| Fault::new(Kind::OutcomeUnknown, error);
        self.handle.sync_all().map_err(unknown)?;
        // Writes in the meantime may have gone to another one.
        self.check_or(Kind::OutcomeUnknown)
    }

    /// Checks that the open directory is the one at its path: another one is neither locked nor synced.
    pub(super) fn check(&self) -> Result<(), Fault> {
        self.check_or(Kind::Unavailable)
    }

    fn check_or(&self, otherwise: Kind) -> Result<(), Fault> {
        let found = fs::symlink_metadata(&self.path);
        let found = found.map_err(|error| Fault::new(otherwise, error))?;
        if (found.dev(), found.ino()) == self.identity {
            Ok(())
        } else {
            Err(Fault::new(otherwise, Replaced(self.path.clone())))
        }
    }

    /// Writes a file, syncs it, and removes it. The next opening removes what a crash leaves of it.
    pub(super) fn probe(&self) -> Result<(), Fault> {
        self.check()?;
        let path = self.path.join(format!("probe{UNFINISHED}"));
        let written = (|| {
            let mut file = private().create(true).truncate(true).open(&path)?;
            file.write_all(&[0; 4096])?;
            file.sync_all()
        })();
        let removed = fs::remove_file(&path);
        Ok(written.and(removed)?)
    }
}

/// Returns the options for a file that only its owner can read and that is not a symbolic link.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    nofollow(options.write(true)).mode(0o600);
    options
}

fn nofollow(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
}

/// The error of `O_NOFOLLOW` for a symbolic link.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

impl Fault {
    fn corrupt(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(Kind::Corrupt, error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::Full,
            _ => Kind::Unavailable,
        };
        Self::new(kind, error)
    }
}
