//! Fault injection: one fault at a time, determined by a seed, on a dedicated thread that may
//! block.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::deployment::{Instance, NETWORK_DELAY, Store};
use super::oracle::Oracle;
use super::random::Random;
use crate::support::{Cluster, Direction, End, Fault, FaultProxy, RedisServer, Sentinels};

const SECOND: Duration = Duration::from_secs(1);

/// Time that an instance on a busy machine may need to act on an announcement of the sentinels.
const ANNOUNCEMENT_DELAY: Duration = Duration::from_millis(500);

/// A kind of fault. Those of instances apply to every topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
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

const OF_INSTANCES: [FaultKind; 5] = [
    FaultKind::InstanceKilled,
    FaultKind::InstanceRestarted,
    FaultKind::InstanceReloaded,
    FaultKind::ClockSkewed,
    FaultKind::ClientsKilled,
];
const OF_SINGLE: [FaultKind; 9] = [
    FaultKind::Frozen,
    FaultKind::Restarted,
    FaultKind::Full,
    FaultKind::Slow,
    FaultKind::TooSlow,
    FaultKind::Reset,
    FaultKind::Stalled,
    FaultKind::RepliesLost,
    FaultKind::Refused,
];
const OF_SENTINELS: [FaultKind; 6] = [
    FaultKind::FailoverByCommand,
    FaultKind::PrimaryKilled,
    FaultKind::FailoverByCommand,
    FaultKind::PrimaryKilled,
    FaultKind::PrimaryFrozen,
    FaultKind::SentinelKilled,
];
const OF_CLUSTER: [FaultKind; 5] = [
    FaultKind::FailoverByCommand,
    FaultKind::PrimaryKilled,
    FaultKind::FailoverByCommand,
    FaultKind::PrimaryKilled,
    FaultKind::PrimaryFrozen,
];

impl FaultKind {
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

/// Number of injected faults by kind.
pub type FaultCounts = BTreeMap<&'static str, u64>;

pub struct Faults<'a> {
    pub oracle: &'a Oracle,
    pub store: &'a Store,
    pub instances: &'a mut [Instance],
    pub random: Random,
    pub runtime: tokio::runtime::Runtime,
}

