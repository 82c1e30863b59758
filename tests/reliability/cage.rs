//! A process that has a part of a CPU: what an attacker costs its own machine is not to be taken from ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A fifth of a CPU, in turns so short that nobody waits for their end.
const PERIOD: &str = "5000";
const QUOTA: &str = "1000";

/// A control group of this process's children, gone when it is dropped and nobody is in it.
pub struct Cage(PathBuf);

impl Cage {
    /// An error is a system without control groups for CPUs, or one that does not let us make any.
    pub fn open() -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("cloakroom-{}", std::process::id());
        // Version 2, or version 1, each as Debian mounts it.
        let unified = fs::read_to_string(root.join("cgroup.controllers"));
        if unified.is_ok_and(|controllers| controllers.split_whitespace().any(|it| it == "cpu")) {
            fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
            let cage = Self::made(root.join(name))?;
            fs::write(cage.0.join("cpu.max"), format!("{QUOTA} {PERIOD}"))?;
            return Ok(cage);
        }
        let cage = Self::made(root.join("cpu").join(name))?;
        fs::write(cage.0.join("cpu.cfs_period_us"), PERIOD)?;
        fs::write(cage.0.join("cpu.cfs_quota_us"), QUOTA)?;
        Ok(cage)
    }

    fn made(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// A command that runs another in it, at the lowest priority: its arguments are that.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0\" && exec nice -n 19 \"$@\""]);
        command.arg(self.0.join("cgroup.procs"));
        command
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
