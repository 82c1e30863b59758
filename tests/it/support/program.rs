//! The program as a process.

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use super::{FakeClock, until};

/// A running program and the lines of its log. Dropping it kills the process.
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// Addresses of a program; of several public listeners, the first.
#[derive(Clone, Copy, Debug)]
pub struct Serving {
    pub public: SocketAddr,
    pub api: SocketAddr,
    pub admin: SocketAddr,
}

impl Program {
    /// Starts the program with this configuration file, whose directory is also its state
    /// directory.
    pub fn start(file: &Path) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_cloakroom")), file)
    }

    /// Starts the program with an environment variable.
    pub fn start_with_variable(name: &str, value: &str, file: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        command.env(name, value);
        Self::run(command, file)
    }

    /// Starts the program with this clock.
    pub fn start_with_clock(clock: &FakeClock, file: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        command.envs(clock.environment());
        Self::run(command, file)
    }

    /// Starts the program with an inherited listening socket, as systemd does. It reports its state
    /// to the socket at `notify`.
    pub fn start_with_socket(socket: &std::net::TcpListener, file: &Path, notify: &Path) -> Self {
        use std::os::fd::AsRawFd as _;

        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new("bash");
        let script =
            format!("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&{}", socket.as_raw_fd());
        command.args(["-c", &script, env!("CARGO_BIN_EXE_cloakroom")]);
        command.env("NOTIFY_SOCKET", notify);
        Self::run(command, file)
    }

    /// Starts the program with a command of the site at `upstream`, or at that of the file.
    pub fn start_with_site(file: &Path, upstream: Option<&str>, site: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        command.args(["run", "--config", file.to_str().unwrap()]);
        command.args(upstream.map(|url| ["--upstream", url]).into_iter().flatten());
        command.arg("--").args(site);
        Self::spawn(command, file)
    }

    fn run(mut command: Command, file: &Path) -> Self {
        command.args(["run", "--config", file.to_str().unwrap()]);
        Self::spawn(command, file)
    }

    /// Starts the program with the variable by which systemd names a connection to the journal as standard error.
    pub fn start_under_journal(file: &Path) -> Self {
        let (log, stderr) = std::io::pipe().unwrap();
        let pipe = rustix::fs::fstat(&stderr).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        command.env("JOURNAL_STREAM", format!("{}:{}", pipe.st_dev, pipe.st_ino));
        command.args(["run", "--config", file.to_str().unwrap()]);
        Self::spawn_with(command, file, log, stderr)
    }

    fn spawn(command: Command, file: &Path) -> Self {
        let (log, stderr) = std::io::pipe().unwrap();
        Self::spawn_with(command, file, log, stderr)
    }

    fn spawn_with(mut command: Command, file: &Path, log: PipeReader, stderr: PipeWriter) -> Self {
        command.env("STATE_DIRECTORY", file.parent().unwrap()).stderr(stderr);
        let child = command.spawn().unwrap();
        let lines = BufReader::new(log).lines();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let collected = Arc::clone(&log);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| collected.lock().unwrap().push(line));
        });
        Self { child, log }
    }

    /// Waits until a line of its log contains `text`.
    pub async fn wait_for_log(&self, text: &str) {
        until(text, || self.log.lock().unwrap().iter().any(|line| line.contains(text))).await;
    }

    /// Returns its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits until it serves, and returns the addresses from its log.
    pub async fn serving(&self) -> Serving {
        self.wait_for_log("serving public=").await;
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains("serving public=")).unwrap();
        let address = |key: &str| {
            let value = line.split(key).nth(1).unwrap().trim_matches('"');
            value.split(['"', ',', ' ']).next().unwrap().parse().unwrap()
        };
        Serving { public: address(" public="), api: address(" api="), admin: address(" admin=") }
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, e.g. `-TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits until it exits.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the program exits", || self.child.try_wait().unwrap().is_some()).await;
        self.child.wait().unwrap()
    }
}

/// Returns a command that runs `command` at a terminal, made by `script`. What the command writes is on standard output,
/// and what is written to standard input is typed.
pub fn at_terminal(command: &Command) -> Command {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // In place of the shell: a shell that waits dies of Ctrl+C, whatever the program makes of it.
    let line = format!("exec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    script.envs(variables).env("TERM", "xterm").env("SHELL", "/bin/sh");
    script
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
