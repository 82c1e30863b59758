//! What the visitors go on before: two instances of the program, and the Redis that they share.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Addresses, Process, SERVICE_TOKEN};
use crate::support::{Cluster, Fault, FaultProxy, KEY, RedisServer, Sentinels};
use crate::surroundings::faketime;

use super::random::Random;
use super::site::API;
use super::visitor::COOKIE;

/// The shape of the Redis.
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

/// One server is as far away as one in the next rack.
pub const DISTANCE: Fault =
    Fault::Delay { fixed: Duration::from_micros(500), jitter: Duration::from_millis(2) };

/// The shared store.
pub enum Store {
    /// One server that writes down what it acknowledges, and a relay between it and each instance.
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
                relays.iter().for_each(|relay| relay.set(DISTANCE));
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

    /// A cluster's sessions cannot be cached.
    pub fn caches(&self, instance: usize) -> bool {
        instance == 1 && !matches!(self, Self::Cluster(_))
    }

    /// Waits until it is whole again.
    pub fn wait_until_whole(&self) {
        match self {
            Self::Single { .. } => {}
            Self::Sentinel(sentinels) => sentinels.wait_until_whole(),
            Self::Cluster(cluster) => cluster.wait_until_whole(),
        }
    }

    /// Removes all that is in it, as no fault may.
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
    /// Configures one in `directory`; it does not run yet.
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
        // Another one each time, so that there is something to reload.
        let text = format!("{}response_timeout = \"{}s\"\n", self.text, 40 + self.rounds % 10);
        let new = self.directory.join("cloakroom.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.directory.join("cloakroom.toml")).unwrap();
    }

    /// Starts it on the clock of [`Self::set_clock`], and waits until it is ready.
    pub async fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
        faketime(&mut command, &self.directory.join("clock"));
        self.process =
            Some(Process::start_with_command(command, &self.directory, &self.addresses).await);
    }

    /// Sets its clock that far from the machine's, e.g. `+30`.
    pub fn set_clock(&self, offset: &str) {
        let new = self.directory.join("clock.new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(new, self.directory.join("clock")).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// SIGTERM. Returns whether it ended well.
    pub async fn terminate(&mut self) -> bool {
        let mut process = self.process.take().unwrap();
        process.terminate();
        process.ended().await.is_some_and(|status| status.success())
    }

    /// SIGHUP, with another configuration.
    pub fn reload(&mut self) {
        self.rounds += 1;
        self.configure();
        self.process.as_ref().unwrap().reload();
    }

    /// Whether it has ended by itself.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

/// Addresses for so many instances, no two alike. Their ports are below those that outgoing
/// connections take, so that a restart finds them free, and above those of the servers.
pub fn free_addresses(count: usize, random: &mut Random) -> Vec<[SocketAddr; 3]> {
    // All are held until the last is found.
    let mut held = Vec::new();
    while held.len() < 3 * count {
        let port = 28_000 + u16::try_from(random.below(4_000)).unwrap();
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    let addresses: Vec<_> = held.iter().map(|held| held.local_addr().unwrap()).collect();
    addresses.as_chunks().0.to_vec()
}
