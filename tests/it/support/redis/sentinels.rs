//! A primary, two replicas and three sentinels that watch them.

use std::net::SocketAddr;

use super::{RedisServer, Reply, WayIn, free_port, wait_until};

/// What the sentinels call the servers that they watch.
const SERVICE: &str = "main";

/// Three servers under [`Self::SERVICE`], and three sentinels of which two must agree.
#[derive(Debug)]
pub(crate) struct Sentinels {
    // Dropped first, or they would begin a failover.
    sentinels: Vec<RedisServer>,
    servers: Vec<RedisServer>,
}

impl Sentinels {
    /// The name of the service.
    pub(crate) const SERVICE: &str = SERVICE;

    /// Starts them. When this returns, each sentinel knows the others and both replicas.
    pub(crate) fn start() -> Self {
        Self::start_with(None, None)
    }

    /// Likewise, with a password of the servers and one of the sentinels.
    pub(crate) fn start_with(password: Option<&str>, of_sentinels: Option<&str>) -> Self {
        let primary = match password {
            // One that was the primary follows another some day.
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

    /// Where the sentinels listen, as `127.0.0.1:26379`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect()
    }

    /// The sentinels.
    pub(crate) fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The servers; the first was the primary at the start.
    pub(crate) fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The server, or the sentinel, with this port.
    pub(crate) fn server(&self, port: u16) -> &RedisServer {
        let mut all = self.servers.iter().chain(&self.sentinels);
        all.find(|server| server.port() == port).expect("a port of theirs")
    }

    /// The primary, as the first sentinel that answers names it.
    pub(crate) fn primary(&self) -> &RedisServer {
        let address = self.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        self.server(address.list()[1].text().parse().expect("a port"))
    }

    /// The primary's address.
    pub(crate) fn primary_address(&self) -> SocketAddr {
        self.primary().address()
    }

    /// A failover by command: nothing is broken. Answers the new primary, when all know it.
    pub(crate) fn failover(&self) -> &RedisServer {
        let before = self.primary().port();
        // Sentinels that have just been through one refuse for a moment.
        wait_until("a sentinel begins a failover", || {
            self.ask(&["SENTINEL", "FAILOVER", SERVICE]) == Reply::Text("OK".to_owned())
        });
        self.wait_for_primary_other_than(before)
    }

    /// Waits until every sentinel that runs names a primary with another port than this, and it is
    /// one. For after [`RedisServer::kill`] or [`RedisServer::stop`] of the primary.
    pub(crate) fn wait_for_primary_other_than(&self, port: u16) -> &RedisServer {
        wait_until("there is another primary", || {
            let named = self.named();
            let agreed = named.windows(2).all(|pair| pair[0] == pair[1]);
            named.first().is_some_and(|found| {
                agreed && *found != port && self.server(*found).info("role") == "master"
            })
        });
        self.primary()
    }

    /// Waits until all servers are up again and follow one primary, and all sentinels know it.
    pub(crate) fn wait_until_whole(&self) {
        wait_until("all sentinels know each other and the replicas", || {
            let primary = self.primary();
            primary.info("connected_slaves") == "2"
                && self.sentinels.iter().filter(|sentinel| sentinel.runs()).all(|sentinel| {
                    let Ok(told) = sentinel.try_command(&["SENTINEL", "MASTER", SERVICE]) else {
                        return false;
                    };
                    told.field("port") == primary.port().to_string()
                        && told.field("flags") == "master"
                        && told.field("num-slaves") == "2"
                        && told.field("num-other-sentinels") == "2"
                        && replicas_are_well(sentinel)
                })
        });
    }

    /// The port of the primary, as each sentinel says that answers.
    fn named(&self) -> Vec<u16> {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        let running = self.sentinels.iter().filter(|sentinel| sentinel.runs());
        let answers = running.filter_map(|sentinel| sentinel.try_command(&question).ok());
        answers.filter_map(|address| address.list().get(1)?.text().parse().ok()).collect()
    }

    fn ask(&self, words: &[&str]) -> Reply {
        let running = self.sentinels.iter().filter(|sentinel| sentinel.runs());
        let mut answers = running.filter_map(|sentinel| sentinel.try_command(words).ok());
        answers.next().expect("a sentinel that answers")
    }
}

/// Whether a sentinel would take each replica for a primary.
fn replicas_are_well(sentinel: &RedisServer) -> bool {
    let told = sentinel.try_command(&["SENTINEL", "REPLICAS", SERVICE]);
    told.is_ok_and(|replicas| {
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
        // A sentinel keeps there what it learns, and finds it when it restarts.
        std::fs::write(directory.path().join("sentinel.conf"), lines.join("\n") + "\n")
            .expect("a file");
        RedisServer::try_start(port, WayIn::Tcp, directory, &options)
    };
    let sentinel = (0..5).find_map(|_| start(free_port())).expect("a sentinel starts");
    // It looks around more often than it would: a test waits for that.
    let periods = ["info-period", "500", "publish-period", "200", "ask-period", "200"];
    let mut words = vec!["SENTINEL", "DEBUG"];
    words.extend(periods);
    sentinel.command(&words).done();
    sentinel
}
