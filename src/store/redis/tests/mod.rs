//! The suite, and what only a server of its own can do.

mod cached;
mod keys;
#[path = "../../../../tests/it/support/redis/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the kit of other tests too")]
mod kit;
mod older;
#[path = "../../../../tests/it/support/tools.rs"]
mod tools;
mod topologies;

use std::sync::atomic::{AtomicUsize, Ordering};

use self::kit::RedisServer;
use self::tools::needs;
use super::*;
use crate::redis::config::{Address, Password, Topology};
use crate::secret::Secret;
use crate::session::patch::{Authority, Op, Patch, Tombstone};
use crate::session::record::Values;
use crate::store::config::{self, DurableDestroy};
use crate::store::conformance::{Fresh, json, key, new_id, now, patch, record, runtime, suite};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A deployment at this address, without a user.
fn server(address: Address) -> config::Redis {
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
    store_of(&server(local(port)), timeout)
}

fn store_on(server: &RedisServer) -> Redis {
    store_at(server.port(), TIMEOUT)
}

fn fresh() -> Fresh {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let shared = server(local(RedisServer::shared().port()));
    let config = config::Redis { key_prefix: format!("test[{number}]*:"), ..shared };
    Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
}

suite!(fresh, needs "redis-server");

/// Makes records unreadable, in one of several ways, on a connection of the test's own.
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

fn of_ada(now: Timestamp) -> Record {
    let mut one = record(now, Values::new());
    one.meta.principal = Some(ada());
    one
}

fn add(by: i64) -> Patch {
    Patch::of(Op::Increment(key("n"), by))
}

/// A command of the test's own.
async fn raw(store: &Redis, words: &[&str]) -> Value {
    let mut command = Cmd::new();
    command.arg(words);
    let answer = store.servers.ask("", &command, store.deadline()).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error:?}"))
}

/// The same where there are several servers: at the one that has `key`.
async fn raw_at(store: &Redis, key: &str, words: &[&str]) -> Value {
    let mut command = Cmd::new();
    command.arg(words);
    let answer = store.servers.ask(key, &command, store.deadline()).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error:?}"))
}