impl Faults<'_> {
    /// Injects a fault every `interval` until `end`. Each kind is used once before any is repeated.
    pub fn run(&mut self, interval: Duration, end: Instant) -> FaultCounts {
        let mut kinds = OF_INSTANCES.to_vec();
        kinds.extend(match self.store {
            Store::Single { .. } => &OF_SINGLE[..],
            Store::Sentinel(_) => &OF_SENTINELS[..],
            Store::Cluster(_) => &OF_CLUSTER[..],
        });
        let (mut bag, mut counts) = (Vec::new(), FaultCounts::new());
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
            self.inject(kind);
            self.oracle.fault_ended();
            *counts.entry(kind.name()).or_default() += 1;
            next += interval;
        }
        counts
    }

    fn inject(&mut self, kind: FaultKind) {
        let number = self.random.index(self.instances.len());
        match kind {
            FaultKind::InstanceKilled => {
                self.instances[number].kill();
                self.pause(0, 4);
                self.runtime.block_on(self.instances[number].start());
            }
            FaultKind::InstanceRestarted => {
                if !self.runtime.block_on(self.instances[number].terminate()) {
                    self.oracle.wrong(0, "an instance did not exit with code 0");
                }
                self.runtime.block_on(self.instances[number].start());
            }
            FaultKind::InstanceReloaded => self.instances[number].reload(),
            FaultKind::ClockSkewed => {
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

    /// Waits for a random time between these numbers of seconds.
    fn pause(&mut self, least: u64, most: u64) {
        sleep(Duration::from_millis(least * 1000 + self.random.below((most - least) * 1000)));
    }

    fn on_single(&mut self, kind: FaultKind, server: &RedisServer, relays: &[FaultProxy; 2]) {
        let both = self.random.below(2) == 0;
        let one = self.random.index(2);
        let relays: Vec<_> =
            (0..2).filter(|number| both || *number == one).map(|number| &relays[number]).collect();
        let fault = match kind {
            FaultKind::ClientsKilled => return kill_clients(server),
            FaultKind::Frozen => {
                server.stop();
                self.pause(1, 6);
                return server.cont();
            }
            FaultKind::Restarted => {
                server.kill();
                self.pause(0, 3);
                return server.restart();
            }
            FaultKind::Full => {
                server.command(&["CONFIG", "SET", "maxmemory", "1mb"]).done();
                self.pause(3, 8);
                return drop(server.command(&["CONFIG", "SET", "maxmemory", "0"]).done());
            }
            FaultKind::Reset => {
                for _ in 0..4 {
                    relays.iter().for_each(|relay| relay.end(End::Reset));
                    self.pause(0, 1);
                }
                return;
            }
            FaultKind::RepliesLost => {
                for _ in 0..12 {
                    let bytes = self.random.index(2) * 7;
                    relays.iter().for_each(|relay| relay.end_after(bytes, End::Reset));
                    sleep(SECOND / 4);
                }
                return;
            }
            FaultKind::Slow => {
                Fault::Delay { fixed: SECOND / 100, jitter: Duration::from_millis(90) }
            }
            FaultKind::TooSlow => {
                Fault::Delay { fixed: SECOND / 100, jitter: Duration::from_millis(790) }
            }
            FaultKind::Stalled => Fault::Stall(
                [Direction::Requests, Direction::Replies, Direction::Both][self.random.index(3)],
            ),
            _ => Fault::Refuse,
        };
        relays.iter().for_each(|relay| relay.set(fault));
        if kind == FaultKind::Refused {
            relays.iter().for_each(|relay| relay.end(End::Reset));
        }
        self.pause(2, 6);
        relays.iter().for_each(|relay| relay.set(NETWORK_DELAY));
    }

    fn on_sentinels(&mut self, kind: FaultKind, sentinels: &Sentinels) {
        let primary = sentinels.primary();
        match kind {
            FaultKind::ClientsKilled => return kill_clients(primary),
            FaultKind::SentinelKilled => {
                let sentinel = &sentinels.sentinels()[self.random.index(3)];
                sentinel.kill();
                self.pause(2, 5);
                sentinel.restart();
            }
            FaultKind::FailoverByCommand => {
                self.oracle.window_began("failover by command", None);
                sentinels.failover();
                self.oracle.window_ended();
                // A separate cause: this loss depends on how fast the instance reacts.
                let late = "until an instance received +switch-master";
                self.oracle.window_began_before(Duration::ZERO, late, None);
                sleep(ANNOUNCEMENT_DELAY);
                self.oracle.window_ended();
            }
            _ => {
                self.lose_primary(kind, primary, None);
                sentinels.wait_for_primary_other_than(primary.port());
                restore(kind, primary);
            }
        }
        sentinels.wait_until_whole();
    }

    fn on_cluster(&mut self, kind: FaultKind, cluster: &Cluster) {
        let shard = self.random.index(3);
        let slot = u16::try_from(shard * 5461).unwrap();
        let primary = cluster.primary_of(slot).unwrap();
        match kind {
            FaultKind::ClientsKilled => kill_clients(primary),
            // The replica takes over once it has all writes: nothing may be lost.
            FaultKind::FailoverByCommand => cluster.fail_over(cluster.replicas_of(primary)[0]),
            _ => {
                self.lose_primary(kind, primary, Some(shard));
                cluster.wait_for_primary_of(slot, primary.port());
                restore(kind, primary);
            }
        }
        cluster.wait_until_whole();
    }

    /// Kills or freezes a primary. Losing a write that it acknowledges later is not allowed.
    fn lose_primary(&mut self, kind: FaultKind, primary: &RedisServer, shard: Option<usize>) {
        self.oracle.window_began(kind.name(), shard);
        if kind == FaultKind::PrimaryKilled {
            primary.kill();
        } else {
            primary.stop();
        }
        self.oracle.window_ended();
    }
}

fn restore(kind: FaultKind, primary: &RedisServer) {
    if kind == FaultKind::PrimaryKilled {
        primary.restart();
    } else {
        primary.cont();
    }
}

fn kill_clients(server: &RedisServer) {
    for kind in ["normal", "pubsub"] {
        // The reply is the number of killed clients, which may be 0.
        let _ = server.command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
        sleep(SECOND / 2);
    }
}
