//! A real redis-server for tests, on a free port, that ends with the test process.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// A server of its own.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    child: Child,
    /// Last, since the server writes there.
    _directory: TempDir,
}

/// The shell ends the server when its standard input does, which happens however the test
/// process ends: killed, too.
const WATCH: &str = r#""$0" "$@" & server=$!; cat >/dev/null; kill "$server"; wait "$server""#;

impl RedisServer {
    /// Starts one, with these options beside the usual.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_at(None, options)
    }

    /// Starts one on this port, or a free one.
    pub(crate) fn start_at(port: Option<u16>, options: &[&str]) -> Self {
        let installed =
            Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        assert!(
            installed.is_ok_and(|status| status.success()),
            "these tests need redis-server in the PATH"
        );
        // A port that was free a moment ago may be taken by now.
        (0..5)
            .find_map(|_| Self::try_start(port.unwrap_or_else(free_port), options))
            .expect("redis-server starts")
    }

    /// The server that the tests of this process share. Each takes a prefix of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RedisServer> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    fn try_start(port: u16, options: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new("sh")
            .args(["-c", WATCH, "redis-server", "--port", &port.to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(directory.path())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let log = BufReader::new(child.stdout.take().expect("a pipe"));
        let ready = log
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains("Ready to accept connections") || line.contains("Failed"))
            .is_some_and(|line| line.contains("Ready"));
        let server = Self { port, child, _directory: directory };
        ready.then_some(server)
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
