//! Servers that are full or reply to another request, and keys that hold something else.

use super::*;

#[test]
fn full_server_refuses_changes() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let id = create(&store, &record_of_ada(now())).await;
        apply(&store, id, &increment(1), Want::Meta).await;
        let before = store.load(id, Want::Values).await.expect("loaded");
        raw(&store, &["CONFIG", "SET", "maxmemory", "1"]).await;
        for one in [increment(1), Patch::of(Op::Set(key("a"), json("1")))] {
            let changed = patch(&store, id, &one, Want::Meta).await;
            assert!(matches!(changed, Err(Error::Full(_))), "{changed:?}");
        }
        let created = store.create(new_id(), &record_of_ada(now()), &POLICY).await;
        assert!(matches!(created, Err(Error::Full(_))), "{created:?}");
        raw(&store, &["CONFIG", "SET", "maxmemory", "0"]).await;
        assert_eq!(store.load(id, Want::Values).await.expect("loaded"), before);
        apply(&store, id, &increment(1), Want::Meta).await;
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
        let corrupt = create(&store, &record(now(), Values::new())).await;
        raw(&store, &["HSET", &store.key(corrupt), "s", "soon"]).await;
        for id in [id, corrupt] {
            for want in [Want::Meta, Want::Values] {
                let found = store.load(id, want).await;
                assert!(matches!(found, Err(Error::Corrupt(_))), "{found:?}");
            }
            let changed = patch(&store, id, &increment(1), Want::Meta).await;
            assert!(matches!(changed, Err(Error::Corrupt(_))), "{changed:?}");
        }
    });
}

#[test]
fn mismatched_reply_closes_the_connection() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_at(server.port(), Duration::from_millis(500));
    runtime().block_on(async {
        let one = create(&store, &record(now(), [(key("who"), json("1"))].into())).await;
        let other = create(&store, &record(now(), [(key("who"), json("2"))].into())).await;
        // The reply to a request about the other session.
        let reply = store.servers.ask("", &hmget(&store.key(other)), store.deadline()).await;
        let reply = reply.expect("a reply");
        assert!(fields::is_about(&reply, other));
        assert!(!fields::is_about(&reply, one));
        let all = cmd("HGETALL").arg(store.key(other)).clone();
        let reply = store.servers.ask("", &all, store.deadline()).await.expect("a reply");
        assert!(!fields::is_about(&reply, one));
        let connection = number(&store, &["CLIENT", "ID"]).await;
        assert!(store.check(one, &reply).is_err());
        wait_until_reconnected(&store).await;
        assert!(number(&store, &["CLIENT", "ID"]).await > connection);
        // Replies of scripts are checked too, and match.
        let used = store.record_use(one, touch(now()), &POLICY).await.expect("a reply");
        assert!(used.is_some());
    });
}
