//! A fresh directory for its owner alone, gone with its last use.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::random;

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Makes one under a name that nobody can guess, where temporary files lie.
    pub(super) fn make() -> io::Result<Self> {
        let name = format!("cloakroom-demo-{:016x}", u64::from_ne_bytes(random::bytes()));
        let path = std::env::temp_dir().join(name);
        // It fails where the name exists, be it a link.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the demo's directory remains");
        }
    }
}
