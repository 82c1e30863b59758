//! The index of the sessions of a principal.

use super::*;

#[test]
fn index_is_a_superset_of_the_records() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let begin = now();
        let id = create(&store, &record_of_ada(begin)).await;
        let index = store.index_key(&ada());
        for minutes in (0..240).step_by(7) {
            let at = begin + Duration::from_mins(minutes);
            let used = store.record_use(id, touch(at), &POLICY).await;
            let Some(Entry::Live(found)) = used.expect("a reply") else {
                panic!("no session");
            };
            let ends = POLICY.ends_at(&found.meta).as_millis();
            let record_ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
            assert_eq!(record_ends, ends);
            let score = number(&store, &["ZSCORE", &index, &id.to_string()]).await;
            assert!(score >= ends, "{score} {ends}");
            assert!(number(&store, &["PEXPIRETIME", &index]).await >= score);
        }
        // A patch may move the end beyond that in the index.
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
        let id = create(&store, &record_of_ada(now())).await;
        let index = store.index_key(&ada());
        let (expired, future) = (new_id().to_string(), new_id().to_string());
        let ago = (now() - Duration::from_hours(1)).as_millis().to_string();
        let soon = (now() + Duration::from_hours(1)).as_millis().to_string();
        raw(&store, &["ZADD", &index, &ago, &expired, &soon, &future]).await;
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page.sessions.len(), 1);
        assert_eq!(page.sessions[0].0, id);
        assert_eq!(number(&store, &["ZCARD", &index]).await, 2);
        assert_eq!(raw(&store, &["ZSCORE", &index, &expired]).await, Value::Nil);
    });
}

#[test]
fn copied_record_breaks_no_list() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let (id, copy) = (
            create(&store, &record_of_ada(now())).await,
            create(&store, &record_of_ada(now())).await,
        );
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
        let id = create(&store, &record_of_ada(now())).await;
        // Members that are not session ids are skipped.
        raw(&store, &["ZADD", &index, "inf", "text", "1e300", "more"]).await;
        let page = store.list(Some(&ada()), None, 10).await.expect("listed");
        assert_eq!(page.sessions.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
    });
}