/// Waits until a store has its server back.
async fn healed(store: &Redis) {
    let start = Instant::now();
    while let Err(error) = store.ping().await {
        assert!(start.elapsed() < Duration::from_secs(20), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until so many replicas have what the primary has; a step of it is short of the deadline.
async fn replicated(store: &Redis, replicas: i64) {
    let start = Instant::now();
    while number(store, &["WAIT", &replicas.to_string(), "100"]).await < replicas {
        assert!(start.elapsed() < Duration::from_secs(20), "the replicas stay behind");
    }
}

/// A connection that is not the store's.
fn connection_to(server: &RedisServer, password: Option<&str>) -> redis::Connection {
    let password = password.map_or(String::new(), |password| format!(":{password}@"));
    let client = redis::Client::open(format!("redis://{password}127.0.0.1:{}/", server.port()));
    client.expect("a URL").get_connection().expect("a connection")
}

async fn number(store: &Redis, words: &[&str]) -> i64 {
    match raw(store, words).await {
        Value::Int(number) => number,
        Value::Double(number) => format!("{number:.0}").parse().expect("an integer"),
        other => panic!("{words:?}: {other:?}"),
    }
}

async fn made(store: &Redis, record: &Record) -> Id {
    let id = new_id();
    let created = store.create(id, record, &POLICY).await;
    assert_eq!(created.expect("created"), Created::Done);
    id
}

/// How often commands have run since the last call of this, those of scripts too; without what is
/// of no interest here.
async fn sent(store: &Redis) -> Vec<String> {
    let text: String =
        redis::from_redis_value(raw(store, &["INFO", "commandstats"]).await).expect("text");
    raw(store, &["CONFIG", "RESETSTAT"]).await;
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) =
            line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls="))
        else {
            continue;
        };
        if ["evalsha", "hgetall", "hmget", "script|load"].contains(&name) {
            let count = rest.split(',').next().unwrap_or_default();
            calls.push(format!("{count} {name}"));
        }
    }
    calls.sort();
    calls
}

async fn scripts_sent(store: &Redis) -> String {
    let sent = sent(store).await.into_iter();
    sent.filter(|calls| calls.ends_with("evalsha")).collect()
}

fn touch(at: Timestamp) -> Use {
    Use { generation: 1, touches: true, sets_cookie: false, proves: false, now: at }
}

/// Applies a patch that must be taken.
async fn apply(store: &Redis, id: Id, one: &Patch, want: Want<'_>) {
    let answer = patch(store, id, one, want).await;
    answer.expect("answered").expect("applied");
}

/// A store on this server, which knows the scripts already.
async fn warm(server: &RedisServer) -> Redis {
    let store = store_on(server);
    let id = made(&store, &of_ada(now())).await;
    apply(&store, id, &add(1), Want::Meta).await;
    let used = store.record_use(id, touch(now()), &POLICY).await;
    used.expect("answered");
    sent(&store).await;
    store
}

#[test]
fn calls_are_one_command() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let id = made(&store, &record(now(), Values::new())).await;
        assert_eq!(sent(&store).await, ["1 evalsha"]);
        apply(&store, id, &add(1), Want::Values).await;
        // The others are the script's own.
        assert_eq!(sent(&store).await, ["1 evalsha", "1 hgetall", "1 hmget"]);
        let used = store.record_use(id, touch(now()), &POLICY).await;
        used.expect("answered");
        assert_eq!(sent(&store).await, ["1 evalsha", "1 hmget"]);
        store.load(id, Want::Values).await.expect("loaded");
        assert_eq!(sent(&store).await, ["1 hgetall"]);
        for want in [Want::Meta, Want::Value(&key("n"))] {
            store.load(id, want).await.expect("loaded");
            assert_eq!(sent(&store).await, ["1 hmget"]);
        }
    });
}

#[test]
fn log_in_takes_two_commands() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let id = made(&store, &of_ada(now())).await;
        assert_eq!(scripts_sent(&store).await, "2 evalsha");
        let later = touch(now() + Duration::from_mins(2));
        let used = store.record_use(id, later, &POLICY).await;
        used.expect("answered");
        assert_eq!(scripts_sent(&store).await, "1 evalsha", "the index knows a later end");
        let log_in = Patch { principal: Some(ada()), ..Patch::default() };
        apply(&store, id, &log_in, Want::Meta).await;
        assert_eq!(scripts_sent(&store).await, "2 evalsha");
    });
}

#[test]
fn index_is_a_superset_of_the_records() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let begin = now();
        let id = made(&store, &of_ada(begin)).await;
        let index = store.index_key(&ada());
        for minutes in (0..240).step_by(7) {
            let at = begin + Duration::from_mins(minutes);
            let used = store.record_use(id, touch(at), &POLICY).await;
            let Some(Entry::Live(found)) = used.expect("answered") else {
                panic!("no session");
            };
            let ends = POLICY.ends_at(&found.meta).as_millis();
            let record_ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
            assert_eq!(record_ends, ends);
            let score = number(&store, &["ZSCORE", &index, &id.to_string()]).await;
            assert!(score >= ends, "{score} {ends}");
            assert!(number(&store, &["PEXPIRETIME", &index]).await >= score);
        }
        // A patch may give a session more time at once than the index knows of.
        let far = begin + Duration::from_hours(9_000);
        let longer = Patch {
            expiry: Some(ExpiryChange::Own(crate::session::record::Expiry::At(far))),
            ..Patch::default()
        };
        apply(&store, id, &longer, Want::Meta).await;
        assert!(number(&store, &["ZSCORE", &index, &id.to_string()]).await >= far.as_millis());
    });
}

