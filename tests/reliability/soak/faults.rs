//! The faults: one at a time, by a seed, on a thread of their own that may block.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::ground::{DISTANCE, Instance, Store};
use super::oracle::Oracle;
use super::random::Random;
use crate::support::{Cluster, Direction, End, Fault, FaultProxy, RedisServer, Sentinels};

const SECOND: Duration = Duration::from_secs(1);

/// How long an instance on a busy machine may take to act on what the sentinels announce.
const HEARD: Duration = Duration::from_millis(500);

/// What is done. Those of instances are for every topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InstanceKilled,
    InstanceRestarted,
    InstanceReloaded,
    ClockSkewed,
    ClientsKilled,
    Frozen,
    Restarted,
    Full,
    Slow,
    TooSlow,
    Reset,
    Stalled,
    RepliesLost,
    Refused,
    FailoverByCommand,
    PrimaryKilled,
    PrimaryFrozen,
    SentinelKilled,
}

const OF_INSTANCES: [Kind; 5] = [
    Kind::InstanceKilled,
    Kind::InstanceRestarted,
    Kind::InstanceReloaded,
    Kind::ClockSkewed,
    Kind::ClientsKilled,
];
const OF_SINGLE: [Kind; 9] = [
    Kind::Frozen,
    Kind::Restarted,
    Kind::Full,
    Kind::Slow,
    Kind::TooSlow,
    Kind::Reset,
    Kind::Stalled,
    Kind::RepliesLost,
    Kind::Refused,
];
const OF_SENTINELS: [Kind; 6] = [
    Kind::FailoverByCommand,
    Kind::PrimaryKilled,
    Kind::FailoverByCommand,
    Kind::PrimaryKilled,
    Kind::PrimaryFrozen,
    Kind::SentinelKilled,
];
const OF_CLUSTER: [Kind; 5] = [
    Kind::FailoverByCommand,
    Kind::PrimaryKilled,
    Kind::FailoverByCommand,
    Kind::PrimaryKilled,
    Kind::PrimaryFrozen,
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::InstanceKilled => "instance killed (SIGKILL)",
            Self::InstanceRestarted => "instance restarted (SIGTERM)",
            Self::InstanceReloaded => "instance reloaded (SIGHUP)",
            Self::ClockSkewed => "clock of an instance set by 30 s",
            Self::ClientsKilled => "clients killed (CLIENT KILL)",
            Self::Frozen => "Redis frozen",
            Self::Restarted => "Redis killed and restarted",
            Self::Full => "Redis full",
            Self::Slow => "relay delays by up to 100 ms",
            Self::TooSlow => "relay delays by up to 800 ms",
            Self::Reset => "relay resets connections",
            Self::Stalled => "relay stalls",
            Self::RepliesLost => "relay loses replies",
            Self::Refused => "relay refuses connections",
            Self::FailoverByCommand => "failover by command",
            Self::PrimaryKilled => "primary killed",
            Self::PrimaryFrozen => "primary frozen until the failover",
            Self::SentinelKilled => "sentinel killed and restarted",
        }
    }
}

/// How many faults of which kind were made.
pub type Made = BTreeMap<&'static str, u64>;

pub struct Faults<'a> {
    pub oracle: &'a Oracle,
    pub store: &'a Store,
    pub instances: &'a mut [Instance],
    pub random: Random,
    pub runtime: tokio::runtime::Runtime,
}

