//! The store on real servers: the conformance suite, and what only Redis has.
//!
//! Connecting, reconnecting and failover are tested in `src/redis/tests`.

mod access;
mod cached;
mod commands;
mod faults;
mod index;
mod keys;
mod older;
mod records;
mod topologies;
mod values;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::redis::config::{Address, Topology};
use crate::redis::tests::kit::RedisServer;
use crate::redis::tests::tools::needs;
use crate::session::patch::{Authority, Op, Patch, Proof, Rotate, Tombstone};
use crate::session::record::Values;
use crate::store::config::{self, DurableDestroy};
use crate::store::conformance::{Fresh, json, key, new_id, now, patch, record, runtime, suite};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the settings of a store at this address, without a user.
fn settings(address: Address) -> config::Redis {
    config::Redis {
        topology: Topology::Server(address),
        user: None,
        password: None,
        sentinel_password: None,
        database: 0,
        tls: None,
        key_prefix: "test:".to_owned(),
        durable_destroy: DurableDestroy::Auto,
    }
}

fn local(port: u16) -> Address {
    Address::Tcp { host: "127.0.0.1".to_owned(), port }
}

fn store_of(config: &config::Redis, timeout: Duration) -> Redis {
    Redis::new(&Deployment::new(config, timeout), Tasks::new())
}

fn store_at(port: u16, timeout: Duration) -> Redis {
    store_of(&settings(local(port)), timeout)
}

fn store_on(server: &RedisServer) -> Redis {
    store_at(server.port(), TIMEOUT)
}

fn fresh() -> Fresh {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let shared = settings(local(RedisServer::shared().port()));
    let config = config::Redis { key_prefix: format!("test[{number}]*:"), ..shared };
    Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
}

suite!(fresh, needs "redis-server");

/// Corrupts records, in one of several ways, on a separate connection.
fn spoiler(
    config: &config::Redis,
) -> impl Fn(Id, usize) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + use<> {
    let other = Arc::new(store_of(config, TIMEOUT));
    move |id, way| {
        let other = Arc::clone(&other);
        Box::pin(async move {
            let key = other.key(id);
            match way {
                0 => drop(raw_at(&other, &key, &["HSET", &key, "s", "soon"]).await),
                1 => drop(raw_at(&other, &key, &["HSET", &key, "id", "no id"]).await),
                2 => drop(raw_at(&other, &key, &["HSET", &key, "m", "soon"]).await),
                3 => drop(raw_at(&other, &key, &["HDEL", &key, "g"]).await),
                4 => drop(raw_at(&other, &key, &["HSET", &key, "p", "\u{7}"]).await),
                _ => {
                    raw_at(&other, &key, &["DEL", &key]).await;
                    raw_at(&other, &key, &["HSET", &key, "x", "1"]).await;
                    raw_at(&other, &key, &["DEL", &key]).await;
                    raw_at(&other, &key, &["ZADD", &key, "1", "a"]).await;
                }
            }
        })
    }
}

const POLICY: Policy = Policy {
    idle_timeout: Duration::from_hours(1),
    absolute_timeout: None,
    unproven_timeout: None,
    rotate_every: None,
    rotation_grace: Duration::from_mins(2),
    on_replay: crate::session::policy::OnReplay::Ignore,
    max_per_principal: None,
    at_max_per_principal: crate::session::policy::AtMax::EvictOldest,
    expire_at_browser_close: false,
    create: crate::session::policy::Create::OnWrite,
    touch: crate::session::policy::Touch::Request,
    touch_interval: Duration::from_mins(1),
    max_bytes: 1000,
    max_values: 10,
    record_client: false,
    new_sessions_per_address: None,
    request_token_linger: Duration::from_mins(1),
};

fn ada() -> Principal {
    Principal::new("ada").expect("a principal")
}

fn record_of_ada(now: Timestamp) -> Record {
    let mut one = record(now, Values::new());
    one.meta.principal = Some(ada());
    one
}

fn increment(by: i64) -> Patch {
    Patch::of(Op::Increment(key("n"), by))
}

/// Sends a command on the connection of a store.
async fn raw(store: &Redis, words: &[&str]) -> Value {
    let mut command = Cmd::new();
    command.arg(words);
    let answer = store.servers.ask("", &command, store.deadline()).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error:?}"))
}

/// Sends a command to the server that has `key`.
async fn raw_at(store: &Redis, key: &str, words: &[&str]) -> Value {
    let mut command = Cmd::new();
    command.arg(words);
    let answer = store.servers.ask(key, &command, store.deadline()).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error:?}"))
}

/// Waits until the server of a store replies again.
async fn wait_until_reconnected(store: &Redis) {
    let start = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(start.elapsed() < Duration::from_secs(20), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn number(store: &Redis, words: &[&str]) -> i64 {
    match raw(store, words).await {
        Value::Int(number) => number,
        Value::Double(number) => format!("{number:.0}").parse().expect("an integer"),
        other => panic!("{words:?}: {other:?}"),
    }
}

/// Creates a session with this record under a new id.
async fn create(store: &Redis, record: &Record) -> Id {
    let id = new_id();
    let created = store.create(id, record, &POLICY).await;
    assert_eq!(created.expect("created"), Created::Done);
    id
}

fn touch(at: Timestamp) -> Use {
    Use { generation: 1, touches: true, sets_cookie: false, proves: Proof::None, now: at }
}

/// Applies a patch, which must not be refused.
async fn apply(store: &Redis, id: Id, one: &Patch, want: Want<'_>) {
    let answer = patch(store, id, one, want).await;
    answer.expect("a reply").expect("applied");
}
