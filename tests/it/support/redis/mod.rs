//! Real redis-servers for tests, on free ports, that end with the test process: one alone, a
//! primary with replicas, [`Sentinels`], a [`Cluster`]; by TCP, TLS or a unix socket.
//!
//! Nothing here knows the proxy: the unit tests of the store and tests/reliability share it.

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

/// A server of its own.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    way_in: WayIn,
    arguments: Vec<OsString>,
    /// What `requirepass` says, for the kit's own commands.
    password: Option<String>,
    pid: AtomicU32,
    stopped: AtomicBool,
    /// The shell that watches; `None` once it is killed.
    shell: Mutex<Option<Child>>,
    /// Last, since the server writes there.
    directory: TempDir,
}

/// The name of every server's unix socket, in its directory.
const SOCKET: &str = "redis.sock";

/// How clients reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayIn {
    Tcp,
    Tls,
    Unix,
}

/// The shell ends the server when its standard input does, which happens however the test
/// process ends: killed, too. By SIGKILL, since one that is stopped hears nothing else; and the
/// shell alone sends it, whose child it is, so the number is never another's.
const WATCH: &str = r#""$0" "$@" & server=$!; echo "pid $server"; cat >/dev/null; exec 2>/dev/null; kill -KILL "$server"; wait "$server""#;

