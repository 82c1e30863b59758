//! A soak with an oracle: visitors go on for a long time before two instances of the program while
//! faults come, and every answer is compared with what must be there.
//!
//! Two instances share a Redis, one of them with `[store.cache]`. A balancer spreads the requests of
//! 200 visitors over both, and so the calls of the session API that the site makes. Visitors have
//! cookie jars; three of them are the devices of one user. They write values by the API and by
//! header exchange, count in storms of parallel requests, log in by both, rotate, log out here, at
//! other devices and everywhere, and try tokens that are dead. One fault at a time is made by a seed.
//!
//! # The rules
//! 1. A change that was acknowledged (2xx, to the site or, by header exchange, to the visitor) is in
//!    every read that is sent afterwards, unless another replaced it; one that was refused never is.
//!    A change of unknown fate (no answer, 504, or 502 for a header) may be there or not, and may
//!    still take effect until 3 s after the fault; the first read after that settles it.
//! 2. A read that an instance with a cache took part in may be 50 ms old, and no older.
//! 3. A request opens the session of its cookie, and no other. A visitor is anonymous only without a
//!    cookie, after a log-out, or after a rotation whose answer was lost.
//! 4. A session that was ended is never back, and a token that was ended with it, or rotated away by
//!    request, opens nothing.
//! 5. At the end every visitor's session is read whole at both instances, and every session that
//!    ever was, by its id; the list of all sessions holds no other.
//! 6. **Losses.** With one Redis (`appendfsync always`) nothing may be lost. With sentinels and in a
//!    cluster, only what the old primary of that session acknowledged may be: from 1 s before its
//!    failover until all sentinels name the new one (by command), or until it was killed or frozen.
//!    For the 500 ms after that a loss is counted under a cause of its own: an instance that is short
//!    of CPU hears of the switch that late. A cluster's failover by command loses nothing. What was
//!    begun after that, or acknowledged before, may not be lost; nor, in a cluster, a log-out that
//!    its one replica had (`replicated`). Losses are counted by cause.

mod balancer;
mod browser;
mod faults;
mod ground;
mod history;
mod judge;
mod oracle;
mod order;
mod random;
mod session;
mod site;
mod told;
mod visitor;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloakroom::server::Tasks;
use tokio::task::JoinSet;

use self::balancer::Balancer;
use self::faults::{Faults, Made};
use self::ground::{Instance, Store, Topology, free_addresses};
use self::oracle::Oracle;
use self::random::Random;
use self::site::Site;
use self::told::Told;
use self::visitor::Visitor;
use crate::report::{Counted, Report};

/// Three of them are one user.
const VISITORS: usize = 200;

/// Requests a second, of all visitors together.
const RATE: u64 = 85;

const MINUTE: Duration = Duration::from_mins(1);

/// How one soak is run.
#[derive(Clone, Copy, Debug)]
struct Options {
    topology: Topology,
    lasts: Duration,
    interval: Duration,
    flushes: bool,
    seed: u64,
}

/// Runs the soak that the options ask for, or without any the three of the report and the one that
/// has to fail.
pub async fn run(report: &mut Report, options: &str) {
    let (given, whole) = (read(options), options.trim().is_empty());
    if !whole {
        return row(report, given).await;
    }
    for (topology, minutes) in
        [(Topology::Single, 30), (Topology::Sentinel, 10), (Topology::Cluster, 10)]
    {
        row(report, Options { topology, lasts: minutes * MINUTE, ..given }).await;
    }
    let flushed = Options { lasts: 2 * MINUTE, flushes: true, ..given };
    let fails = async {
        let counted = soak(flushed).await;
        Counted { text: counted.text, held: !counted.held }
    };
    let done = format!("{}, and Redis is emptied in secret", given.done());
    report.row(done, "2 min", "the oracle notices: there are wrong answers", fails).await;
}

async fn row(report: &mut Report, options: Options) {
    let times = format!("{:.0} min", options.lasts.as_secs_f64() / 60.0);
    let demanded = "0 wrong answers; nothing is lost but what asynchronous replication allows; at most 1 request in 1,000 fails more than 12 s after a fault; all of the model is checked";
    report.row(options.done(), times, demanded, soak(options)).await;
}

