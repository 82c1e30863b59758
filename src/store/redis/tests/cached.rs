//! The store behind the cache: the conformance suite, and changes by other instances.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::commands::sent;
use super::*;
use crate::store::cache::{Cached, Coherence, RecordCache};

/// Returns a cache that is kept coherent on a thread of its own, as with several workers.
fn tracked(deployment: &Deployment) -> Arc<RecordCache> {
    let hot = Arc::new(RecordCache::new(1024 * 1024, Coherence::Leased));
    let (deployment, kept) = (deployment.clone(), Arc::clone(&hot));
    thread::spawn(move || runtime().block_on(track(deployment, kept, Tasks::new())));
    let start = std::time::Instant::now();
    while !hot.is_served() {
        assert!(start.elapsed() < Duration::from_secs(20), "no lease");
        thread::yield_now();
    }
    hot
}

fn cached_on(deployment: &Deployment) -> Cached {
    Cached::new(Arc::new(Redis::new(deployment, Tasks::new())), tracked(deployment))
}

fn fresh() -> Fresh {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let shared = settings(local(RedisServer::shared().port()));
    let config = config::Redis { key_prefix: format!("cached[{number}]:"), ..shared };
    Fresh::new(cached_on(&Deployment::new(&config, TIMEOUT)), ()).spoiled_by(spoiler(&config))
}

suite!(fresh, needs "redis-server");

/// The cache's connection also finds its server by the sentinels.
mod by_sentinels {
    use super::*;

    fn fresh() -> Fresh {
        let config = topologies::with_own_prefix(topologies::shared_sentinels());
        Fresh::new(cached_on(&Deployment::new(&config, TIMEOUT)), ())
    }

    suite!(fresh, needs "redis-server");
}

#[test]
fn changes_of_other_instances_invalidate() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let deployment = Deployment::new(&settings(local(server.port())), TIMEOUT);
    let here = cached_on(&deployment);
    let there = Redis::new(&deployment, Tasks::new());
    runtime().block_on(async {
        let name = key("n");
        let read = async |id| match through_cache(&here, id, Want::Value(&name)).await {
            Some(Entry::Live(record)) => record.values.get(&name).map(ToString::to_string),
            Some(Entry::Ended { .. }) | None => None,
        };
        let id = create(&there, &record(now(), Values::new())).await;
        for n in ["1", "2", "3"] {
            apply(&there, id, &increment(1), Want::Meta).await;
            until(async || read(id).await.as_deref() == Some(n)).await;
        }
        there.remove(id).await.expect("removed");
        until(async || through_cache(&here, id, Want::Meta).await.is_none()).await;
        // Changes without an instance.
        for command in ["DEL", "FLUSHALL"] {
            let id = create(&there, &record(now(), Values::new())).await;
            assert!(through_cache(&here, id, Want::Meta).await.is_some());
            let key = there.key(id);
            let words = [command, &key];
            raw(&there, if command == "DEL" { &words } else { &words[..1] }).await;
            until(async || through_cache(&here, id, Want::Meta).await.is_none()).await;
        }
    });
}

#[test]
fn hot_session_needs_no_command() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let deployment = Deployment::new(&settings(local(server.port())), TIMEOUT);
    let here = cached_on(&deployment);
    let there = Redis::new(&deployment, Tasks::new());
    runtime().block_on(async {
        let id = create(&there, &record(now(), Values::new())).await;
        // A late heartbeat empties the cache, which costs a read.
        until(async || {
            through_cache(&here, id, Want::Values).await;
            sent(&there).await;
            for _ in 0..100 {
                through_cache(&here, id, Want::Values).await;
            }
            sent(&there).await.is_empty()
        })
        .await;
    });
}

/// Loads an entry, from the cache if it is there.
async fn through_cache(store: &Cached, id: Id, want: Want<'_>) -> Option<Entry> {
    match store.cached(id, want) {
        Some(entry) => Some(entry),
        None => store.load(id, want).await.expect("loaded"),
    }
}

/// Polls until `holds` returns true.
async fn until(holds: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(20), "timed out");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
