//! A soak test with an oracle: visitors use two instances of the program for a long time while
//! faults are injected, and every response is compared with a model of the sessions.
//!
//! Two instances share a Redis, one of them with `[store.cache]`. A load balancer distributes the
//! requests of 200 visitors and the site's calls of the session API over both. Visitors have cookie
//! jars; three of them are the devices of one user. They write values by the API and by header
//! exchange, increment counters in storms of parallel requests, log in both ways, rotate, log out
//! here, at other devices and everywhere, and replay invalid tokens. Faults are injected one at a
//! time, determined by a seed.
//!
//! # Rules of the oracle
//! 1. An acknowledged change (2xx, to the site or, by header exchange, to the visitor) is in every
//!    read that is sent afterwards, unless another change replaced it; a rejected one never is. A
//!    change of unknown fate (no response, 504, or 502 for a header) may be present or not, and may
//!    still take effect until 3 s after the fault; the first read after that settles it.
//! 2. A read that an instance with a cache took part in may be up to 50 ms stale.
//! 3. A request opens the session of its cookie, and no other. A visitor is anonymous only without
//!    a cookie, after a log-out, or after a rotation whose response was lost.
//! 4. A destroyed session never comes back; a token that was invalidated with it, or by a requested
//!    rotation, opens no session.
//! 5. At the end every visitor's session is read completely at both instances, and so is every
//!    session that was ever created, by its id; the list of all sessions has no others.
//! 6. **Losses.** With a single Redis (`appendfsync always`) nothing may be lost. With sentinels and
//!    in a cluster, changes may be lost that the old primary of that session acknowledged: from 1 s
//!    before its failover until all sentinels agree on the new one (by command), or until it was
//!    killed or frozen. For the next 500 ms a loss has a separate cause: an instance that is short
//!    of CPU learns of the switch that late. A cluster's failover by command loses nothing. Changes
//!    that began after that time, or were acknowledged before it, may not be lost; nor, in a
//!    cluster, may a log-out that its only replica had (`replicated`). Losses are counted by cause.

mod balancer;
mod browser;
mod deployment;
mod faults;
mod final_check;
mod history;
mod job;
mod judge;
mod oracle;
mod random;
mod session;
mod site;
mod visitor;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloakroom::server::Tasks;
use tokio::task::JoinSet;

use self::balancer::Balancer;
use self::deployment::{Instance, Store, Topology, free_addresses};
use self::faults::{FaultCounts, Faults};
use self::final_check::FinalCheck;
use self::oracle::Oracle;
use self::random::Random;
use self::site::Site;
use self::visitor::Visitor;
use crate::report::{Measurement, Report};

/// Number of visitors; three of them are one user.
const VISITORS: usize = 200;

/// Requests per second, of all visitors together.
const RATE: u64 = 85;

const MINUTE: Duration = Duration::from_mins(1);

/// Options of a soak.
#[derive(Clone, Copy, Debug)]
struct Options {
    topology: Topology,
    duration: Duration,
    interval: Duration,
    flushes: bool,
    seed: u64,
}

/// Runs the soak that the options describe. Without options, runs the three soaks of the report and
/// the one that has to fail.
pub async fn run(report: &mut Report, options: &str) {
    let (given, is_default) = (parse(options), options.trim().is_empty());
    if !is_default {
        return row(report, given).await;
    }
    for (topology, minutes) in
        [(Topology::Single, 30), (Topology::Sentinel, 10), (Topology::Cluster, 10)]
    {
        row(report, Options { topology, duration: minutes * MINUTE, ..given }).await;
    }
    let flushed = Options { duration: 2 * MINUTE, flushes: true, ..given };
    let fails = async {
        let measured = soak(flushed).await;
        Measurement { text: measured.text, passed: !measured.passed }
    };
    let scenario =
        format!("{}, and Redis is flushed without the oracle's knowledge", given.scenario());
    report.row(scenario, "2 min", "the oracle detects wrong responses", fails).await;
}

async fn row(report: &mut Report, options: Options) {
    let repetitions = format!("{:.0} min", options.duration.as_secs_f64() / 60.0);
    let requirement = "0 wrong responses; no losses except those of asynchronous replication; at most 1 in 1,000 requests fails more than 12 s after a fault; the whole model is checked";
    report.row(options.scenario(), repetitions, requirement, soak(options)).await;
}

impl Options {
    fn scenario(&self) -> String {
        let redis = match self.topology {
            Topology::Single => "a single Redis",
            Topology::Sentinel => "a primary, 2 replicas and 3 sentinels",
            Topology::Cluster => "a cluster of 3 primaries and 3 replicas",
        };
        let every = self.interval.as_secs();
        format!(
            "soak with an oracle: {VISITORS} visitors of two instances of the program with {redis}, a fault every {every} s"
        )
    }
}

