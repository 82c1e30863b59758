//! The deployment under test: two instances of the program, and the Redis that they share.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::environment::faketime;
use crate::process::{Addresses, Process, SERVICE_TOKEN};
use crate::support::{Cluster, Fault, FaultProxy, KEY, RedisServer, Sentinels};

use super::random::Random;
use super::site::API;
use super::visitor::COOKIE;

/// Topology of the Redis deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    Single,
    Sentinel,
    Cluster,
}

impl Topology {
    pub fn of(name: &str) -> Option<Self> {
        [Self::Single, Self::Sentinel, Self::Cluster].into_iter().find(|it| it.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }
}

/// Network delay to the single server, as to a machine in the next rack.
pub const NETWORK_DELAY: Fault =
    Fault::Delay { fixed: Duration::from_micros(500), jitter: Duration::from_millis(2) };

/// The shared store.
pub enum Store {
    /// A server that syncs each acknowledged write to disk, and a relay between it and each
    /// instance.
    Single {
        server: RedisServer,
        relays: [FaultProxy; 2],
    },
    Sentinel(Sentinels),
    Cluster(Cluster),
}

impl Store {
    pub fn start(topology: Topology) -> Self {
        match topology {
            Topology::Single => {
                let server =
                    RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
                let relays = [(); 2].map(|()| FaultProxy::to(server.address()));
                relays.iter().for_each(|relay| relay.set(NETWORK_DELAY));
                Self::Single { server, relays }
            }
            Topology::Sentinel => Self::Sentinel(Sentinels::start()),
            Topology::Cluster => Self::Cluster(Cluster::start()),
        }
    }

    fn url(&self, instance: usize) -> String {
        match self {
            Self::Single { relays, .. } => format!("redis://{}/", relays[instance].address()),
            Self::Sentinel(sentinels) => {
                let addresses = sentinels.addresses().join(",");
                format!("redis+sentinel://{addresses}/{}", Sentinels::SERVICE)
            }
            Self::Cluster(cluster) => format!("redis+cluster://{}", cluster.seeds().join(",")),
        }
    }

    /// Returns true if an instance has a cache; a cluster's sessions cannot be cached.
    pub fn caches(&self, instance: usize) -> bool {
        instance == 1 && !matches!(self, Self::Cluster(_))
    }

    /// Waits until all servers are up and replicate again.
    pub fn wait_until_whole(&self) {
        match self {
            Self::Single { .. } => {}
            Self::Sentinel(sentinels) => sentinels.wait_until_whole(),
            Self::Cluster(cluster) => cluster.wait_until_whole(),
        }
    }

    /// Removes all sessions, which no other fault does.
    pub fn flush(&self) {
        match self {
            Self::Single { server, .. } => drop(server.command(&["FLUSHALL"]).done()),
            Self::Sentinel(sentinels) => drop(sentinels.primary().command(&["FLUSHALL"]).done()),
            Self::Cluster(cluster) => {
                let primaries = cluster.nodes().iter().filter(|node| node.info("role") == "master");
                primaries.for_each(|node| drop(node.command(&["FLUSHALL"]).done()));
            }
        }
    }
}

/// One instance of the program, which may be down.
pub struct Instance {
    directory: PathBuf,
    pub addresses: Addresses,
    process: Option<Process>,
    text: String,
    rounds: u64,
}

impl Instance {
    /// Configures an instance in `directory` without starting it.
    pub fn new(
        directory: &Path,
        number: usize,
        site: SocketAddr,
        store: &Store,
        [public, api, admin]: [SocketAddr; 3],
    ) -> Self {
        let directory = directory.join(format!("instance-{number}"));
        fs::create_dir(&directory).unwrap();
        let addresses = Addresses { public, api, admin };
        let cache = if store.caches(number) { "cache = { max_bytes = \"64MiB\" }\n" } else { "" };
        let url = store.url(number);
        fs::write(directory.join("key"), KEY).unwrap();
        let text = format!(
            "[[listen]]\naddress = \"{public}\"\n[limits]\ndrain_timeout = \"5s\"\n\
             [api]\naddress = \"{api}\"\nurl = \"{API}\"\ninstance_url = \"http://{api}\"\nservice_token = \"{SERVICE_TOKEN}\"\n\
             [admin]\naddress = \"{admin}\"\n[log]\naccess = false\n\
             [session]\nkeys = [{{ file = \"key\" }}]\ntouch_interval = \"5s\"\nrotate_every = \"45s\"\nrotation_grace = \"45s\"\n\
             [cookie]\nname = \"{COOKIE}\"\nsecure = false\n[store]\nurl = \"{url}\"\n{cache}\
             [[route]]\nupstream = \"http://{site}\"\nheader_exchange = true\n\
             [[route]]\npath = \"/plain\"\nupstream = \"http://{site}\"\n"
        );
        let instance = Self { directory, addresses, process: None, text, rounds: 0 };
        instance.configure();
        instance.set_clock("+0");
        instance
    }

    fn configure(&self) {
        // The configuration changes each time, so that there is something to reload.
        let text = format!("{}response_timeout = \"{}s\"\n", self.text, 40 + self.rounds % 10);
        let new = self.directory.join("cloakroom.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.directory.join("cloakroom.toml")).unwrap();
    }

    /// Starts it with the clock of [`Self::set_clock`], and waits until it is ready.
    pub async fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        faketime(&mut command, &self.directory.join("clock"));
        self.process =
            Some(Process::start_with_command(command, &self.directory, &self.addresses).await);
    }

    /// Sets the offset of its clock in seconds, e.g. `+30`.
    pub fn set_clock(&self, offset: &str) {
        let new = self.directory.join("clock.new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(new, self.directory.join("clock")).unwrap();
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Sends SIGTERM. Returns true if it exits with code 0.
    pub async fn terminate(&mut self) -> bool {
        let mut process = self.process.take().unwrap();
        process.terminate();
        process.ended().await.is_some_and(|status| status.success())
    }

    /// Changes the configuration and sends SIGHUP.
    pub fn reload(&mut self) {
        self.rounds += 1;
        self.configure();
        self.process.as_ref().unwrap().reload();
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

/// Returns distinct addresses for `count` instances. Their ports are below the ephemeral range, so
/// that no outgoing connection takes them during a restart, and above those of the Redis servers.
pub fn free_addresses(count: usize, random: &mut Random) -> Vec<[SocketAddr; 3]> {
    // All listeners stay open until the last port is found, so that no two are equal.
    let mut listeners = Vec::new();
    while listeners.len() < 3 * count {
        let port = 28_000 + u16::try_from(random.below(4_000)).unwrap();
        listeners.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    let addresses: Vec<_> =
        listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    addresses.as_chunks().0.to_vec()
}
