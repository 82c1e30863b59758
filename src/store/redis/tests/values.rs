//! Changes of values of a session that the caller knows: `values.lua`.

use super::commands::{scripts_sent, sent, warm};
use super::older::{older_patch, older_use};
use super::*;
use crate::store::encode::parse_held;

/// Applies a patch of a request that has read the session as `known`. Its first value is returned.
async fn change(
    store: &Redis,
    id: Id,
    patch: &Patch,
    known: &Meta,
    now: Timestamp,
) -> Result<Applied, Refusal> {
    let change = Change {
        patch,
        condition: None,
        authority: Authority::Request(known.generation),
        policy: &POLICY,
        now,
        touches: true,
        tombstone: Tombstone::None,
        held_keys: None,
        known: Some(known),
    };
    let name = patch.ops.first().and_then(Op::key).expect("a key");
    store.change(id, change, Want::Value(name)).await.expect("a reply")
}

async fn load(store: &Redis, id: Id) -> Record {
    let entry = store.load(id, Want::Value(&key("n"))).await.expect("loaded");
    entry.and_then(Entry::into_live).expect("a session")
}

#[test]
fn known_session_takes_one_short_script() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        for one in [record(now(), Values::new()), record_of_ada(now())] {
            let id = create(&store, &one).await;
            change(&store, id, &increment(1), &one.meta, now()).await.expect("applied");
            sent(&store).await;
            let applied = change(&store, id, &increment(1), &one.meta, now()).await;
            assert_eq!(applied.expect("applied").record, load(&store, id).await);
            // One of the two is the load.
            assert_eq!(sent(&store).await, ["1 evalsha", "2 hmget"]);
        }
    });
}

#[test]
fn unknown_changes_take_the_long_script() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let one = record(now(), Values::new());
        let id = create(&store, &one).await;
        change(&store, id, &increment(1), &one.meta, now()).await.expect("applied");
        let longer = ExpiryChange::Own(crate::session::record::Expiry::Idle(POLICY.idle_timeout));
        apply(&store, id, &Patch { expiry: Some(longer), ..Patch::default() }, Want::Meta).await;
        sent(&store).await;
        let applied = change(&store, id, &increment(1), &one.meta, now()).await;
        assert_eq!(applied.expect("applied").record, load(&store, id).await);
        assert_eq!(scripts_sent(&store).await, "2 evalsha");
        apply(&store, id, &Patch::of_rotation(Rotate::Token), Want::Meta).await;
        let refused = change(&store, id, &increment(1), &one.meta, now()).await;
        assert_eq!(refused.expect_err("refused"), Refusal::Rotated);
        store.remove(id).await.expect("removed");
        let refused = change(&store, id, &increment(1), &one.meta, now()).await;
        assert_eq!(refused.expect_err("refused"), Refusal::Gone);
    });
}

/// Held cookies expire, and are removed, without a change of anything else.
#[test]
fn held_cookies_are_not_those_that_were_known() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    runtime().block_on(async {
        let store = warm(&server).await;
        let one = record(now(), Values::new());
        let id = create(&store, &one).await;
        let text =
            r#"{"c":[{"n":"a","d":"a.example","h":true,"p":"/","v":"c2VhbGVk"}],"f":1,"t":1}"#;
        let known = Meta { held: Some(parse_held(text).expect("cookies")), ..one.meta };
        let applied = change(&store, id, &increment(1), &known, now()).await;
        let loaded = load(&store, id).await;
        assert_eq!(applied.expect("applied").record, loaded);
        assert_eq!(loaded.meta.held, None);
    });
}

#[test]
fn older_instances_change_known_sessions() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let begin = now();
        let one = record(begin, Values::new());
        let id = create(&store, &one).await;
        for round in 1..=4 {
            let at = begin + Duration::from_mins(round);
            older_patch(&store, id, &increment(1), at, true).await;
            older_use(&store, id, touch(at)).await;
            if round == 3 {
                older_use(&store, id, Use { generation: 2, ..touch(at) }).await;
            }
            let applied = change(&store, id, &increment(1), &one.meta, at).await.expect("applied");
            let found = load(&store, id).await;
            assert_eq!(applied.record, found);
            assert_eq!(found.values.get(&key("n")), Some(&json(&(2 * round).to_string())));
            assert_eq!(found.meta.last_seen_at, at);
            assert_eq!(found.meta.version, one.meta.version + 2 * round);
            let ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
            assert_eq!(ends, POLICY.ends_at(&found.meta).as_millis());
        }
    });
}

#[test]
fn earlier_change_keeps_the_later_use() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let begin = now();
        let one = record(begin, Values::new());
        let id = create(&store, &one).await;
        let later = begin + Duration::from_mins(5);
        store.record_use(id, touch(later), &POLICY).await.expect("a reply");
        let applied = change(&store, id, &increment(1), &one.meta, begin).await;
        let found = load(&store, id).await;
        assert_eq!(applied.expect("applied").record, found);
        assert_eq!(found.meta.last_seen_at, later);
        let ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
        assert_eq!(ends, POLICY.ends_at(&found.meta).as_millis());
    });
}

#[test]
fn index_has_the_end_that_a_change_moves() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let begin = now();
        let one = record_of_ada(begin);
        let id = create(&store, &one).await;
        let index = store.index_key(&ada());
        for minutes in (0..60).step_by(3) {
            let at = begin + Duration::from_mins(minutes);
            change(&store, id, &increment(1), &one.meta, at).await.expect("applied");
            let ends = number(&store, &["PEXPIRETIME", &store.key(id)]).await;
            assert!(number(&store, &["ZSCORE", &index, &id.to_string()]).await >= ends);
        }
    });
}

#[test]
fn limits_hold_to_the_byte() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    runtime().block_on(async {
        let one = record(now(), Values::new());
        let id = create(&store, &one).await;
        let text = |length: usize| json(&format!("\"{}\"", "a".repeat(length - 2)));
        let set = |name: &str, length| Patch::of(Op::Set(key(name), text(length)));
        let change = async |patch: &Patch| change(&store, id, patch, &one.meta, now()).await;
        // The name counts too.
        let longest = POLICY.max_bytes - 1;
        assert_eq!(change(&set("n", longest + 1)).await.expect_err("refused"), Refusal::TooLarge);
        change(&set("n", longest)).await.expect("applied");
        change(&set("n", 2)).await.expect("applied");
        for at in 1..POLICY.max_values {
            change(&set(&at.to_string(), 2)).await.expect("applied");
        }
        let refused = change(&set("m", 2)).await.expect_err("refused");
        assert_eq!(refused, Refusal::TooManyValues);
        change(&Patch::of(Op::Remove(key("n")))).await.expect("applied");
        change(&set("m", 2)).await.expect("applied");
    });
}

/// Two processes merge into one value, of which each only lets its own take turns.
#[test]
fn merges_of_two_processes_are_all_kept() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let stores = [store_on(&server), store_on(&server)].map(Arc::new);
    runtime().block_on(async {
        let id = create(&stores[0], &record(now(), Values::new())).await;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..100 {
            let store = Arc::clone(&stores[n % 2]);
            let merge = Op::Merge(key("o"), json(&format!("{{\"member {n}\":1}}")));
            tasks.spawn(async move { apply(&store, id, &Patch::of(merge), Want::Meta).await });
        }
        tasks.join_all().await;
        let found = stores[1].load(id, Want::Values).await.expect("loaded");
        let Some(Entry::Live(record)) = found else { panic!("no session") };
        assert_eq!(record.values[&key("o")].members().expect("an object").len(), 100);
    });
}
