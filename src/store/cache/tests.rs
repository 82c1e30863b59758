//! The suite over stores with a cache, and what only a cache can do wrong.

use std::time::{Duration, Instant};

use super::*;
use crate::metrics::Metrics;
use crate::session::patch::{Op, Patch};
use crate::session::record::Values;
use crate::store::conformance::{Fresh, json, key, made, now, patch, record, runtime, suite};
use crate::store::memory::Memory;

const ROOM: usize = 1024 * 1024;

fn cached(store: Arc<dyn Store>, coherence: Coherence) -> Cached {
    Cached::new(store, Arc::new(Hot::new(ROOM, coherence)))
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(Memory::DEFAULT_MAX_BYTES, Metrics::new()))
}

suite!(|| Fresh::new(cached(memory(), Coherence::Owned), ()));

mod sqlite {
    use super::*;
    use crate::store::sqlite::Sqlite;

    fn fresh() -> Fresh {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.db");
        let store = Sqlite::open(&path, Duration::from_secs(20));
        Fresh::new(cached(Arc::new(store.expect("opened")), Coherence::Owned), directory)
            .spoiled_by(crate::store::sqlite::tests::spoiler(path))
    }

    suite!(fresh);
}

mod files {
    use super::*;
    use crate::store::file::Files;

    fn fresh() -> Fresh {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sessions");
        let store = Files::open(&path, Duration::from_secs(20));
        Fresh::new(cached(Arc::new(store.expect("opened")), Coherence::Owned), directory)
            .spoiled_by(move |id, way| {
                crate::store::file::tests::spoil(&path.join(id.to_string()), way);
                std::future::ready(())
            })
    }

    suite!(fresh);
}

async fn begun(store: &dyn Store) -> Id {
    let one = record(now(), [(key("a"), json("1"))].into_iter().collect::<Values>());
    made(store, &one).await
}

async fn a_of(store: &dyn Store, id: Id) -> Option<String> {
    let name = key("a");
    let entry = match store.cached(id, Want::Value(&name)) {
        Some(entry) => Some(entry),
        None => store.load(id, Want::Value(&name)).await.expect("loaded"),
    };
    match entry? {
        Entry::Live(record) => record.values.get(&name).map(ToString::to_string),
        Entry::Ended { .. } => None,
    }
}

async fn set(store: &dyn Store, id: Id, text: &str) {
    let change = Patch::of(Op::Set(key("a"), json(text)));
    patch(store, id, &change, Want::Meta).await.expect("answered").expect("applied");
}

#[test]
fn what_is_held_is_told_without_the_store_and_what_was_changed_here_is_not() {
    runtime().block_on(async {
        let beneath = memory();
        let store = cached(Arc::<Memory>::clone(&beneath), Coherence::Owned);
        let id = begun(&store).await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("1"));
        // Behind its back, which nobody may do where the cache owns the records.
        set(&*beneath, id, "2").await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("1"));
        set(&store, id, "3").await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("3"));
        assert!(store.remove(id).await.expect("removed").is_some());
        assert_eq!(a_of(&store, id).await, None);
    });
}

#[test]
fn without_a_lease_nothing_is_told_and_nothing_is_kept() {
    runtime().block_on(async {
        let beneath = memory();
        let store = cached(Arc::<Memory>::clone(&beneath), Coherence::Leased);
        let id = begun(&store).await;
        for text in ["2", "3"] {
            set(&*beneath, id, text).await;
            assert_eq!(a_of(&store, id).await.as_deref(), Some(text));
        }
        store.hot.lease.prolong(Instant::now(), Duration::from_hours(1));
        assert_eq!(a_of(&store, id).await.as_deref(), Some("3"));
        set(&*beneath, id, "4").await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("3"), "held");
        store.hot.lease.end();
        assert_eq!(a_of(&store, id).await.as_deref(), Some("4"));
    });
}

#[test]
fn what_was_read_before_a_change_is_not_put_there_after_it() {
    runtime().block_on(async {
        let beneath = memory();
        let store = cached(Arc::<Memory>::clone(&beneath), Coherence::Owned);
        let id = begun(&store).await;
        for change in [Hot::forget as fn(&Hot, Id), |hot, _| hot.clear()] {
            assert!(store.hot.get(id, Want::Values).is_none(), "held");
            let ticket = store.hot.ticket(id).expect("served");
            let old = beneath.load(id, Want::Values).await.expect("loaded").expect("a session");
            set(&*beneath, id, "2").await;
            change(&store.hot, id);
            store.hot.put(id, &old, ticket);
            assert_eq!(a_of(&store, id).await.as_deref(), Some("2"));
            store.hot.clear();
            set(&*beneath, id, "1").await;
        }
    });
}

#[test]
fn a_change_that_nobody_waited_for_keeps_its_session_out() {
    runtime().block_on(async {
        let beneath = memory();
        let store = cached(Arc::<Memory>::clone(&beneath), Coherence::Owned);
        let id = begun(&store).await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("1"));
        drop(store.changing::<()>(id, || Box::pin(std::future::pending())));
        // The change may be made at any time now.
        for text in ["2", "3"] {
            set(&*beneath, id, text).await;
            assert_eq!(a_of(&store, id).await.as_deref(), Some(text));
        }
    });
}

#[test]
fn a_large_record_is_not_held_and_many_small_ones_stay_in_their_room() {
    runtime().block_on(async {
        let beneath = memory();
        let store = cached(Arc::<Memory>::clone(&beneath), Coherence::Owned);
        let id = begun(&store).await;
        let large = format!("\"{}\"", "x".repeat(70_000));
        set(&store, id, &large).await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some(&*large));
        set(&*beneath, id, "2").await;
        assert_eq!(a_of(&store, id).await.as_deref(), Some("2"));
        for _ in 0..5_000 {
            let id = begun(&store).await;
            assert_eq!(a_of(&store, id).await.as_deref(), Some("1"));
        }
        assert!(store.hot.weight() <= ROOM as u64, "{}", store.hot.weight());
    });
}