impl Faults<'_> {
    /// Makes one every `interval` until `end`. Every kind comes before one comes again.
    pub fn run(&mut self, interval: Duration, end: Instant) -> Made {
        let mut kinds = OF_INSTANCES.to_vec();
        kinds.extend(match self.store {
            Store::Single { .. } => &OF_SINGLE[..],
            Store::Sentinel(_) => &OF_SENTINELS[..],
            Store::Cluster(_) => &OF_CLUSTER[..],
        });
        let (mut bag, mut made) = (Vec::new(), Made::new());
        let mut next = Instant::now() + interval / 2;
        while next < end {
            sleep(next.saturating_duration_since(Instant::now()));
            if bag.is_empty() {
                bag.clone_from(&kinds);
                self.random.shuffle(&mut bag);
            }
            let kind = bag.pop().unwrap();
            println!("fault: {}", kind.name());
            self.oracle.fault_began(kind.name());
            self.make(kind);
            self.oracle.fault_ended();
            *made.entry(kind.name()).or_default() += 1;
            next += interval;
        }
        made
    }

    fn make(&mut self, kind: Kind) {
        let number = self.random.index(self.instances.len());
        match kind {
            Kind::InstanceKilled => {
                self.instances[number].kill();
                self.pause(0, 4);
                self.runtime.block_on(self.instances[number].start());
            }
            Kind::InstanceRestarted => {
                if !self.runtime.block_on(self.instances[number].terminate()) {
                    self.oracle.wrong(0, "an instance did not end with exit code 0");
                }
                self.runtime.block_on(self.instances[number].start());
            }
            Kind::InstanceReloaded => self.instances[number].reload(),
            Kind::ClockSkewed => {
                let offset = if self.random.below(2) == 0 { "+30" } else { "-30" };
                self.instances[number].set_clock(offset);
                self.pause(10, 14);
                self.instances[number].set_clock("+0");
            }
            kind => match self.store {
                Store::Single { server, relays } => self.on_single(kind, server, relays),
                Store::Sentinel(sentinels) => self.on_sentinels(kind, sentinels),
                Store::Cluster(cluster) => self.on_cluster(kind, cluster),
            },
        }
    }

    /// Waits for a time between these numbers of seconds.
    fn pause(&mut self, least: u64, most: u64) {
        sleep(Duration::from_millis(least * 1000 + self.random.below((most - least) * 1000)));
    }

    fn on_single(&mut self, kind: Kind, server: &RedisServer, relays: &[FaultProxy; 2]) {
        let both = self.random.below(2) == 0;
        let one = self.random.index(2);
        let relays: Vec<_> =
            (0..2).filter(|number| both || *number == one).map(|number| &relays[number]).collect();
        let fault = match kind {
            Kind::ClientsKilled => return kill_clients(server),
            Kind::Frozen => {
                server.stop();
                self.pause(1, 6);
                return server.cont();
            }
            Kind::Restarted => {
                server.kill();
                self.pause(0, 3);
                return server.restart();
            }
            Kind::Full => {
                server.command(&["CONFIG", "SET", "maxmemory", "1mb"]).done();
                self.pause(3, 8);
                return drop(server.command(&["CONFIG", "SET", "maxmemory", "0"]).done());
            }
            Kind::Reset => {
                for _ in 0..4 {
                    relays.iter().for_each(|relay| relay.end(End::Reset));
                    self.pause(0, 1);
                }
                return;
            }
            Kind::RepliesLost => {
                for _ in 0..12 {
                    let bytes = self.random.index(2) * 7;
                    relays.iter().for_each(|relay| relay.end_after(bytes, End::Reset));
                    sleep(SECOND / 4);
                }
                return;
            }
            Kind::Slow => Fault::Delay { fixed: SECOND / 100, jitter: Duration::from_millis(90) },
            Kind::TooSlow => {
                Fault::Delay { fixed: SECOND / 100, jitter: Duration::from_millis(790) }
            }
            Kind::Stalled => Fault::Stall(
                [Direction::Requests, Direction::Replies, Direction::Both][self.random.index(3)],
            ),
            _ => Fault::Refuse,
        };
        relays.iter().for_each(|relay| relay.set(fault));
        if kind == Kind::Refused {
            relays.iter().for_each(|relay| relay.end(End::Reset));
        }
        self.pause(2, 6);
        relays.iter().for_each(|relay| relay.set(DISTANCE));
    }

    fn on_sentinels(&mut self, kind: Kind, sentinels: &Sentinels) {
        let primary = sentinels.primary();
        match kind {
            Kind::ClientsKilled => return kill_clients(primary),
            Kind::SentinelKilled => {
                let sentinel = &sentinels.sentinels()[self.random.index(3)];
                sentinel.kill();
                self.pause(2, 5);
                sentinel.restart();
            }
            Kind::FailoverByCommand => {
                self.oracle.window_began("failover by command", None);
                sentinels.failover();
                self.oracle.window_ended();
                // Its cause tells it apart from the loss that nobody can prevent.
                let late = "on the way of +switch-master to an instance";
                self.oracle.window_began_before(Duration::ZERO, late, None);
                sleep(HEARD);
                self.oracle.window_ended();
            }
            _ => {
                self.lose_primary(kind, primary, None);
                sentinels.wait_for_primary_other_than(primary.port());
                bring_back(kind, primary);
            }
        }
        sentinels.wait_until_whole();
    }

    fn on_cluster(&mut self, kind: Kind, cluster: &Cluster) {
        let shard = self.random.index(3);
        let slot = u16::try_from(shard * 5461).unwrap();
        let primary = cluster.primary_of(slot).unwrap();
        match kind {
            Kind::ClientsKilled => kill_clients(primary),
            // The replica takes over when it has everything: nothing may be lost.
            Kind::FailoverByCommand => cluster.fail_over(cluster.replicas_of(primary)[0]),
            _ => {
                self.lose_primary(kind, primary, Some(shard));
                cluster.wait_for_primary_of(slot, primary.port());
                bring_back(kind, primary);
            }
        }
        cluster.wait_until_whole();
    }

    /// Takes a primary away. What it acknowledges later is no loss that replication allows.
    fn lose_primary(&mut self, kind: Kind, primary: &RedisServer, shard: Option<usize>) {
        self.oracle.window_began(kind.name(), shard);
        if kind == Kind::PrimaryKilled {
            primary.kill();
        } else {
            primary.stop();
        }
        self.oracle.window_ended();
    }
}

fn bring_back(kind: Kind, primary: &RedisServer) {
    if kind == Kind::PrimaryKilled {
        primary.restart();
    } else {
        primary.cont();
    }
}

fn kill_clients(server: &RedisServer) {
    for kind in ["normal", "pubsub"] {
        // It says how many it has killed, which may be none.
        let _ = server.command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        sleep(SECOND / 2);
    }
}
