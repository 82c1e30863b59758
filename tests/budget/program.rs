//! The program in a process of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Budget;
use super::site::Site;

/// Time that the program may take to listen. Under `strace` it is slow.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running program. Dropping it kills the process.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) public: SocketAddr,
}

/// The files of a program, and where it listens.
pub(crate) struct Setting {
    directory: TempDir,
    pub(crate) configuration: PathBuf,
    public: SocketAddr,
}

impl Setting {
    /// Writes the configuration of a measurement: without an access log, rotations and records of use.
    pub(crate) fn new(budget: &Budget, site: &Site) -> Self {
        let directory = TempDir::new().unwrap();
        let configuration = directory.path().join("cloakroom.toml");
        let [public, api, admin] = free_addresses();
        let text = format!(
            "[[listen]]\naddress = \"{public}\"\n[api]\naddress = \"{api}\"\n[admin]\naddress = \"{admin}\"\n\
             [cookie]\nsecure = false\n[log]\naccess = false\n\
             [session]\nkeys = [{{ file = \"key\" }}]\nrotate_every = \"never\"\ntouch_interval = \"1h\"\n\
             [store]\n{}\n[[route]]\nupstream = \"http://{}\"\n{}\n",
            budget.store, site.address, budget.route
        );
        std::fs::write(&configuration, text).unwrap();
        std::fs::write(directory.path().join("key"), "dGhlIGtleSB0aGF0IGFsbCB0aGVzZSB0ZXN0cyB1c2U")
            .unwrap();
        Self { directory, configuration, public }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the program by `command`, and waits until it listens.
    pub(crate) fn start(&self, command: &mut Command) -> Program {
        let command = command.env("STATE_DIRECTORY", self.directory());
        let program = Program { child: command.spawn().unwrap(), public: self.public };
        let started = Instant::now();
        while TcpStream::connect(self.public).is_err() {
            assert!(started.elapsed() < START_TIMEOUT, "the program does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }
}

impl Program {
    /// Ends the process that this one traces, and waits until all its calls are written.
    pub(crate) fn terminate_traced(&mut self) {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let traced = children.trim().parse().ok().and_then(Pid::from_raw).unwrap();
        kill_process(traced, Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addresses() -> [SocketAddr; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}
