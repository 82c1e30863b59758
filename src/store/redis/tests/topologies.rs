//! Deployments with sentinels, replicas or a cluster.

use std::sync::OnceLock;

use super::*;
use crate::redis::tests::kit::{Cluster, Sentinels};

/// Returns a deployment with a key prefix of its own.
pub(super) fn with_own_prefix(config: config::Redis) -> config::Redis {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    config::Redis { key_prefix: format!("own[{number}]:"), ..config }
}

fn by_sentinels(sentinels: &Sentinels) -> config::Redis {
    let addresses = sentinels.sentinels().iter().map(|server| local(server.port())).collect();
    let topology =
        Topology::Sentinel { sentinels: addresses, service: Sentinels::SERVICE.to_owned() };
    config::Redis { topology, ..settings(local(1)) }
}

/// Returns a primary, its replicas and sentinels that are shared by tests which stop none of them.
pub(super) fn shared_sentinels() -> config::Redis {
    static SHARED: OnceLock<Sentinels> = OnceLock::new();
    by_sentinels(SHARED.get_or_init(Sentinels::start))
}

fn in_cluster(cluster: &Cluster) -> config::Redis {
    let nodes = cluster.nodes().iter().take(2).map(|node| local(node.port())).collect();
    config::Redis { topology: Topology::Cluster { nodes }, ..settings(local(1)) }
}

mod sentinel {
    use super::*;

    fn fresh() -> Fresh {
        let config = with_own_prefix(shared_sentinels());
        Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
    }

    suite!(fresh, needs "redis-server");
}

mod cluster {
    use super::*;

    fn fresh() -> Fresh {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        let config = in_cluster(SHARED.get_or_init(Cluster::start));
        let config = with_own_prefix(config);
        Fresh::new(store_of(&config, TIMEOUT), ()).spoiled_by(spoiler(&config))
    }

    suite!(fresh, needs "redis-server");
}

#[test]
fn destroy_reports_the_replica() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let config = settings(local(primary.port()));
    // For destroys that no replica confirms.
    let short = Duration::from_millis(500);
    let with = |durable_destroy, timeout| {
        store_of(&config::Redis { durable_destroy, ..config.clone() }, timeout)
    };
    let destroy = Patch { destroy: true, ..Patch::default() };
    runtime().block_on(async {
        let destroyed = async |durable, how: &str, timeout| {
            let store = with(durable, timeout);
            let id = create(&store, &record(now(), Values::new())).await;
            let replicated = if how == "remove" {
                store.remove(id).await.expect("removed").expect("a session")
            } else {
                let applied = patch(&store, id, &destroy, Want::Meta).await;
                applied.expect("a reply").expect("applied").replicated
            };
            assert_eq!(store.load(id, Want::Meta).await.expect("loaded").and_then(live), None);
            replicated
        };
        for how in ["remove", "patch"] {
            assert_eq!(destroyed(DurableDestroy::Auto, how, TIMEOUT).await, Replicated::NotAsked);
            assert_eq!(destroyed(DurableDestroy::On, how, short).await, Replicated::No);
        }
        let replica = RedisServer::replica_of(&primary);
        for how in ["remove", "patch"] {
            assert_eq!(destroyed(DurableDestroy::Auto, how, TIMEOUT).await, Replicated::Yes);
            assert_eq!(destroyed(DurableDestroy::Off, how, TIMEOUT).await, Replicated::NotAsked);
        }
        replica.stop();
        assert_eq!(destroyed(DurableDestroy::Auto, "remove", short).await, Replicated::No);
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
fn calls_follow_a_moving_slot() {
    needs!("redis-server");
    let cluster = Cluster::start();
    let store = store_of(&in_cluster(&cluster), TIMEOUT);
    runtime().block_on(async {
        let id = create(&store, &record(now(), Values::new())).await;
        let slot = cluster.slot_of(&store.key(id));
        let owner = cluster.primary_of(slot).expect("an owner").port();
        let primaries = &cluster.nodes()[..3];
        let target = primaries.iter().find(|node| node.port() != owner).expect("another primary");
        let migration = cluster.migration(slot, target);
        let mut expected = 0;
        let mut check = async |store: &Redis| {
            apply(store, id, &increment(1), Want::Meta).await;
            expected += 1;
            let found = store.load(id, Want::Values).await.expect("loaded");
            let values = found.and_then(live).expect("a session").values;
            assert_eq!(values.get(&key("n")), Some(&json(&expected.to_string())));
            let listed = store.list(None, None, 100).await;
            assert!(listed.is_ok(), "{listed:?}");
        };
        check(&store).await;
        migration.begin();
        check(&store).await;
        assert_eq!(migration.move_keys(10), 1);
        check(&store).await;
        migration.finish();
        check(&store).await;
        check(&store).await;
    });
}
