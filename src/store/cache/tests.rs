//! The conformance suite over cached stores, and tests of the cache.

use std::time::{Duration, Instant};

use super::*;
use crate::session::patch::{Op, Patch};
use crate::session::record::Values;
use crate::store::conformance::{
    Fresh, create_session, json, key, now, patch, record, runtime, suite,
};
use crate::store::memory::Memory;

const ROOM: usize = 1024 * 1024;

fn cached(store: Arc<dyn Store>, coherence: Coherence) -> Cached {
    Cached::new(store, Arc::new(RecordCache::new(ROOM, coherence)))
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES))
}

suite!(|| Fresh::new(cached(memory(), Coherence::Owned), ()));

mod sqlite {
    use super::*;
    use crate::store::sqlite::Sqlite;
    use crate::tasks::Tasks;

    fn fresh() -> Fresh {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.db");
        let store = Sqlite::open(&path, Duration::from_secs(20), Tasks::new());
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

async fn new_session(store: &dyn Store) -> Id {
    let one = record(now(), [(key("a"), json("1"))].into_iter().collect::<Values>());
    create_session(store, &one).await
}

async fn value_of_a(store: &dyn Store, id: Id) -> Option<String> {
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
fn cached_records_are_served_until_changed() {
    runtime().block_on(async {
        let inner = memory();
        let store = cached(Arc::<Memory>::clone(&inner), Coherence::Owned);
        let id = new_session(&store).await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("1"));
        // Bypasses the cache, which no caller may do if the cache owns the records.
        set(&*inner, id, "2").await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("1"));
        set(&store, id, "3").await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("3"));
        assert!(store.remove(id).await.expect("removed").is_some());
        assert_eq!(value_of_a(&store, id).await, None);
    });
}

#[test]
fn without_a_lease_nothing_is_served_or_kept() {
    runtime().block_on(async {
        let inner = memory();
        let store = cached(Arc::<Memory>::clone(&inner), Coherence::Leased);
        let id = new_session(&store).await;
        for text in ["2", "3"] {
            set(&*inner, id, text).await;
            assert_eq!(value_of_a(&store, id).await.as_deref(), Some(text));
        }
        store.records.lease.prolong(Instant::now(), Duration::from_hours(1));
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("3"));
        set(&*inner, id, "4").await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("3"), "cached");
        store.records.lease.end();
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("4"));
    });
}

#[test]
fn change_voids_earlier_reads() {
    runtime().block_on(async {
        let inner = memory();
        let store = cached(Arc::<Memory>::clone(&inner), Coherence::Owned);
        let id = new_session(&store).await;
        for change in
            [RecordCache::invalidate as fn(&RecordCache, Id), |records, _| records.clear()]
        {
            assert!(store.records.get(id, Want::Values).is_none(), "cached");
            let ticket = store.records.ticket(id).expect("served");
            let old = inner.load(id, Want::Values).await.expect("loaded").expect("a session");
            set(&*inner, id, "2").await;
            change(&store.records, id);
            store.records.put(id, &old, ticket);
            assert_eq!(value_of_a(&store, id).await.as_deref(), Some("2"));
            store.records.clear();
            set(&*inner, id, "1").await;
        }
    });
}

#[test]
fn abandoned_change_keeps_its_session_uncached() {
    runtime().block_on(async {
        let inner = memory();
        let store = cached(Arc::<Memory>::clone(&inner), Coherence::Owned);
        let id = new_session(&store).await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("1"));
        drop(store.invalidating::<()>(id, || Box::pin(std::future::pending())));
        // From now on the change may be made at any time.
        for text in ["2", "3"] {
            set(&*inner, id, text).await;
            assert_eq!(value_of_a(&store, id).await.as_deref(), Some(text));
        }
    });
}

#[test]
fn cache_stays_within_its_bounds() {
    runtime().block_on(async {
        let inner = memory();
        let store = cached(Arc::<Memory>::clone(&inner), Coherence::Owned);
        let id = new_session(&store).await;
        let large = format!("\"{}\"", "x".repeat(70_000));
        set(&store, id, &large).await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some(&*large));
        set(&*inner, id, "2").await;
        assert_eq!(value_of_a(&store, id).await.as_deref(), Some("2"));
        for _ in 0..5_000 {
            let id = new_session(&store).await;
            assert_eq!(value_of_a(&store, id).await.as_deref(), Some("1"));
        }
        assert!(store.records.weight() <= ROOM as u64, "{}", store.records.weight());
    });
}
