//! Fields and keys in the server, and when they expire.

use super::*;

#[test]
fn increment_leaves_no_extra_field() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = create(&store, &record(now(), Values::new())).await;
        for (by, fits) in [(i64::MAX, true), (1, false), (i64::MIN, true), (0, true)] {
            let answer = patch(&store, id, &increment(by), Want::Meta).await.expect("a reply");
            assert_eq!(answer.is_ok(), fits, "{by}");
            assert_eq!(number(&store, &["HEXISTS", &store.key(id), "+"]).await, 0);
        }
    });
}

#[test]
fn tombstones_expire() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = create(&store, &record_of_ada(now())).await;
        let destroy = Patch { destroy: true, ..Patch::default() };
        let change = Change {
            patch: &destroy,
            condition: None,
            authority: Authority::Request(1),
            policy: &POLICY,
            now: now(),
            touches: true,
            tombstone: Tombstone::Leave,
            held_keys: None,
            known: None,
        };
        let applied = store.patch(id, change, Want::Meta).await.expect("a reply");
        let Some(Entry::Ended { until }) = applied.expect("applied").entry else {
            panic!("no tombstone");
        };
        let ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
        assert_eq!(ends, until.as_millis());
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page, Page::default());
    });
}

#[test]
fn probes_leave_no_key() {
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
        assert!(matches!(full, Err(Error::Full(_))), "{full:?}");
        store.ping().await.expect("still read");
    });
}