#[test]
fn index_forgets_only_expired_members() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = made(&store, &of_ada(now())).await;
        let index = store.index_key(&ada());
        let (over, coming) = (new_id().to_string(), new_id().to_string());
        let ago = (now() - Duration::from_hours(1)).as_millis().to_string();
        let soon = (now() + Duration::from_hours(1)).as_millis().to_string();
        raw(&store, &["ZADD", &index, &ago, &over, &soon, &coming]).await;
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page.sessions.len(), 1);
        assert_eq!(page.sessions[0].0, id);
        assert_eq!(number(&store, &["ZCARD", &index]).await, 2);
        assert_eq!(raw(&store, &["ZSCORE", &index, &over]).await, Value::Nil);
    });
}

#[test]
fn copied_record_breaks_no_list() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let (id, copy) = (made(&store, &of_ada(now())).await, made(&store, &of_ada(now())).await);
        raw(&store, &["COPY", &store.key(id), &store.key(copy), "REPLACE"]).await;
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!((page.sessions[0].0, page.sessions.len()), (id, 1));
        assert_eq!(page.unreadable, [copy]);
        assert!(store.remove(copy).await.expect("removed").is_some());
    });
}

#[test]
fn unreadable_index_does_not_prevent_log_ins() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let index = store.index_key(&ada());
        raw(&store, &["SET", &index, "text"]).await;
        assert_eq!(store.list(Some(&ada()), None, 10).await.expect("listed"), Page::default());
        let id = made(&store, &of_ada(now())).await;
        // Members that are no session's are passed over.
        raw(&store, &["ZADD", &index, "inf", "text", "1e300", "more"]).await;
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page.sessions.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
    });
}

#[test]
fn probes_end_by_themselves() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let since = Instant::now();
        for _ in 0..5 {
            store.probe(now()).await.expect("written");
        }
        while number(&store, &["DBSIZE"]).await > 0 {
            assert!(since.elapsed() < Duration::from_secs(20));
        }
        raw(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
        let full = store.probe(now()).await;
        assert!(matches!(full, Err(Error::Full)), "{full:?}");
        store.ping().await.expect("still read");
    });
}

#[test]
fn increment_leaves_no_extra_field() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = made(&store, &record(now(), Values::new())).await;
        for (by, fits) in [(i64::MAX, true), (1, false), (i64::MIN, true), (0, true)] {
            let answer = patch(&store, id, &add(by), Want::Meta).await.expect("answered");
            assert_eq!(answer.is_ok(), fits, "{by}");
            assert_eq!(number(&store, &["HEXISTS", &store.key(id), "+"]).await, 0);
        }
    });
}

#[test]
fn client_reconnects_to_a_restarted_server() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let port = server.port();
    let store = store_on(&server);
    runtime().block_on(async {
        let first = record(now(), Values::new());
        let id = made(&store, &first).await;
        apply(&store, id, &add(1), Want::Meta).await;
        drop(server);
        // Let the connection hear of it.
        while store.load(id, Want::Meta).await.is_ok() {}
        let read = store.load(id, Want::Meta).await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
        let written = patch(&store, id, &add(1), Want::Meta).await;
        assert!(matches!(written, Err(Error::Unavailable(_))), "{written:?}");
        let _again = RedisServer::start_at(Some(port), &[]);
        healed(&store).await;
        // A new server does not know the scripts.
        let id = made(&store, &first).await;
        apply(&store, id, &add(1), Want::Meta).await;
    });
}

#[test]
fn third_timeout_replaces_the_connection() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_at(server.port(), Duration::from_millis(300));
    runtime().block_on(async {
        let id = made(&store, &record(now(), Values::new())).await;
        apply(&store, id, &add(1), Want::Meta).await;
        let connection = number(&store, &["CLIENT", "ID"]).await;
        let mut other = connection_to(&server, None);
        raw(&store, &["CLIENT", "PAUSE", "600000", "WRITE"]).await;
        for _ in 0..3 {
            let changed = patch(&store, id, &add(1), Want::Meta).await;
            assert!(matches!(changed, Err(Error::OutcomeUnknown(_))), "{changed:?}");
        }
        let changed = patch(&store, id, &add(1), Want::Meta).await;
        assert!(matches!(changed, Err(Error::Unavailable(_))), "not sent: {changed:?}");
        healed(&store).await;
        assert!(number(&store, &["CLIENT", "ID"]).await > connection);
        cmd("CLIENT").arg("UNPAUSE").exec(&mut other).expect("unpaused");
        apply(&store, id, &add(1), Want::Meta).await;
    });
}

