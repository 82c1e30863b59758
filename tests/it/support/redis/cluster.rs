//! A cluster of three primaries, with a replica each.

use std::net::SocketAddr;

use super::{RedisServer, Reply, wait_until};

const SLOTS: u16 = 16384;

const PRIMARIES: usize = 3;

/// A cluster of six nodes. The first three are the primaries at the start, each with a third of the
/// slots; node n + 3 is the replica of node n.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts a cluster, and waits until every node reports that all slots are served and all
    /// replicas are synchronized.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a cluster with these options in addition to the defaults. For a password, give both
    /// `--requirepass` and `--masterauth`.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let mut all = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"];
        all.extend(["--cluster-require-full-coverage", "no"]);
        // A replica stays with its primary, and may take over however old its data is.
        all.extend(["--cluster-allow-replica-migration", "no"]);
        all.extend(["--cluster-replica-validity-factor", "0"]);
        all.extend(options);
        let nodes: Vec<_> = (0..2 * PRIMARIES).map(|_| RedisServer::start(&all)).collect();
        let cluster = Self { nodes };
        cluster.assign_slots();
        cluster.meet_all();
        cluster.attach_replicas();
        cluster.wait_until_whole();
        cluster
    }

    /// Returns the addresses of some nodes, e.g. `127.0.0.1:7000`, for the configuration of a
    /// client.
    pub(crate) fn seeds(&self) -> Vec<String> {
        self.nodes[..PRIMARIES].iter().map(|node| node.address().to_string()).collect()
    }

    /// Returns all nodes.
    pub(crate) fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// Returns the node with this port.
    pub(crate) fn node(&self, port: u16) -> &RedisServer {
        self.nodes.iter().find(|node| node.port() == port).expect("a port of a node")
    }

    /// Returns the node with this address.
    pub(crate) fn node_at(&self, address: SocketAddr) -> &RedisServer {
        self.node(address.port())
    }

    /// Returns the slot of a key.
    pub(crate) fn slot_of(&self, key: &str) -> u16 {
        let node = self.nodes.iter().find(|node| node.runs()).expect("a node that runs");
        let slot = node.command(&["CLUSTER", "KEYSLOT", key]).number();
        u16::try_from(slot).expect("a slot")
    }

    /// Returns the node that claims to serve a slot. During a failover there may be none yet; see
    /// [`Self::wait_for_primary_of`].
    pub(crate) fn primary_of(&self, slot: u16) -> Option<&RedisServer> {
        let claims = self.nodes.iter().filter(|node| node.runs()).filter_map(|node| {
            let nodes = node.try_command(&["CLUSTER", "NODES"]).ok()?.text();
            let mine = NodeLine::parse_all(&nodes).find(|line| line.has_flag("myself"))?;
            (mine.has_flag("master") && mine.serves(slot)).then_some((mine.epoch, node))
        });
        // An old primary that does not know its successor yet has the lower epoch.
        claims.max_by_key(|(epoch, _)| *epoch).map(|(_, node)| node)
    }

    /// Waits until another node than the one at `port` serves a slot and every node knows it.
    /// Returns that node.
    pub(crate) fn wait_for_primary_of(&self, slot: u16, port: u16) -> &RedisServer {
        wait_until("another node serves the slot", || {
            self.primary_of(slot).is_some_and(|node| node.port() != port && self.agree(slot, node))
        });
        self.primary_of(slot).expect("a primary")
    }

    /// Returns the nodes that claim to be replicas of `primary`.
    pub(crate) fn replicas_of(&self, primary: &RedisServer) -> Vec<&RedisServer> {
        let port = primary.port().to_string();
        let follows =
            |node: &&RedisServer| node.info("role") == "slave" && node.info("master_port") == port;
        self.nodes.iter().filter(follows).collect()
    }

    /// Promotes a replica by command: no node is down, and no write is lost.
    pub(crate) fn fail_over(&self, replica: &RedisServer) {
        // Redis refuses a replica that is not synchronized yet.
        wait_until("the failover begins", || {
            replica.command(&["CLUSTER", "FAILOVER"]) == Reply::Text("OK".to_owned())
        });
        wait_until("the replica has become the primary", || replica.info("role") == "master");
        self.wait_until_whole();
    }

    /// Prepares to move a slot to another primary. Nothing is sent before [`Migration::begin`].
    pub(crate) fn migration<'a>(&'a self, slot: u16, to: &'a RedisServer) -> Migration<'a> {
        let from = self.primary_of(slot).expect("a primary");
        assert_ne!(from.port(), to.port(), "the slot is there already");
        Migration { cluster: self, slot, from, to }
    }

    /// Waits until all nodes are up, every slot is served and each primary has a replica.
    pub(crate) fn wait_until_whole(&self) {
        wait_until("the cluster is whole", || {
            self.nodes.iter().all(|node| {
                let Ok(info) = node.try_command(&["CLUSTER", "INFO"]) else { return false };
                let Ok(nodes) = node.try_command(&["CLUSTER", "NODES"]) else { return false };
                let nodes = nodes.text();
                let lines = || NodeLine::parse_all(&nodes);
                let primaries = lines().filter(|line| line.has_flag("master") && line.serves_any());
                info.text().contains("cluster_state:ok")
                    && info.text().contains("cluster_slots_ok:16384")
                    && primaries.count() == PRIMARIES
                    && lines().filter(|line| line.has_flag("slave")).count() == PRIMARIES
                    && lines().all(|line| line.is_healthy())
                    && is_replicating(node)
            })
        });
    }

    /// Returns true if every running node reports that `primary` serves the slot.
    fn agree(&self, slot: u16, primary: &RedisServer) -> bool {
        let id = id_of(primary);
        self.nodes.iter().filter(|node| node.runs()).all(|node| {
            let Ok(nodes) = node.try_command(&["CLUSTER", "NODES"]) else { return false };
            NodeLine::parse_all(&nodes.text()).any(|line| line.id == id && line.serves(slot))
        })
    }

    /// Assigns the slots to the primaries, and gives each a different epoch.
    fn assign_slots(&self) {
        for (number, node) in (0_u16..).zip(&self.nodes[..PRIMARIES]) {
            let share = SLOTS / 3;
            let first = number * share;
            let last = if number == 2 { SLOTS - 1 } else { first + share - 1 };
            let (first, last) = (first.to_string(), last.to_string());
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).done();
            let epoch = (number + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).done();
        }
    }

    /// Introduces every node to every other one: gossip alone takes longer.
    fn meet_all(&self) {
        for node in &self.nodes {
            for other in self.nodes.iter().filter(|other| other.port() > node.port()) {
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string()]).done();
            }
        }
        wait_until("all nodes know each other", || {
            self.nodes.iter().all(|node| {
                let nodes = node.command(&["CLUSTER", "NODES"]).text();
                NodeLine::parse_all(&nodes).count() == self.nodes.len()
                    && NodeLine::parse_all(&nodes).all(|line| line.is_healthy())
            })
        });
    }

    fn attach_replicas(&self) {
        let (primaries, replicas) = self.nodes.split_at(PRIMARIES);
        for (primary, replica) in primaries.iter().zip(replicas) {
            replica.command(&["CLUSTER", "REPLICATE", &id_of(primary)]).done();
        }
    }
}

