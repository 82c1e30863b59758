//! Staleness of reads from two instances with a cache each on one Redis.
//!
//! Each instance is a thread with its own connections. The counter in a session only grows, so its
//! value tells which increments a read has seen.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cloakroom::redis::config::{Address, Topology};
use cloakroom::server::Tasks;
use cloakroom::session::id::Id;
use cloakroom::session::patch::{Change, Op, Patch};
use cloakroom::session::policy::Policy;
use cloakroom::session::record::{Entry, Key, Meta, Record, Values};
use cloakroom::store::cache::{Cached, Coherence, RecordCache};
use cloakroom::store::config::{DurableDestroy, Redis as Config};
use cloakroom::store::redis::{Deployment, LEASE, Redis, track};
use cloakroom::store::{Backend as _, Store, Want};
use cloakroom::time::Clock;

use crate::report::{Measurement, Report};
use crate::support::{Direction, Fault, FaultProxy, RedisServer};

const OPERATIONS: u64 = 1_000_000;
const SESSIONS: usize = 200;
/// Concurrent operations of each instance.
const CONCURRENCY: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(20);

pub async fn run(report: &mut Report) {
    for (fault, what) in [
        (TrackingFault::None, "no faults"),
        (
            TrackingFault::Killed,
            "the invalidation connections are killed at random, about every 200 ms",
        ),
        (TrackingFault::Stalled, "the invalidation connections stall at random, for up to 300 ms"),
    ] {
        let scenario = format!(
            "reads, increments and destroys of {SESSIONS} sessions by two instances with a cache each; {what}"
        );
        let repetitions = format!("{OPERATIONS} operations");
        let requirement = "no read is more than 50 ms stale; no session is read 50 ms after its destroy was acknowledged";
        // It starts runtimes, which is not possible on a thread that runs one.
        let measured = async { thread::spawn(move || staleness(fault)).join().unwrap() };
        report.row(scenario, repetitions, requirement, measured).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TrackingFault {
    None,
    Killed,
    Stalled,
}

/// The acknowledged changes of one session.
struct Slot {
    id: Id,
    /// Values of the counter with the time of their acknowledgement; old ones are dropped.
    numbers: VecDeque<(i64, Instant)>,
    destroyed: Option<Instant>,
}

#[derive(Default)]
struct Tally {
    started: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    destroys: AtomicU64,
    failed: AtomicU64,
    stale: AtomicU64,
    stale_of_own: AtomicU64,
    resurrected: AtomicU64,
    /// Staleness of the worst read, in microseconds.
    oldest: AtomicU64,
}

struct World {
    slots: Vec<Mutex<Slot>>,
    /// Recently destroyed sessions, which are still read.
    destroyed: Mutex<VecDeque<(Id, Instant)>>,
    tally: Tally,
    done: AtomicBool,
}

fn staleness(fault: TrackingFault) -> Measurement {
    let server = RedisServer::start(&[]);
    let proxy = FaultProxy::to(server.address());
    let direct = deployment(server.port());
    let tracked = deployment(proxy.address().port());
    let world = Arc::new(World {
        slots: (0..SESSIONS).map(|_| Mutex::new(Slot::fresh(Id::from_bytes([0; 16])))).collect(),
        destroyed: Mutex::default(),
        tally: Tally::default(),
        done: AtomicBool::new(false),
    });
    let store = Redis::new(&direct, Tasks::new());
    block_on(async {
        for slot in &world.slots {
            let id = create_session(&store).await;
            *slot.lock().unwrap() = Slot::fresh(id);
        }
    });
    let before = commands(&server);
    let instances: Vec<_> = (0..2)
        .map(|number| {
            let (world, direct, tracked) = (Arc::clone(&world), direct.clone(), tracked.clone());
            thread::spawn(move || block_on(instance(number, world, direct, tracked)))
        })
        .collect();
    inject(fault, &server, &proxy, &world);
    for instance in instances {
        instance.join().unwrap();
    }
    let commands = commands(&server) - before;
    world.tally.measurement(commands)
}

/// Injects `fault` until the instances are done.
fn inject(fault: TrackingFault, server: &RedisServer, proxy: &FaultProxy, world: &World) {
    while !world.done.load(Ordering::Relaxed) {
        thread::park_timeout(Duration::from_millis(100 + random(200)));
        match fault {
            TrackingFault::None => {}
            TrackingFault::Killed => {
                let list = server.command(&["CLIENT", "LIST"]).text();
                let tracked = list.lines().filter(|line| {
                    line.split(' ').any(|part| part.starts_with("flags=") && part.contains('t'))
                });
                for line in tracked {
                    let id = line.split(' ').next().unwrap().trim_start_matches("id=");
                    let _ = server.try_command(&["CLIENT", "KILL", "ID", id]);
                }
            }
            TrackingFault::Stalled => {
                proxy.set(Fault::Stall(Direction::Replies));
                thread::park_timeout(Duration::from_millis(random(300)));
                proxy.set(Fault::None);
            }
        }
    }
}

async fn instance(number: usize, world: Arc<World>, direct: Deployment, tracked: Deployment) {
    let hot = Arc::new(RecordCache::new(8 << 20, Coherence::Leased));
    let tasks = Tasks::new();
    tasks.run(track(tracked, Arc::clone(&hot), tasks.clone())).detach();
    let store = Arc::new(Cached::new(Arc::new(Redis::new(&direct, tasks.clone())), hot));
    // The numbers acknowledged to this instance, which must see them at once.
    let own: Arc<Vec<Mutex<(Id, i64)>>> =
        Arc::new((0..SESSIONS).map(|_| Mutex::new((Id::from_bytes([0; 16]), 0))).collect());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (world, store, own) = (Arc::clone(&world), Arc::clone(&store), Arc::clone(&own));
        running.spawn(async move {
            while world.tally.started.fetch_add(1, Ordering::Relaxed) < OPERATIONS {
                step(&world, &store, &own).await;
            }
        });
    }
    running.join_all().await;
    world.done.store(true, Ordering::Relaxed);
    let drained = tasks.drained(Duration::from_secs(5)).await;
    assert!(drained, "instance {number} drains");
}

async fn step(world: &World, store: &Cached, own: &[Mutex<(Id, i64)>]) {
    // As in production, a few sessions get most of the requests.
    let at = usize::try_from(random(if random(4) == 0 { SESSIONS as u64 } else { 20 })).unwrap();
    match random(1000) {
        0..850 => read(world, store, at, own).await,
        850..950 => read_destroyed(world, store).await,
        950..998 => increment(world, store, at, own).await,
        _ => destroy(world, store, at).await,
    }
}

async fn read(world: &World, store: &Cached, at: usize, own: &[Mutex<(Id, i64)>]) {
    let (tally, name) = (&world.tally, name());
    let began = Instant::now();
    let (id, known, destroyed) = {
        let slot = world.slots[at].lock().unwrap();
        let old = |(_, acknowledged): &&(i64, Instant)| *acknowledged + LEASE <= began;
        let known = slot.numbers.iter().filter(old).map(|(number, _)| *number).max();
        (slot.id, known.unwrap_or(0), slot.destroyed)
    };
    let mine = Some(*own[at].lock().unwrap()).filter(|(of, _)| *of == id).map_or(0, |(_, n)| n);
    tally.reads.fetch_add(1, Ordering::Relaxed);
    match through_cache(store, id, Want::Value(&name)).await {
        Ok(Some(Entry::Live(record))) => {
            let number = record.values.get(&name).map_or(0, |json| json.as_str().parse().unwrap());
            if number < known {
                tally.stale.fetch_add(1, Ordering::Relaxed);
            }
            if number < mine {
                tally.stale_of_own.fetch_add(1, Ordering::Relaxed);
            }
            world.slots[at].lock().unwrap().record_staleness(id, number, began, tally);
        }
        Ok(_) => {
            // `destroy` sets the flag before the call, so a missing session without it is a wrong
            // read.
            let slot = world.slots[at].lock().unwrap();
            if destroyed.is_none() && slot.id == id && slot.destroyed.is_none() {
                tally.stale.fetch_add(1, Ordering::Relaxed);
            }
        }
        Err(_) => {
            tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Loads an entry as a caller does that accepts a cached one.
async fn through_cache(
    store: &Cached,
    id: Id,
    want: Want<'_>,
) -> Result<Option<Entry>, cloakroom::store::Error> {
    match store.cached(id, want) {
        Some(entry) => Ok(Some(entry)),
        None => store.load(id, want).await,
    }
}

async fn read_destroyed(world: &World, store: &Cached) {
    let began = Instant::now();
    let dead = {
        let dead = world.destroyed.lock().unwrap();
        let count = dead.len();
        if count == 0 { None } else { Some(dead[usize::try_from(random(count as u64)).unwrap()]) }
    };
    let Some((id, acknowledged)) = dead else { return };
    world.tally.reads.fetch_add(1, Ordering::Relaxed);
    match through_cache(store, id, Want::Meta).await {
        Ok(Some(Entry::Live(_))) if acknowledged + LEASE <= began => {
            world.tally.resurrected.fetch_add(1, Ordering::Relaxed);
        }
        Ok(_) => {}
        Err(_) => {
            world.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn increment(world: &World, store: &Cached, at: usize, own: &[Mutex<(Id, i64)>]) {
    let (tally, name, policy) = (&world.tally, name(), Policy::default());
    let id = world.slots[at].lock().unwrap().id;
    let patch = Patch::of(Op::Increment(name.clone(), 1));
    tally.writes.fetch_add(1, Ordering::Relaxed);
    match store.patch(id, change(&patch, &policy), Want::Value(&name)).await {
        Ok(Ok(applied)) => {
            let number = applied.record.values[&name].as_str().parse().unwrap();
            let mut mine = own[at].lock().unwrap();
            if mine.0 != id {
                *mine = (id, 0);
            }
            mine.1 = mine.1.max(number);
            let mut slot = world.slots[at].lock().unwrap();
            if slot.id == id {
                slot.acknowledge(number);
            }
        }
        // Another task has destroyed it in the meantime.
        Ok(Err(_)) => {}
        Err(_) => {
            tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Destroys a session and replaces it with a new one.
async fn destroy(world: &World, store: &Cached, at: usize) {
    let id = {
        let mut slot = world.slots[at].lock().unwrap();
        if slot.destroyed.is_some() {
            return;
        }
        slot.destroyed = Some(Instant::now());
        slot.id
    };
    let patch = Patch::of_destroy();
    let policy = Policy::default();
    world.tally.destroys.fetch_add(1, Ordering::Relaxed);
    match store.patch(id, change(&patch, &policy), Want::Meta).await {
        Ok(Ok(_)) => {
            let mut dead = world.destroyed.lock().unwrap();
            dead.push_back((id, Instant::now()));
            if dead.len() > 20 {
                dead.pop_front();
            }
        }
        Ok(Err(refusal)) => panic!("{refusal:?}"),
        Err(error) => panic!("{error:?}"),
    }
    let next = create_session(store).await;
    *world.slots[at].lock().unwrap() = Slot::fresh(next);
}

fn change<'a>(patch: &'a Patch, policy: &'a Policy) -> Change<'a> {
    Change::of_service(patch, policy, Clock::System.now())
}

async fn create_session(store: &dyn Store) -> Id {
    let id = Id::from_bytes(cloakroom::random::bytes());
    let record = Record { meta: Meta::new(0, Clock::System.now()), values: Values::new() };
    store.create(id, &record, &Policy::default()).await.unwrap();
    id
}

fn name() -> Key {
    Key::new("n").unwrap()
}

impl Slot {
    fn fresh(id: Id) -> Self {
        Self { id, numbers: VecDeque::new(), destroyed: None }
    }

    fn acknowledge(&mut self, number: i64) {
        self.numbers.push_back((number, Instant::now()));
        if self.numbers.len() > 256 {
            // The remaining ones are greater.
            self.numbers.pop_front();
        }
    }

    /// Records the staleness of a read: the time from the acknowledgement of the first number that
    /// it missed to its start.
    fn record_staleness(&self, id: Id, number: i64, began: Instant, tally: &Tally) {
        if self.id != id {
            return;
        }
        let missed = self.numbers.iter().filter(|(other, at)| *other > number && *at < began);
        if let Some(age) = missed.map(|(_, at)| began.duration_since(*at)).max() {
            let micros = u64::try_from(age.as_micros()).unwrap();
            tally.oldest.fetch_max(micros, Ordering::Relaxed);
        }
    }
}

impl Tally {
    fn measurement(&self, commands: u64) -> Measurement {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (stale, own, resurrected) =
            (count(&self.stale), count(&self.stale_of_own), count(&self.resurrected));
        Measurement {
            text: format!(
                "{} reads, {} increments, {} destroys; {stale} reads more than 50 ms stale, the worst \
                 {} µs; {own} without the instance's own writes; {resurrected} of a destroyed \
                 session; {} calls failed; {commands} commands for the reads and writes at the server",
                count(&self.reads),
                count(&self.writes),
                count(&self.destroys),
                count(&self.oldest),
                count(&self.failed),
            ),
            passed: stale == 0 && own == 0 && resurrected == 0 && count(&self.failed) == 0,
        }
    }
}

fn deployment(port: u16) -> Deployment {
    let address = Address::Tcp { host: "127.0.0.1".to_owned(), port };
    let config = Config {
        topology: Topology::Server(address),
        user: None,
        password: None,
        sentinel_password: None,
        database: 0,
        tls: None,
        key_prefix: "cloakroom:".to_owned(),
        durable_destroy: DurableDestroy::Off,
    };
    Deployment::new(&config, TIMEOUT)
}

/// Returns the number of loads and scripts that the server has executed.
fn commands(server: &RedisServer) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).text();
    let counted = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let wanted = ["hgetall", "evalsha", "eval"].contains(&name);
        wanted.then(|| rest.split(',').next().unwrap().parse::<u64>().unwrap())
    };
    stats.lines().filter_map(counted).sum()
}

fn random(below: u64) -> u64 {
    use std::cell::Cell;
    thread_local! {
        static STATE: Cell<u64> = Cell::new(u64::from_be_bytes(cloakroom::random::bytes()) | 1);
    }
    // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x % below.max(1)
    })
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
