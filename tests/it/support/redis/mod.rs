//! Real Redis servers for tests, on free ports, that stop with the test process: a single server, a
//! primary with replicas, [`Sentinels`] or a [`Cluster`], over TCP, TLS or a unix socket.
//!
//! This module does not depend on the proxy: unit tests of the store and tests/reliability share
//! it.

mod cluster;
mod reply;
mod sentinels;
mod tls;
mod wait;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

pub(crate) use self::cluster::{Cluster, Migration};
pub(crate) use self::reply::{Connection, Reply};
pub(crate) use self::sentinels::Sentinels;
pub(crate) use self::tls::{Authority, Flaw, Identity};
pub(crate) use self::wait::wait_until;

/// A running Redis server.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    transport: Transport,
    arguments: Vec<OsString>,
    /// The value of `requirepass`, for the kit's own commands.
    password: Option<String>,
    pid: AtomicU32,
    stopped: AtomicBool,
    /// The shell that supervises the server; `None` once it is killed.
    shell: Mutex<Option<Child>>,
    /// Last field, so that it is removed after the server that writes there has exited.
    directory: TempDir,
}

/// File name of the unix socket in a server's directory.
const SOCKET: &str = "redis.sock";

/// Transport that clients use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Tls,
    Unix,
}

/// Shell script that runs the server and kills it at the end of the shell's standard input, which
/// also closes if the test process is killed. It uses SIGKILL because a stopped server handles no
/// other signal, and the shell sends it because the pid of its own child cannot be reused.
const SUPERVISE: &str = r#""$0" "$@" & server=$!; echo "pid $server"; cat >/dev/null; exec 2>/dev/null; kill -KILL "$server"; wait "$server""#;