#[test]
fn silent_server_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let store = store_at(port, Duration::from_millis(100));
    runtime().block_on(async {
        let one = record(now(), Values::new());
        let (first, second) = tokio::join!(
            store.create(new_id(), &one, &POLICY),
            store.create(new_id(), &one, &POLICY),
        );
        for created in [first, second] {
            assert!(matches!(created, Err(Error::Unavailable(_))), "{created:?}");
        }
    });
}

#[test]
fn full_server_refuses_changes() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = made(&store, &of_ada(now())).await;
        apply(&store, id, &add(1), Want::Meta).await;
        let before = store.load(id, Want::Values).await.expect("loaded");
        raw(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
        for one in [add(1), Patch::of(Op::Set(key("a"), json("1")))] {
            let changed = patch(&store, id, &one, Want::Meta).await;
            assert!(matches!(changed, Err(Error::Full)), "{changed:?}");
        }
        let created = store.create(new_id(), &of_ada(now()), &POLICY).await;
        assert!(matches!(created, Err(Error::Full)), "{created:?}");
        raw(&store, &["CONFIG", "SET", "maxmemory", "0"]).await;
        assert_eq!(store.load(id, Want::Values).await.expect("loaded"), before);
        apply(&store, id, &add(1), Want::Meta).await;
    });
}

#[test]
fn foreign_record_is_corrupt_not_missing() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = new_id();
        raw(&store, &["SET", &store.key(id), "text"]).await;
        let spoilt = made(&store, &record(now(), Values::new())).await;
        raw(&store, &["HSET", &store.key(spoilt), "s", "soon"]).await;
        for id in [id, spoilt] {
            for want in [Want::Meta, Want::Values] {
                let found = store.load(id, want).await;
                assert!(matches!(found, Err(Error::Corrupt(_))), "{found:?}");
            }
            let changed = patch(&store, id, &add(1), Want::Meta).await;
            assert!(matches!(changed, Err(Error::Corrupt(_))), "{changed:?}");
        }
    });
}

#[test]
fn errors_do_not_reveal_the_password() {
    needs!("redis-server");
    let server = RedisServer::start(&["--requirepass", "hunter2"]);
    let with = |password: &str| {
        let password = Some(Password::Fixed(Secret::new(password.to_owned())));
        let config = config::Redis { password, ..self::server(local(server.port())) };
        store_of(&config, TIMEOUT)
    };
    let store = with("hunter2");
    let wrong = with("hunter3");
    let anonymous = store_on(&server);
    runtime().block_on(async {
        let id = made(&store, &record(now(), Values::new())).await;
        for store in [&wrong, &anonymous] {
            let found = store.load(id, Want::Meta).await;
            assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
            let said = format!("{found:?} {store:?}");
            assert!(!said.contains("hunter"), "{said}");
        }
        raw(&store, &["REPLICAOF", "127.0.0.1", "1"]).await;
        for _ in 0..2 {
            let changed = patch(&store, id, &add(1), Want::Meta).await;
            assert!(matches!(changed, Err(Error::Unavailable(_))), "{changed:?}");
        }
        // Neither does it read from there: what it would find may be old.
        let found = store.load(id, Want::Meta).await;
        assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
        let mut other = connection_to(&server, Some("hunter2"));
        cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut other).expect("promoted");
        healed(&store).await;
        apply(&store, id, &add(1), Want::Meta).await;
    });
}

