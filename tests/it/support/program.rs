//! The program itself, as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::{FakeClock, until};

/// A running program, and the lines of its log. Dropping it kills it.
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// Where a program is reached; of several public listeners, the first.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    pub public: SocketAddr,
    pub api: SocketAddr,
    pub admin: SocketAddr,
}

impl Program {
    /// With this configuration, whose directory is its state's too.
    pub fn start(file: &Path) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_cloakroom")), file)
    }

    /// The same, by this clock.
    pub fn start_by(clock: &FakeClock, file: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        command.envs(clock.environment());
        Self::run(command, file)
    }

    /// The same on a socket that listens, as systemd hands it over; `notify` hears of its states.
    pub fn start_on(socket: &std::net::TcpListener, file: &Path, notify: &Path) -> Self {
        use std::os::fd::AsRawFd as _;

        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new("bash");
        let handed =
            format!("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&{}", socket.as_raw_fd());
        command.args(["-c", &handed, env!("CARGO_BIN_EXE_cloakroom")]);
        command.env("NOTIFY_SOCKET", notify);
        Self::run(command, file)
    }

    fn run(mut command: Command, file: &Path) -> Self {
        let mut child = command
            .args(["run", "--config", file.to_str().unwrap()])
            .env("STATE_DIRECTORY", file.parent().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::clone(&log);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        });
        Self { child, log }
    }

    /// Waits until its log has this.
    pub async fn says(&self, text: &str) {
        until(text, || self.log.lock().unwrap().iter().any(|line| line.contains(text))).await;
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Where clients and operators reach it, as its log says.
    pub async fn serving(&self) -> Serving {
        self.says("serving public=").await;
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains("serving public=")).unwrap();
        let address = |key: &str| {
            let value = line.split(key).nth(1).unwrap().trim_matches('"');
            value.split(['"', ',', ' ']).next().unwrap().parse().unwrap()
        };
        Serving { public: address(" public="), api: address(" api="), admin: address(" admin=") }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, as `-TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        until("it ends", || self.child.try_wait().unwrap().is_some()).await;
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(kept) = std::env::var_os("TEST_LOG_DIRECTORY") {
            let name = format!("program-{}.log", self.child.id());
            let _ = std::fs::write(Path::new(&kept).join(name), self.log());
        }
    }
}
