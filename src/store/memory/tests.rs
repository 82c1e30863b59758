//! The suite, and what a full store does.

use super::*;
use crate::session::patch::{Op, Patch, Proof};
use crate::session::record::Values;
use crate::store::conformance::{Fresh, json, key, new_id, now, patch, record, runtime, suite};

suite!(|| Fresh::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES), ()));

/// A store of as many records as [`of`] makes with 1,000 bytes.
fn store_of(records: usize) -> Memory {
    let one = stored(Entry::Live(of(now(), 1000, true)), &Policy::default());
    let mut state = State::default();
    state.put(new_id(), Box::new(one));
    Memory::for_tests(records * state.bytes())
}

fn of(created_at: Timestamp, bytes: usize, unproven: bool) -> Record {
    let values: Values = [(key("a"), text(bytes))].into_iter().collect();
    let mut record = record(created_at, values);
    record.meta.unproven = unproven;
    record
}

fn text(bytes: usize) -> crate::session::json::Json {
    json(&format!("\"{}\"", "x".repeat(bytes)))
}

async fn create(store: &Memory, record: &Record) -> Result<Id, Error> {
    let id = new_id();
    store.create(id, record, &Policy::default()).await.map(|_| id)
}

async fn stands(store: &Memory, id: Id) -> bool {
    store.load(id, Want::Meta).await.expect("loaded").is_some()
}

fn evicted(store: &Memory) -> u64 {
    let metrics = store.audit.metrics();
    let evicted = metrics.event_count(Event::Evicted);
    let ended = format!("cloakroom_sessions_ended_total{{reason=\"evicted\"}} {evicted}");
    assert!(metrics.text().lines().any(|line| line == ended), "{ended}");
    evicted
}

#[test]
fn full_store_evicts_the_oldest_unproven_record() {
    runtime().block_on(async {
        let (store, now) = (store_of(4), now());
        let older = |seconds| now - Duration::from_secs(seconds);
        let second = create(&store, &of(older(20), 1000, true)).await.expect("room");
        let proven = create(&store, &of(older(90), 1000, false)).await.expect("room");
        let first = create(&store, &of(older(30), 1000, true)).await.expect("room");
        // It comes back.
        let third = create(&store, &of(older(40), 1000, true)).await.expect("room");
        let used =
            Use { generation: 1, touches: false, sets_cookie: false, proves: Proof::Session, now };
        store.record_use(third, used, &Policy::default()).await.expect("used");
        assert_eq!(evicted(&store), 0);
        create(&store, &of(now, 1000, true)).await.expect("room is made");
        assert!(!stands(&store, first).await && stands(&store, second).await);
        create(&store, &of(now, 1000, false)).await.expect("room is made");
        assert!(!stands(&store, second).await);
        assert!(stands(&store, proven).await && stands(&store, third).await);
        assert_eq!(evicted(&store), 2);
    });
}

#[test]
fn store_full_of_proven_records_refuses_new_ones() {
    runtime().block_on(async {
        let (store, now) = (store_of(3), now());
        let unproven = create(&store, &of(now, 500, true)).await.expect("room");
        let mut one = of(now, 1000, false);
        let proven = create(&store, &one).await.expect("room");
        one.meta.principal = Principal::new("ada");
        let logged_in = create(&store, &one).await.expect("room");
        // What cannot be made room for evicts nothing.
        let refused = create(&store, &of(now, 5000, true)).await;
        assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
        let grows = Patch::of(Op::Set(key("a"), text(5000)));
        let refused = patch(&store, unproven, &grows, Want::Meta).await;
        assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
        for id in [unproven, proven, logged_in] {
            assert!(stands(&store, id).await);
        }
        assert_eq!(evicted(&store), 0);
        // A proven one may grow at the cost of an unproven one, which may not grow at its own.
        let grows = Patch::of(Op::Set(key("b"), text(600)));
        patch(&store, proven, &grows, Want::Meta).await.expect("room is made").expect("applied");
        assert!(!stands(&store, unproven).await);
        assert_eq!(evicted(&store), 1);
    });
}

#[test]
fn log_in_protects_a_record_from_eviction() {
    runtime().block_on(async {
        let (store, now) = (store_of(2), now());
        let mine =
            create(&store, &of(now - Duration::from_hours(1), 1000, true)).await.expect("room");
        let log_in = Patch::of_log_in(Principal::new("ada").expect("a principal"));
        patch(&store, mine, &log_in, Want::Meta).await.expect("answered").expect("applied");
        for _ in 0..3 {
            create(&store, &of(now, 800, true)).await.expect("room is made");
        }
        assert!(stands(&store, mine).await);
        assert_eq!(
            store
                .list(Principal::new("ada").as_ref(), None, 9)
                .await
                .expect("listed")
                .sessions
                .len(),
            1
        );
    });
}

#[test]
fn removal_frees_counted_bytes() {
    runtime().block_on(async {
        let (store, now) = (store_of(100), now());
        let mut one = of(now, 100, true);
        let first = create(&store, &one).await.expect("room");
        one.meta.principal = Principal::new("ada");
        one.meta.unproven = false;
        let second = create(&store, &one).await.expect("room");
        let grows = Patch::of(Op::Set(key("b"), text(600)));
        for id in [first, second] {
            patch(&store, id, &grows, Want::Meta).await.expect("room").expect("applied");
        }
        assert!(store.held().state.bytes() > 1400);
        store.remove(first).await.expect("removed");
        let destroy = Patch { destroy: true, ..Patch::default() };
        patch(&store, second, &destroy, Want::Meta).await.expect("answered").expect("applied");
        store.sweep(now + Duration::from_hours(1), &Policy::default()).await.expect("swept");
        assert_eq!(store.held().state.bytes(), 0);
    });
}
