//! A CPU limit for child processes: an attacker runs on a machine of its own, so its CPU time must
//! not be taken from the program under test.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A fifth of a CPU, in microseconds; the period is short so that throttling adds little latency.
const PERIOD: &str = "5000";
const QUOTA: &str = "1000";

/// A control group for children of this process. Dropping it removes it, unless a process is still
/// in it.
pub struct CpuLimit(PathBuf);

impl CpuLimit {
    /// Creates the control group. Fails if the system has no CPU control groups or denies creating
    /// one.
    pub fn open() -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("cloakroom-{}", std::process::id());
        // Control groups version 2, else version 1, at the mount points of Debian.
        let unified = fs::read_to_string(root.join("cgroup.controllers"));
        if unified.is_ok_and(|controllers| controllers.split_whitespace().any(|it| it == "cpu")) {
            fs::write(root.join("cgroup.subtree_control"), "+cpu")?;
            let group = Self::create(root.join(name))?;
            fs::write(group.0.join("cpu.max"), format!("{QUOTA} {PERIOD}"))?;
            return Ok(group);
        }
        let group = Self::create(root.join("cpu").join(name))?;
        fs::write(group.0.join("cpu.cfs_period_us"), PERIOD)?;
        fs::write(group.0.join("cpu.cfs_quota_us"), QUOTA)?;
        Ok(group)
    }

    fn create(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Returns a command that runs its arguments in the control group, at the lowest priority.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0\" && exec nice -n 19 \"$@\""]);
        command.arg(self.0.join("cgroup.procs"));
        command
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