/// The migration of a slot from one primary to another. The test runs the steps one by one, so that
/// it may stop midway; each may be run once.
#[derive(Debug)]
pub(crate) struct Migration<'a> {
    cluster: &'a Cluster,
    slot: u16,
    from: &'a RedisServer,
    to: &'a RedisServer,
}

impl Migration<'_> {
    /// Begins the migration: from now on the old primary replies ASK for keys that it does not
    /// have, and the new one accepts commands after ASKING.
    pub(crate) fn begin(&self) {
        let slot = self.slot.to_string();
        let (from, to) = (id_of(self.from), id_of(self.to));
        self.to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]).done();
        self.from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]).done();
    }

    /// Moves at most `at_most` keys. Returns the number of moved keys.
    pub(crate) fn move_keys(&self, at_most: usize) -> usize {
        let (slot, count) = (self.slot.to_string(), at_most.to_string());
        let keys = self.from.command(&["CLUSTER", "GETKEYSINSLOT", &slot, &count]).done();
        let keys: Vec<_> = keys.list().iter().map(Reply::text).collect();
        if !keys.is_empty() {
            let port = self.to.port().to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
            if let Some(password) = &self.to.password {
                words.extend(["AUTH", password]);
            }
            words.push("KEYS");
            words.extend(keys.iter().map(String::as_str));
            self.from.command(&words).done();
        }
        keys.len()
    }

    /// Moves the remaining keys, assigns the slot to the new primary, and waits until every node
    /// knows.
    pub(crate) fn finish(&self) {
        while self.move_keys(100) > 0 {}
        let (slot, to) = (self.slot.to_string(), id_of(self.to));
        // The new owner first: in the other order the slot would have no owner for a moment.
        for node in [self.to, self.from] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]).done();
        }
        wait_until("all nodes know the new primary", || self.cluster.agree(self.slot, self.to));
    }

    /// Undoes [`Self::begin`]. Keys that have been moved stay where they are.
    pub(crate) fn give_up(&self) {
        let slot = self.slot.to_string();
        for node in [self.from, self.to] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "STABLE"]).done();
        }
    }
}

/// A line of `CLUSTER NODES`.
struct NodeLine<'a> {
    id: &'a str,
    flags: &'a str,
    epoch: u64,
    connected: bool,
    slots: Vec<&'a str>,
}

impl<'a> NodeLine<'a> {
    fn parse_all(text: &'a str) -> impl Iterator<Item = Self> {
        text.lines().filter_map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            let [id, _, flags, _, _, _, epoch, link, slots @ ..] = words.as_slice() else {
                return None;
            };
            let (epoch, connected) = (epoch.parse().ok()?, *link == "connected");
            Some(Self { id, flags, epoch, connected, slots: slots.to_vec() })
        })
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(',').any(|word| word == flag)
    }

    fn is_healthy(&self) -> bool {
        self.connected
            && !["handshake", "fail", "fail?", "noaddr"].iter().any(|flag| self.has_flag(flag))
    }

    /// Returns true if the node serves a slot. Slots in migration are listed in brackets, after
    /// those that it serves.
    fn serves_any(&self) -> bool {
        self.slots.iter().any(|slots| !slots.starts_with('['))
    }

    fn serves(&self, slot: u16) -> bool {
        self.slots.iter().filter(|slots| !slots.starts_with('[')).any(|slots| {
            let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
            (first.parse().expect("a slot")..=last.parse().expect("a slot")).contains(&slot)
        })
    }
}

fn is_replicating(node: &RedisServer) -> bool {
    match node.info("role").as_str() {
        "master" => node.info("connected_slaves") == "1",
        _ => node.info("master_link_status") == "up",
    }
}

fn id_of(node: &RedisServer) -> String {
    node.command(&["CLUSTER", "MYID"]).done().text()
}
