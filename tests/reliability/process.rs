//! The program as a process.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cloakroom::client::{self, Target};
use cloakroom::server::Tasks;
use http::uri::PathAndQuery;

use crate::support::PATIENCE;

/// A running `cloakroom`. Dropping it kills the process.
pub struct Process {
    child: Child,
}

/// Addresses for the listeners of a process.
pub struct Addresses {
    pub public: SocketAddr,
    pub api: SocketAddr,
    pub admin: SocketAddr,
}

pub const SERVICE_TOKEN: &str = "the-service-token-of-the-tests";

impl Addresses {
    /// Returns addresses with free ports.
    pub fn free() -> Self {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [public, api, admin] = listeners.map(|listener| listener.local_addr().unwrap());
        Self { public, api, admin }
    }

    /// Writes a configuration into `directory`, which is also the state directory.
    pub fn configure(&self, directory: &Path, upstream: SocketAddr, store: &str) {
        let Self { public, api, admin } = self;
        let text = format!(
            "[[listen]]\naddress = \"{public}\"\n[api]\naddress = \"{api}\"\nservice_token = \"{SERVICE_TOKEN}\"\n\
             [admin]\naddress = \"{admin}\"\n[log]\naccess = false\n[store]\nurl = \"{store}\"\n\
             [[route]]\nupstream = \"http://{upstream}\"\n"
        );
        std::fs::write(directory.join("cloakroom.toml"), text).unwrap();
    }
}

impl Process {
    /// Starts the program and waits until it is ready.
    pub async fn start(directory: &Path, addresses: &Addresses) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        Self::start_with_command(program, directory, addresses).await
    }

    /// Starts the program with a command that passes its arguments on, and waits until it is ready.
    pub async fn start_with_command(
        mut command: Command,
        directory: &Path,
        addresses: &Addresses,
    ) -> Self {
        let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let child = command
            .arg("run")
            .arg("--config")
            .arg(directory.join("cloakroom.toml"))
            .env("STATE_DIRECTORY", directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let process = Self { child };
        let target: Target = format!("http://{}", addresses.admin).parse().unwrap();
        let ready = async {
            let path = PathAndQuery::from_static("/ready");
            while !client::get(&target, path.clone(), &Tasks::new(), 1 << 16, PATIENCE)
                .await
                .is_ok_and(|response| response.status() == 200)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, ready).await.is_err() {
            let log = std::fs::read_to_string(directory.join("log")).unwrap();
            panic!("the program is not ready:\n{log}");
        }
        process
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGHUP.
    pub fn reload(&self) {
        let status = Command::new("kill").arg("-HUP").arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Sends SIGKILL, and waits for the process.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let status = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits until it exits; `None` after 40 s, which is longer than its drain timeout.
    pub async fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..4000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // This fails if the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