impl Options {
    fn done(&self) -> String {
        let redis = match self.topology {
            Topology::Single => "one Redis",
            Topology::Sentinel => "a primary, 2 replicas and 3 sentinels",
            Topology::Cluster => "a cluster of 3 primaries and 3 replicas",
        };
        let every = self.interval.as_secs();
        format!(
            "soak with an oracle: {VISITORS} visitors before two instances of the program with {redis}, a fault every {every} s"
        )
    }
}

/// Reads `--minutes N --topology NAME --every SECONDS --seed N --flushall`.
fn read(text: &str) -> Options {
    let mut options = Options {
        topology: Topology::Single,
        lasts: 30 * MINUTE,
        interval: Duration::from_secs(30),
        flushes: false,
        seed: u64::from(u32::from_be_bytes(cloakroom::random::bytes())),
    };
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("{word} takes a number"))
        };
        match word {
            "--minutes" => options.lasts = Duration::from_mins(number()),
            "--every" => options.interval = Duration::from_secs(number()),
            "--seed" => options.seed = number(),
            "--flushall" => options.flushes = true,
            "--topology" => {
                let name = words.next().unwrap_or_default();
                options.topology = Topology::of(name)
                    .unwrap_or_else(|| panic!("--topology is single, sentinel or cluster"));
            }
            _ => panic!(
                "soak takes --minutes N, --topology single|sentinel|cluster, --every SECONDS, --seed N, --flushall"
            ),
        }
    }
    options
}

/// The file of the trace, in the directory that stays if an answer was wrong.
const TRACE: &str = "trace";

async fn soak(options: Options) -> Counted {
    let directory = tempfile::Builder::new().prefix("cloakroom-soak-").tempdir().unwrap();
    println!("{options:?}; trace and logs: {}", directory.path().display());
    let trace = std::fs::File::create(directory.path().join(TRACE)).unwrap();
    let topology = options.topology;
    let oracle = Arc::new(Oracle::new(trace, topology == Topology::Cluster));
    // The servers' kit blocks.
    let blocking = std::thread::spawn(move || Store::start(topology));
    let store = Arc::new(blocking.join().unwrap());
    let tasks = Tasks::new();
    let (listener, address) = Site::listener();
    let instances = instances(directory.path(), address, &store, options.seed).await;
    let reached: Vec<_> = (instances.iter().enumerate())
        .map(|(number, it)| (it.addresses.public, it.addresses.api, store.caches(number)))
        .collect();
    let site = Site::new(Arc::clone(&oracle), Balancer::new(&reached));
    site.serve(listener, &tasks);
    let visitors: Vec<_> =
        (0..VISITORS).map(|number| Arc::new(Visitor::new(number, Arc::clone(&site)))).collect();
    let began = Instant::now();
    let end = began + options.lasts;
    let faults = begin_faults(options, &oracle, &store, instances, end);
    let (made, instances) = go_on(&visitors, options.seed, end, faults).await;
    let panics = instances.iter().map(|it| it.log().matches("panicked").count()).sum();
    let told = Told::check(&site, &visitors, &oracle, made, panics).await;
    let counted = told.counted(options.seed, options.lasts);
    drop(instances);
    tasks.drain();
    if !counted.held {
        println!("kept: {}", directory.keep().display());
    }
    counted
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

type Running = std::thread::JoinHandle<(Made, Vec<Instance>)>;

/// Makes faults on a thread of their own, and gives the instances back when all is whole again.
fn begin_faults(
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
                std::thread::sleep(options.lasts / 2);
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
        let made = faults.run(options.interval, last);
        store.wait_until_whole();
        (made, instances)
    })
}

/// Has the visitors go on until `end`, or until the faults' thread fails.
async fn go_on(
    visitors: &[Arc<Visitor>],
    seed: u64,
    end: Instant,
    faults: Running,
) -> (Made, Vec<Instance>) {
    let mut running = JoinSet::new();
    for visitor in visitors {
        let visitor = Arc::clone(visitor);
        running.spawn(async move {
            let mut random = Random::new(seed.wrapping_add(visitor.number as u64 + 1));
            let share = Duration::from_secs(VISITORS as u64) / u32::try_from(RATE).unwrap();
            let mut requests = 1;
            while Instant::now() < end {
                // Between half and one and a half of what its share of the rate is.
                let pause = share * u32::try_from(requests).unwrap();
                let pause = pause.mul_f64(0.5 + random.below(1000) as f64 / 1000.0);
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
    faults.join().expect("the faults come to their end")
}