impl RedisServer {
    /// Starts one, with these options beside the usual. With `--appendonly yes`, [`Self::restart`]
    /// finds the data of before.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(None, options)
    }

    /// Starts one on this port, or a free one.
    pub(crate) fn start_at(port: Option<u16>, options: &[&str]) -> Self {
        // A port that was free a moment ago may be taken by now.
        (0..5)
            .find_map(|_| {
                let port = port.unwrap_or_else(free_port);
                let number = port.to_string();
                Self::try_usual(port, WayIn::Tcp, &[&["--port", &number], options].concat())
            })
            .expect("redis-server starts")
    }

    /// Starts one that listens at a unix socket only.
    pub(crate) fn unix(options: &[&str]) -> Self {
        let all = [&["--port", "0"], options].concat();
        Self::try_usual(0, WayIn::Unix, &all).expect("redis-server starts")
    }

    /// Starts one that speaks TLS only, as `identity`, and takes clients with a certificate of
    /// `authority` only.
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
                Self::try_usual(port, WayIn::Tls, &all)
            })
            .expect("redis-server starts")
    }

    /// Starts one whose users, of [`Self::acl_user`], are there after [`Self::restart`] too.
    pub(crate) fn with_acl_file() -> Self {
        Self::start(&["--aclfile", "users.acl"])
    }

    /// The server that the tests of this process share. Each takes a prefix of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a replica of `primary`, which has its data when this returns.
    pub(crate) fn replica_of(primary: &Self) -> Self {
        Self::replica_with(primary, &[])
    }

    /// Likewise, with these options.
    pub(crate) fn replica_with(primary: &Self, options: &[&str]) -> Self {
        let port = primary.port.to_string();
        let mut all = vec!["--replicaof", "127.0.0.1", &port];
        if let Some(password) = &primary.password {
            all.extend(["--masterauth", password, "--requirepass", password]);
        }
        all.extend(options);
        let replica = Self::start(&all);
        wait_until("the replica follows", || replica.info("master_link_status") == "up");
        // The primary counts it a moment later.
        let own = replica.port.to_string();
        wait_until("the primary knows its replica", || {
            let role = primary.command(&["ROLE"]);
            role.list()[2].list().iter().any(|known| known.list()[1].text() == own)
        });
        replica
    }

    /// Starts one with these options beside the usual, in a directory of its own.
    fn try_usual(port: u16, way_in: WayIn, options: &[&str]) -> Option<Self> {
        let mut all = vec!["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        // The kit's own way in, whatever the others are.
        all.extend(["--unixsocket", SOCKET]);
        // A replica need not wait for others to come.
        all.extend(["--repl-diskless-sync-delay", "0"]);
        all.extend(options);
        let directory = tempfile::tempdir().expect("a directory");
        // It must be there; it may be empty.
        std::fs::write(directory.path().join("users.acl"), "").expect("a file");
        Self::try_start(port, way_in, directory, &all)
    }

    /// Starts one in `directory` with nothing but these options.
    fn try_start(port: u16, way_in: WayIn, directory: TempDir, options: &[&str]) -> Option<Self> {
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
            way_in,
            arguments,
            password,
            pid: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            shell: Mutex::new(None),
            directory,
        };
        server.run().then_some(server)
    }

    /// Runs the server, and answers whether it came up.
    fn run(&self) -> bool {
        let mut shell = Command::new("sh")
            .args(["-c", WATCH, "redis-server"])
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
            // A sentinel says who it is when it listens.
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

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        match self.way_in {
            WayIn::Tcp => format!("redis://127.0.0.1:{}/", self.port),
            WayIn::Tls => format!("rediss://127.0.0.1:{}/", self.port),
            WayIn::Unix => format!("redis+unix://{}?db=0", self.socket().display()),
        }
    }

    /// Its unix socket. Every server has one but sentinels, whatever its URL says.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Whether it is neither killed nor stopped.
    pub(crate) fn runs(&self) -> bool {
        self.shell().is_some() && !self.stopped.load(Ordering::Relaxed)
    }

    /// SIGSTOP: connections stay, the kernel takes new ones, nothing answers.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal("-CONT");
        self.stopped.store(false, Ordering::Relaxed);
    }

    fn signal(&self, signal: &str) {
        assert!(self.shell().is_some(), "it has been killed");
        let status = Command::new("kill").arg(signal).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill {signal}");
    }

    /// SIGKILL. It is gone when this returns.
    pub(crate) fn kill(&self) {
        let shell = self.shell().take();
        if let Some(mut shell) = shell {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }

    /// Kills it if it runs, and starts it again on the same port and in the same directory, with
    /// the same options.
    pub(crate) fn restart(&self) {
        self.kill();
        let up = (0..20).any(|_| {
            let up = self.run();
            if !up {
                self.kill();
                wait::a_moment();
            }
            up
        });
        assert!(up, "redis-server starts again");
    }

    /// A connection of the test's own, with the password that the server asks for.
    pub(crate) fn connect(&self) -> std::io::Result<Connection> {
        let mut connection = self.open()?;
        if let Some(password) = &self.password {
            connection.command(&["AUTH", password])?;
        }
        Ok(connection)
    }

    fn open(&self) -> std::io::Result<Connection> {
        match self.way_in {
            WayIn::Tcp => Connection::open(self.address()),
            WayIn::Tls | WayIn::Unix => Connection::open_unix(&self.socket()),
        }
    }

    /// Makes or changes a user; `rules` are words of `ACL SETUSER`, as `~prefix:* +@read`.
    pub(crate) fn acl_user(&self, name: &str, password: &str, rules: &str) {
        let password = format!(">{password}");
        let mut words = vec!["ACL", "SETUSER", name, "reset", "on", &password];
        words.extend(rules.split_whitespace());
        self.command(&words).done();
        if self.arguments.iter().any(|argument| argument == "--aclfile") {
            self.command(&["ACL", "SAVE"]).done();
        }
    }

    /// Sends a command on a connection of its own.
    pub(crate) fn command(&self, words: &[&str]) -> Reply {
        self.try_command(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Likewise, of a server that may not answer.
    pub(crate) fn try_command(&self, words: &[&str]) -> std::io::Result<Reply> {
        self.connect()?.command(words)
    }

    /// Likewise, as this user.
    pub(crate) fn command_as(&self, user: &str, password: &str, words: &[&str]) -> Reply {
        let mut connection = self.open().expect("a connection");
        match connection.command(&["AUTH", user, password]).expect("an answer") {
            Reply::Error(error) => Reply::Error(error),
            _ => connection.command(words).unwrap_or_else(|error| panic!("{words:?}: {error}")),
        }
    }

    /// One line of `INFO`, or nothing where there is none, nobody answers or the data still loads.
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

/// A port that nobody listens at, nor does that of a cluster's bus, 10000 above. Both lie below
/// those that outgoing connections take, so that a server finds its own when it restarts.
fn free_port() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let number = getrandom::u32().expect("a random number");
        let port = 10_000 + u16::try_from(number % 12_000).expect("a port");
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}
