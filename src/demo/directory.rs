//! A temporary directory for the demo's database.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::random;

/// A directory that only its owner may read, removed on drop.
#[derive(Debug)]
pub(super) struct TempDirectory(PathBuf);

impl TempDirectory {
    /// Creates a directory with an unpredictable name in the system's directory for temporary files.
    pub(super) fn create() -> io::Result<Self> {
        let name = format!("cloakroom-demo-{:016x}", u64::from_ne_bytes(random::bytes()));
        let path = std::env::temp_dir().join(name);
        // Fails if the name exists, also as a symbolic link: others may write to that directory.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "failed to remove the demo's directory");
        }
    }
}