impl RedisServer {
    /// Starts a server with these options in addition to the defaults. With `--appendonly yes` its
    /// data survives [`Self::restart`].
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(None, options)
    }

    /// Starts a server on this port, or on a free one.
    pub(crate) fn start_at(port: Option<u16>, options: &[&str]) -> Self {
        // Another process may take the port between the check and the start.
        (0..5)
            .find_map(|_| {
                let port = port.unwrap_or_else(free_port);
                let number = port.to_string();
                Self::try_start_with_defaults(
                    port,
                    Transport::Tcp,
                    &[&["--port", &number], options].concat(),
                )
            })
            .expect("redis-server starts")
    }

    /// Starts a server that listens on a unix socket only.
    pub(crate) fn unix(options: &[&str]) -> Self {
        let all = [&["--port", "0"], options].concat();
        Self::try_start_with_defaults(0, Transport::Unix, &all).expect("redis-server starts")
    }

    /// Starts a server that speaks TLS only, presents `identity`, and requires client certificates
    /// of `authority`.
    pub(crate) fn tls(authority: &Authority, identity: &Identity, options: &[&str]) -> Self {
        let path = |path: &Path| path.to_str().expect("a path that is text").to_owned();
        let (certificate, key) = (path(&identity.certificate), path(&identity.key));
        let authority = path(&authority.certificate());
        (0..5)
            .find_map(|_| {
                let port = free_port();
                let number = port.to_string();
                let mut all = vec!["--port", "0", "--tls-port", &number];
                all.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
                all.extend(["--tls-ca-cert-file", &authority, "--tls-auth-clients", "yes"]);
                all.extend(options);
                Self::try_start_with_defaults(port, Transport::Tls, &all)
            })
            .expect("redis-server starts")
    }

    /// Starts a server whose users, made by [`Self::acl_user`], survive [`Self::restart`].
    pub(crate) fn with_acl_file() -> Self {
        Self::start(&["--aclfile", "users.acl"])
    }

    /// Returns the server that the tests of this process share. Each test uses its own key prefix.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a replica of `primary`, and waits for its initial synchronization.
    pub(crate) fn replica_of(primary: &Self) -> Self {
        Self::replica_with(primary, &[])
    }

    /// Starts a replica as [`Self::replica_of`] does, with these options.
    pub(crate) fn replica_with(primary: &Self, options: &[&str]) -> Self {
        let port = primary.port.to_string();
        let mut all = vec!["--replicaof", "127.0.0.1", &port];
        if let Some(password) = &primary.password {
            all.extend(["--masterauth", password, "--requirepass", password]);
        }
        all.extend(options);
        let replica = Self::start(&all);
        wait_until("the replica follows", || replica.info("master_link_status") == "up");
        // The primary lists the replica a moment later.
        let own = replica.port.to_string();
        wait_until("the primary knows its replica", || {
            let role = primary.command(&["ROLE"]);
            role.list()[2].list().iter().any(|known| known.list()[1].text() == own)
        });
        replica
    }

    /// Starts a server with these options in addition to the defaults, in a new directory.
    fn try_start_with_defaults(port: u16, transport: Transport, options: &[&str]) -> Option<Self> {
        let mut all = vec!["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        // For the kit's own commands, whatever transport clients use.
        all.extend(["--unixsocket", SOCKET]);
        // By default the primary waits for more replicas before it begins to synchronize one.
        all.extend(["--repl-diskless-sync-delay", "0"]);
        all.extend(options);
        let directory = tempfile::tempdir().expect("a directory");
        // Redis does not start if the file of --aclfile is missing.
        std::fs::write(directory.path().join("users.acl"), "").expect("a file");
        Self::try_start(port, transport, directory, &all)
    }

    /// Starts a server in `directory` with exactly these options.
    fn try_start(
        port: u16,
        transport: Transport,
        directory: TempDir,
        options: &[&str],
    ) -> Option<Self> {
        let installed =
            Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        assert!(
            installed.is_ok_and(|status| status.success()),
            "these tests need redis-server in the PATH"
        );
        let arguments: Vec<OsString> = options.iter().map(OsString::from).collect();
        let password = options
            .iter()
            .position(|option| *option == "--requirepass")
            .and_then(|place| options.get(place + 1).map(|password| (*password).to_owned()));
        let server = Self {
            port,
            transport,
            arguments,
            password,
            pid: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            shell: Mutex::new(None),
            directory,
        };
        server.run().then_some(server)
    }

    /// Runs the server. Returns false if it does not come up.
    fn run(&self) -> bool {
        let mut shell = Command::new("sh")
            .args(["-c", SUPERVISE, "redis-server"])
            .args(&self.arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let log = BufReader::new(shell.stdout.take().expect("a pipe"));
        let (mut pid, mut ready) = (None, false);
        for line in log.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("pid ") {
                pid = number.parse().ok();
            }
            if line.contains("Failed") {
                break;
            }
            // A sentinel logs its id when it listens.
            ready |= line.contains("eady to accept connections") || line.contains("Sentinel ID is");
            if let (Some(pid), true) = (pid, ready) {
                self.pid.store(pid, Ordering::Relaxed);
                self.stopped.store(false, Ordering::Relaxed);
                break;
            }
        }
        *self.shell() = Some(shell);
        ready && pid.is_some()
    }

    fn shell(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns its address.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Returns its URL.
    pub(crate) fn url(&self) -> String {
        match self.transport {
            Transport::Tcp => format!("redis://127.0.0.1:{}/", self.port),
            Transport::Tls => format!("rediss://127.0.0.1:{}/", self.port),
            Transport::Unix => format!("redis+unix://{}?db=0", self.socket().display()),
        }
    }

    /// Returns its unix socket. Every server except a sentinel has one, whatever its URL.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns true if it is neither killed nor stopped.
    pub(crate) fn runs(&self) -> bool {
        self.shell().is_some() && !self.stopped.load(Ordering::Relaxed)
    }

    /// Sends SIGSTOP: connections stay open, the kernel accepts new ones, nothing responds.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Sends SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal("-CONT");
        self.stopped.store(false, Ordering::Relaxed);
    }

    fn signal(&self, signal: &str) {
        assert!(self.shell().is_some(), "it has been killed");
        let status = Command::new("kill").arg(signal).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }

    /// Sends SIGKILL, and waits for the process.
    pub(crate) fn kill(&self) {
        let shell = self.shell().take();
        if let Some(mut shell) = shell {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }

    /// Kills it if it runs, then starts it again with the same port, directory and options.
    pub(crate) fn restart(&self) {
        self.kill();
        let up = (0..20).any(|_| {
            let up = self.run();
            if !up {
                self.kill();
                wait::pause();
            }
            up
        });
        assert!(up, "redis-server starts again");
    }

    /// Opens a connection for the test, authenticated if the server requires a password.
    pub(crate) fn connect(&self) -> std::io::Result<Connection> {
        let mut connection = self.open()?;
        if let Some(password) = &self.password {
            connection.command(&["AUTH", password])?;
        }
        Ok(connection)
    }

    fn open(&self) -> std::io::Result<Connection> {
        match self.transport {
            Transport::Tcp => Connection::open(self.address()),
            Transport::Tls | Transport::Unix => Connection::open_unix(&self.socket()),
        }
    }

    /// Creates or changes a user; `rules` are words of `ACL SETUSER`, e.g. `~prefix:* +@read`.
    pub(crate) fn acl_user(&self, name: &str, password: &str, rules: &str) {
        let password = format!(">{password}");
        let mut words = vec!["ACL", "SETUSER", name, "reset", "on", &password];
        words.extend(rules.split_whitespace());
        self.command(&words).done();
        if self.arguments.iter().any(|argument| argument == "--aclfile") {
            self.command(&["ACL", "SAVE"]).done();
        }
    }

    /// Sends a command on a new connection.
    pub(crate) fn command(&self, words: &[&str]) -> Reply {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Sends a command to a server that may not respond.
    pub(crate) fn try_command(&self, words: &[&str]) -> std::io::Result<Reply> {
        self.connect()?.command(words)
    }

    /// Sends a command as this user.
    pub(crate) fn command_as(&self, user: &str, password: &str, words: &[&str]) -> Reply {
        let mut connection = self.open().expect("a connection");
        match connection.command(&["AUTH", user, password]).expect("a reply") {
            Reply::Error(error) => Reply::Error(error),
            _ => connection.command(words).unwrap_or_else(|error| panic!("{words:?}: {error}")),
        }
    }

    /// Returns the value of a line of `INFO`; empty if there is no such line, the server is down or
    /// it is still loading its data.
    pub(crate) fn info(&self, name: &str) -> String {
        if !self.runs() {
            return String::new();
        }
        let text = self.try_command(&["INFO", "everything"]).map(|reply| reply.text());
        let text = text.unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a free port whose cluster bus port, 10000 above, is free too. Both are below the
/// ephemeral range, so that no outgoing connection takes them while a server restarts.
fn free_port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let number = rand::random::<u32>();
        let port = 10_000 + u16::try_from(number % 12_000).expect("a port");
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}
