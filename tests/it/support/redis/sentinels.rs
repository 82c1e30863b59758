//! A primary, two replicas and three sentinels that watch them.

use std::net::SocketAddr;

use super::{RedisServer, Reply, Transport, free_port, wait_until};

/// Service name of the servers that the sentinels monitor.
const SERVICE: &str = "main";

/// Three servers under [`Self::SERVICE`], and three sentinels of which two must agree.
#[derive(Debug)]
pub(crate) struct Sentinels {
    // Dropped before the servers, or they would begin a failover.
    sentinels: Vec<RedisServer>,
    servers: Vec<RedisServer>,
}

impl Sentinels {
    /// Service name of the servers.
    pub(crate) const SERVICE: &str = SERVICE;

    /// Starts them, and waits until each sentinel knows the others and both replicas.
    pub(crate) fn start() -> Self {
        Self::start_with(None, None)
    }

    /// Starts them with a password for the servers and one for the sentinels.
    pub(crate) fn start_with(password: Option<&str>, of_sentinels: Option<&str>) -> Self {
        let primary = match password {
            // The primary needs --masterauth too, for when it becomes a replica.
            Some(password) => {
                RedisServer::start(&["--requirepass", password, "--masterauth", password])
            }
            None => RedisServer::start(&[]),
        };
        let replicas = [(); 2].map(|()| RedisServer::replica_of(&primary));
        let sentinels = [(); 3].map(|()| sentinel(&primary, of_sentinels)).into();
        let mut servers = vec![primary];
        servers.extend(replicas);
        let all = Self { sentinels, servers };
        all.wait_until_whole();
        all
    }

    /// Returns the addresses of the sentinels, e.g. `127.0.0.1:26379`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect()
    }

    /// Returns the sentinels.
    pub(crate) fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// Returns the servers; the first was the primary at the start.
    pub(crate) fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// Returns the server or sentinel with this port.
    pub(crate) fn server(&self, port: u16) -> &RedisServer {
        let mut all = self.servers.iter().chain(&self.sentinels);
        all.find(|server| server.port() == port).expect("the port of a server or sentinel")
    }

    /// Returns the primary according to the first sentinel that responds.
    pub(crate) fn primary(&self) -> &RedisServer {
        let address = self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        self.server(address.list()[1].text().parse().expect("a port"))
    }

    /// Returns the address of the primary.
    pub(crate) fn primary_address(&self) -> SocketAddr {
        self.primary().address()
    }

    /// Starts a failover by command: no server is down. Returns the new primary once all sentinels
    /// know it.
    pub(crate) fn failover(&self) -> &RedisServer {
        let before = self.primary().port();
        // Sentinels refuse for a while after the previous failover.
        wait_until("a sentinel begins a failover", || {
            self.ask(&["SENTINEL", "FAILOVER", SERVICE]) == Reply::Text("OK".to_owned())
        });
        self.wait_for_primary_other_than(before)
    }

    /// Waits until all running sentinels agree on a primary with another port, and it has the role.
    /// Used after [`RedisServer::kill`] or [`RedisServer::stop`] of the primary.
    pub(crate) fn wait_for_primary_other_than(&self, port: u16) -> &RedisServer {
        wait_until("the sentinels agree on another primary", || {
            let named = self.named();
            let agreed = named.windows(2).all(|pair| pair[0] == pair[1]);
            named.first().is_some_and(|found| {
                agreed && *found != port && self.server(*found).info("role") == "master"
            })
        });
        self.primary()
    }

    /// Waits until all servers are up, two replicate from one primary, and all sentinels know it.
    pub(crate) fn wait_until_whole(&self) {
        wait_until("all sentinels know each other and the replicas", || {
            let primary = self.primary();
            primary.info("connected_slaves") == "2"
                && self.sentinels.iter().filter(|sentinel| sentinel.runs()).all(|sentinel| {
                    let Ok(status) = sentinel.try_command(&["SENTINEL", "MASTER", SERVICE]) else {
                        return false;
                    };
                    status.field("port") == primary.port().to_string()
                        && status.field("flags") == "master"
                        && status.field("num-slaves") == "2"
                        && status.field("num-other-sentinels") == "2"
                        && replicas_are_healthy(sentinel)
                })
        });
    }

    /// Returns the port of the primary according to each sentinel that responds.
    fn named(&self) -> Vec<u16> {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        let running = self.sentinels.iter().filter(|sentinel| sentinel.runs());
        let answers = running.filter_map(|sentinel| sentinel.try_command(&question).ok());
        answers.filter_map(|address| address.list().get(1)?.text().parse().ok()).collect()
    }

    fn ask(&self, words: &[&str]) -> Reply {
        let running = self.sentinels.iter().filter(|sentinel| sentinel.runs());
        let mut answers = running.filter_map(|sentinel| sentinel.try_command(words).ok());
        answers.next().expect("a sentinel that responds")
    }
}

/// Returns true if a sentinel considers every replica fit to be promoted.
fn replicas_are_healthy(sentinel: &RedisServer) -> bool {
    let replicas = sentinel.try_command(&["SENTINEL", "REPLICAS", SERVICE]);
    replicas.is_ok_and(|replicas| {
        replicas.list().iter().all(|replica| {
            replica.field("flags") == "slave" && replica.field("master-link-status") == "ok"
        })
    })
}

fn sentinel(primary: &RedisServer, password: Option<&str>) -> RedisServer {
    let start = |port: u16| {
        let mut lines = vec![
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            format!("sentinel monitor {SERVICE} 127.0.0.1 {} 2", primary.port()),
            format!("sentinel down-after-milliseconds {SERVICE} 1000"),
            format!("sentinel failover-timeout {SERVICE} 3000"),
            format!("sentinel parallel-syncs {SERVICE} 2"),
        ];
        if let Some(password) = &primary.password {
            lines.push(format!("sentinel auth-pass {SERVICE} {password}"));
        }
        let mut options = vec!["sentinel.conf", "--sentinel"];
        if let Some(password) = password {
            options.extend(["--requirepass", password]);
            lines.push(format!("sentinel sentinel-pass {password}"));
        }
        let directory = tempfile::tempdir().expect("a directory");
        // A sentinel stores its state in its configuration file.
        std::fs::write(directory.path().join("sentinel.conf"), lines.join("\n") + "\n")
            .expect("a file");
        RedisServer::try_start(port, Transport::Tcp, directory, &options)
    };
    let sentinel = (0..5).find_map(|_| start(free_port())).expect("a sentinel starts");
    // Shorter than the default periods, since tests wait for them.
    let periods = ["info-period", "500", "publish-period", "200", "ask-period", "200"];
    let mut words = vec!["SENTINEL", "DEBUG"];
    words.extend(periods);
    sentinel.command(&words).done();
    sentinel
}