/// Parses `--minutes N --topology NAME --every SECONDS --seed N --flushall`.
fn parse(text: &str) -> Options {
    let mut options = Options {
        topology: Topology::Single,
        duration: 30 * MINUTE,
        interval: Duration::from_secs(30),
        flushes: false,
        seed: u64::from(u32::from_be_bytes(cloakroom::random::bytes())),
    };
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("{word} requires a number"))
        };
        match word {
            "--minutes" => options.duration = Duration::from_mins(number()),
            "--every" => options.interval = Duration::from_secs(number()),
            "--seed" => options.seed = number(),
            "--flushall" => options.flushes = true,
            "--topology" => {
                let name = words.next().unwrap_or_default();
                options.topology = Topology::of(name)
                    .unwrap_or_else(|| panic!("--topology must be single, sentinel or cluster"));
            }
            _ => panic!(
                "soak accepts --minutes N, --topology single|sentinel|cluster, --every SECONDS, --seed N, --flushall"
            ),
        }
    }
    options
}

/// File name of the trace; the directory is kept if the soak fails.
const TRACE: &str = "trace";

async fn soak(options: Options) -> Measurement {
    let directory = tempfile::Builder::new().prefix("cloakroom-soak-").tempdir().unwrap();
    println!("{options:?}; trace and logs: {}", directory.path().display());
    let trace = std::fs::File::create(directory.path().join(TRACE)).unwrap();
    let topology = options.topology;
    let oracle = Arc::new(Oracle::new(trace, topology == Topology::Cluster));
    // Starting the servers blocks.
    let blocking = std::thread::spawn(move || Store::start(topology));
    let store = Arc::new(blocking.join().unwrap());
    let tasks = Tasks::new();
    let (listener, address) = Site::listener();
    let instances = instances(directory.path(), address, &store, options.seed).await;
    let addresses: Vec<_> = (instances.iter().enumerate())
        .map(|(number, it)| (it.addresses.public, it.addresses.api, store.caches(number)))
        .collect();
    let site = Site::new(Arc::clone(&oracle), Balancer::new(&addresses));
    site.serve(listener, &tasks);
    let visitors: Vec<_> =
        (0..VISITORS).map(|number| Arc::new(Visitor::new(number, Arc::clone(&site)))).collect();
    let began = Instant::now();
    let end = began + options.duration;
    let faults = spawn_faults(options, &oracle, &store, instances, end);
    let (counts, instances) = run_visitors(&visitors, options.seed, end, faults).await;
    let panics = instances.iter().map(|it| it.log().matches("panicked").count()).sum();
    let check = FinalCheck::run(&site, &visitors, &oracle, counts, panics).await;
    let measured = check.measurement(options.seed, options.duration);
    drop(instances);
    tasks.drain();
    if !measured.passed {
        println!("trace and logs kept: {}", directory.keep().display());
    }
    measured
}

async fn instances(directory: &Path, site: SocketAddr, store: &Store, seed: u64) -> Vec<Instance> {
    let mut random = Random::new(seed ^ 0x5EED);
    let addresses = free_addresses(2, &mut random).into_iter().enumerate();
    let mut instances: Vec<_> = addresses
        .map(|(number, addresses)| Instance::new(directory, number, site, store, addresses))
        .collect();
    for instance in &mut instances {
        instance.start().await;
    }
    instances
}

type Running = std::thread::JoinHandle<(FaultCounts, Vec<Instance>)>;

/// Injects faults on a dedicated thread. The thread returns the instances when the store is healthy
/// again.
fn spawn_faults(
    options: Options,
    oracle: &Arc<Oracle>,
    store: &Arc<Store>,
    mut instances: Vec<Instance>,
    end: Instant,
) -> Running {
    let (oracle, store) = (Arc::clone(oracle), Arc::clone(store));
    std::thread::spawn(move || {
        if options.flushes {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                std::thread::sleep(options.duration / 2);
                store.flush();
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut faults = Faults {
            oracle: &oracle,
            store: &store,
            instances: &mut instances,
            random: Random::new(options.seed),
            runtime,
        };
        let last = end.checked_sub(options.interval / 2).unwrap();
        let counts = faults.run(options.interval, last);
        store.wait_until_whole();
        (counts, instances)
    })
}

/// Runs the visitors until `end`, or until the thread of the faults fails.
async fn run_visitors(
    visitors: &[Arc<Visitor>],
    seed: u64,
    end: Instant,
    faults: Running,
) -> (FaultCounts, Vec<Instance>) {
    let mut running = JoinSet::new();
    for visitor in visitors {
        let visitor = Arc::clone(visitor);
        running.spawn(async move {
            let mut random = Random::new(seed.wrapping_add(visitor.number as u64 + 1));
            let share = Duration::from_secs(VISITORS as u64) / u32::try_from(RATE).unwrap();
            let mut requests = 1;
            while Instant::now() < end {
                // Between 50 % and 150 % of the interval that its share of the rate gives.
                let permille = u32::try_from(500 + random.below(1000)).unwrap();
                let pause = share * u32::try_from(requests).unwrap() * permille / 1000;
                tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
                requests = visitor.act(&mut random).await.max(1);
            }
        });
    }
    while !running.is_empty() && !faults.is_finished() {
        let _ = tokio::time::timeout(Duration::from_secs(1), running.join_next()).await;
    }
    if faults.is_finished() && Instant::now() < end.checked_sub(MINUTE / 2).unwrap() {
        running.abort_all();
    }
    while let Some(done) = running.join_next().await {
        assert!(done.as_ref().map_or_else(tokio::task::JoinError::is_cancelled, |()| true));
    }
    faults.join().expect("the thread of the faults completes")
}
