//! The suite over every shape that a deployment has, and what each can do wrong.

use std::sync::OnceLock;

use super::kit::{Authority, Cluster, Flaw, Sentinels};
use super::*;
use crate::redis::config::{ClientCertificate, Tls};

/// A deployment under a prefix that no other test has.
pub(super) fn apart(config: config::Redis) -> config::Redis {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    config::Redis { key_prefix: format!("apart[{number}]:"), ..config }
}

fn by_sentinels(sentinels: &Sentinels) -> config::Redis {
    let addresses = sentinels.sentinels().iter().map(|server| local(server.port())).collect();
    let topology =
        Topology::Sentinel { sentinels: addresses, service: Sentinels::SERVICE.to_owned() };
    config::Redis { topology, ..server(local(1)) }
}

/// A primary, its replicas and sentinels for all tests that break none of them.
pub(super) fn shared_sentinels() -> config::Redis {
    static SHARED: OnceLock<Sentinels> = OnceLock::new();
    by_sentinels(SHARED.get_or_init(Sentinels::start))
}

fn in_cluster(cluster: &Cluster) -> config::Redis {
    let nodes = cluster.nodes().iter().take(2).map(|node| local(node.port())).collect();
    config::Redis { topology: Topology::Cluster { nodes }, ..server(local(1)) }
}

mod sentinel {
    use super::*;

    fn fresh() -> Fresh {
        let config = apart(shared_sentinels());
        Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
    }

    suite!(fresh, needs "redis-server");
}

mod cluster {
    use super::*;

    fn fresh() -> Fresh {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        let config = in_cluster(SHARED.get_or_init(Cluster::start));
        let config = apart(config);
        Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
    }

    suite!(fresh, needs "redis-server");
}

/// What a store is for, once.
async fn serves(store: &Redis) {
    let id = made(store, &of_ada(now())).await;
    apply(store, id, &add(1), Want::Values).await;
    let listed = store.list(Some(&ada()), None, 10).await.expect("listed");
    assert!(listed.sessions.iter().any(|(listed, _)| *listed == id));
    assert!(store.remove(id).await.expect("removed").is_some());
}

#[test]
fn socket_and_database_work() {
    needs!("redis-server");
    let server = RedisServer::unix(&[]);
    let address = Address::Unix(server.socket());
    let store = store_of(&config::Redis { database: 3, ..super::server(address) }, TIMEOUT);
    runtime().block_on(serves(&store));
    assert!(server.info("db3").contains("keys="));
}

#[test]
fn tls_requires_the_right_certificates() {
    needs!("redis-server");
    let authority = Authority::new();
    let client = authority.client(Flaw::None);
    let store_with = |server: &RedisServer, tls| {
        let address = local(server.port());
        store_of(&config::Redis { tls: Some(tls), ..super::server(address) }, TIMEOUT)
    };
    let tls = |ca: &Authority| Tls {
        ca: Some(ca.certificate()),
        client: Some(ClientCertificate {
            certificate: client.certificate.clone(),
            key: client.key.clone(),
        }),
    };
    runtime().block_on(async {
        let good = RedisServer::tls(&authority, &authority.server(Flaw::None), &[]);
        serves(&store_with(&good, tls(&authority))).await;
        let other = Authority::new();
        let without = Tls { client: None, ..tls(&authority) };
        let plain = store_at(good.port(), TIMEOUT);
        let mut refused = vec![store_with(&good, tls(&other)), store_with(&good, without), plain];
        let flawed: Vec<RedisServer> = [Flaw::Expired, Flaw::WrongName]
            .into_iter()
            .map(|flaw| RedisServer::tls(&authority, &authority.server(flaw), &[]))
            .collect();
        refused.extend(flawed.iter().map(|server| store_with(server, tls(&authority))));
        for store in refused {
            let answer = store.ping().await;
            assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
        }
    });
}

#[test]
fn changed_password_file_needs_no_restart() {
    needs!("redis-server");
    let server = RedisServer::start(&["--requirepass", "first"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "first\n").expect("written");
    let password = Some(Password::File(file.clone()));
    let config = config::Redis { password, ..super::server(local(server.port())) };
    let store = store_of(&config, Duration::from_millis(500));
    runtime().block_on(async {
        serves(&store).await;
        raw(&store, &["CONFIG", "SET", "requirepass", "second"]).await;
        let mut other = connection_to(&server, Some("second"));
        cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut other).expect("killed");
        while store.ping().await.is_ok() {}
        let answer = store.ping().await.expect_err("the old password");
        assert!(!format!("{answer:?}").contains("first"), "{answer:?}");
        std::fs::write(&file, "second\n").expect("written");
        healed(&store).await;
        serves(&store).await;
    });
}

#[test]
fn destroy_reports_the_replica() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let config = server(local(primary.port()));
    // What will not be confirmed is not waited for long.
    let short = Duration::from_millis(500);
    let with = |durable_destroy, timeout| {
        store_of(&config::Redis { durable_destroy, ..config.clone() }, timeout)
    };
    let destroy = Patch { destroy: true, ..Patch::default() };
    runtime().block_on(async {
        let ended = async |durable, how: &str, timeout| {
            let store = with(durable, timeout);
            let id = made(&store, &record(now(), Values::new())).await;
            let replicated = if how == "remove" {
                store.remove(id).await.expect("removed").expect("a session")
            } else {
                let applied = patch(&store, id, &destroy, Want::Meta).await;
                applied.expect("answered").expect("applied").replicated
            };
            assert_eq!(store.load(id, Want::Meta).await.expect("loaded").and_then(live), None);
            replicated
        };
        for how in ["remove", "patch"] {
            assert_eq!(ended(DurableDestroy::Auto, how, TIMEOUT).await, Replicated::NotAsked);
            assert_eq!(ended(DurableDestroy::On, how, short).await, Replicated::No);
        }
        let replica = RedisServer::replica_of(&primary);
        for how in ["remove", "patch"] {
            assert_eq!(ended(DurableDestroy::Auto, how, TIMEOUT).await, Replicated::Yes);
            assert_eq!(ended(DurableDestroy::Off, how, TIMEOUT).await, Replicated::NotAsked);
        }
        replica.stop();
        assert_eq!(ended(DurableDestroy::Auto, "remove", short).await, Replicated::No);
        replica.cont();
    });
}