/// What docs/guides/operate/redis.md says is enough.
const ACCESS: &str = "+hello +auth +select +ping +role +info +time +evalsha +eval +exists +del \
                      +pexpireat +hget +hset +hdel +hmget +hgetall +hexists +hstrlen +hincrby \
                      +zadd +zscore +zrange +zrangebyscore +zrem +scan +wait +client|tracking";

/// A server with a user that may do this, and a deployment of that user.
fn server_with_access(access: &str) -> (RedisServer, Deployment) {
    let rules = "--user cloakroom on >hunter2 ~test:* -@all";
    let options: Vec<&str> = rules.split_whitespace().chain(access.split_whitespace()).collect();
    let server = RedisServer::start(&options);
    let config = config::Redis {
        user: Some("cloakroom".to_owned()),
        password: Some(Password::Fixed(Secret::new("hunter2".to_owned()))),
        ..self::server(local(server.port()))
    };
    let deployment = Deployment::new(&config, TIMEOUT);
    (server, deployment)
}

#[test]
fn documented_access_is_enough() {
    needs!("redis-server");
    let documented = include_str!("../../../../docs/guides/operate/redis.md");
    for command in ACCESS.split_whitespace() {
        assert!(documented.contains(command), "{command}");
    }
    let (server, deployment) = server_with_access(ACCESS);
    runtime().block_on(async {
        let survey = deployment.survey(&POLICY, now()).await;
        assert_eq!(survey.expect("looked at"), Survey::Keeps);
        let store = Redis::new(&deployment, Tasks::new());
        let id = made(&store, &of_ada(now())).await;
        apply(&store, id, &add(1), Want::Values).await;
        store.ping().await.expect("read");
        store.probe(now()).await.expect("written");
        store.remove(new_id()).await.expect("answered");
        for principal in [None, Some(&ada())] {
            assert_eq!(store.list(principal, None, 10).await.expect("listed").sessions.len(), 1);
        }
        store.exchange_keys(&[], now()).await.expect("answered");
        let own = Fingerprint::parse("0000000000000001");
        for _ in 0..2 {
            let known = store.exchange_keys(own.as_slice(), now()).await.expect("answered");
            assert!(matches!(known, KnownKeys::Known(_)), "{known:?}");
        }
        let mut other = connection_to(&server, None);
        let denied: Value = cmd("ACL").arg("LOG").query(&mut other).expect("a log");
        assert_eq!(denied, Value::Array(Vec::new()));
    });
}

#[test]
fn survey_names_the_refused_command() {
    needs!("redis-server");
    runtime().block_on(async {
        let (server, deployment) = server_with_access(&ACCESS.replace("+hset ", ""));
        let reply = match deployment.survey(&POLICY, now()).await {
            Err(SurveyError::Denied(reply)) => reply,
            other => panic!("{other:?}"),
        };
        assert!(reply.contains("hset"), "{reply}");
        let mut other = connection_to(&server, None);
        let mut allow = cmd("ACL");
        allow.arg("SETUSER").arg("cloakroom").arg("+hset").exec(&mut other).expect("allowed");
        let mut evict = cmd("CONFIG");
        evict.arg("SET").arg("maxmemory-policy").arg("volatile-lru");
        evict.exec(&mut other).expect("set");
        let survey = deployment.survey(&POLICY, now()).await.expect("looked at");
        assert_eq!(survey, Survey::Evicts("volatile-lru".to_owned()));
    });
}

#[test]
fn tombstones_expire() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = made(&store, &of_ada(now())).await;
        let destroy = Patch { destroy: true, ..Patch::default() };
        let change = Change {
            patch: &destroy,
            condition: None,
            authority: Authority::Request(1),
            policy: &POLICY,
            now: now(),
            touches: true,
            tombstone: Tombstone::Leave,
        };
        let applied = store.patch(id, change, Want::Meta).await.expect("answered");
        let Some(Entry::Ended { until }) = applied.expect("applied").entry else {
            panic!("no marker");
        };
        let ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
        assert_eq!(ends, until.as_millis());
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page, Page::default());
    });
}