fn live(entry: Entry) -> Option<Record> {
    match entry {
        Entry::Live(record) => Some(record),
        Entry::Ended { .. } => None,
    }
}

#[test]
fn promoted_replica_is_found() {
    needs!("redis-server");
    let sentinels = Sentinels::start();
    let store = store_of(&by_sentinels(&sentinels), Duration::from_secs(5));
    runtime().block_on(async {
        let id = made(&store, &record(now(), Values::new())).await;
        apply(&store, id, &add(1), Want::Meta).await;
        replicated(&store, 2).await;
        sentinels.failover();
        // What the old primary accepts until it learns of it is lost.
        sentinels.wait_until_whole();
        healed(&store).await;
        apply(&store, id, &add(1), Want::Meta).await;
        replicated(&store, 2).await;
        // And one that died, whose sentinels have to see it first.
        let dead = sentinels.primary();
        dead.kill();
        sentinels.wait_for_primary_other_than(dead.port());
        healed(&store).await;
        let found = store.load(id, Want::Value(&key("n"))).await.expect("loaded");
        let n = found.and_then(live).and_then(|record| record.values.get(&key("n")).cloned());
        assert_eq!(n, Some(json("2")));
    });
}

#[test]
fn calls_follow_a_moving_slot() {
    needs!("redis-server");
    let cluster = Cluster::start();
    let store = store_of(&in_cluster(&cluster), TIMEOUT);
    runtime().block_on(async {
        let id = made(&store, &record(now(), Values::new())).await;
        let slot = cluster.slot_of(&store.key(id));
        let owner = cluster.primary_of(slot).expect("an owner").port();
        // The first three are the primaries.
        let target = cluster.nodes()[..3].iter().find(|node| node.port() != owner);
        let target = target.expect("another primary");
        let migration = cluster.migration(slot, target);
        let mut expected = 0;
        let mut step = async |store: &Redis| {
            apply(store, id, &add(1), Want::Meta).await;
            expected += 1;
            let found = store.load(id, Want::Values).await.expect("loaded");
            let values = found.and_then(live).expect("a session").values;
            assert_eq!(values.get(&key("n")), Some(&json(&expected.to_string())));
            let listed = store.list(None, None, 100).await;
            assert!(listed.is_ok(), "{listed:?}");
        };
        step(&store).await;
        migration.begin();
        step(&store).await;
        assert_eq!(migration.move_keys(10), 1);
        step(&store).await;
        migration.finish();
        step(&store).await;
        step(&store).await;
    });
}

#[test]
fn frozen_primary_is_replaced_and_blocks_no_other() {
    needs!("redis-server");
    let cluster = Cluster::start();
    let store = store_of(&in_cluster(&cluster), Duration::from_millis(300));
    runtime().block_on(async {
        let begun = record(now(), Values::new());
        let (mut frozen, mut others) = (None, Vec::new());
        while frozen.is_none() || others.len() < 5 {
            let id = made(&store, &begun).await;
            let slot = cluster.slot_of(&store.key(id));
            if cluster.primary_of(slot).map(RedisServer::port) == Some(cluster.nodes()[0].port()) {
                frozen = Some(id);
            } else {
                others.push(id);
            }
        }
        let frozen = frozen.expect("one");
        cluster.nodes()[0].stop();
        let start = Instant::now();
        while store.load(frozen, Want::Meta).await.is_err() {
            for id in &others {
                assert!(store.load(*id, Want::Meta).await.is_ok(), "held up");
            }
            assert!(start.elapsed() < Duration::from_secs(20), "not replaced");
        }
        apply(&store, frozen, &add(1), Want::Meta).await;
        cluster.nodes()[0].cont();
        cluster.wait_until_whole();
        apply(&store, frozen, &add(1), Want::Meta).await;
    });
}

#[test]
fn mismatched_reply_closes_the_connection() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_at(server.port(), Duration::from_millis(500));
    runtime().block_on(async {
        let one = made(&store, &record(now(), [(key("who"), json("1"))].into())).await;
        let other = made(&store, &record(now(), [(key("who"), json("2"))].into())).await;
        // What the other's question would be answered, under this one's name.
        let stolen = store.servers.ask("", &hmget(&store.key(other)), store.deadline()).await;
        let stolen = stolen.expect("answered");
        assert!(fields::is_about(&stolen, other));
        assert!(!fields::is_about(&stolen, one));
        let all = cmd("HGETALL").arg(store.key(other)).clone();
        let stolen = store.servers.ask("", &all, store.deadline()).await.expect("answered");
        assert!(!fields::is_about(&stolen, one));
        let connection = number(&store, &["CLIENT", "ID"]).await;
        assert!(store.check(one, &stolen).is_err());
        healed(&store).await;
        assert!(number(&store, &["CLIENT", "ID"]).await > connection);
        // So do the scripts' answers.
        let used = store.record_use(one, touch(now()), &POLICY).await.expect("answered");
        assert!(used.is_some());
    });
}
