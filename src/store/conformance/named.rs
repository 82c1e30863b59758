//! What random histories, one call after the other, do not show.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::model::values;
use super::{Fresh, runtime};
use crate::random;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{Applied, Authority, Change, Op, Patch, Refusal, Tombstone};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values};
use crate::store::{Created, Error, Store, Want};
use crate::time::{Clock, Timestamp};

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

pub(crate) fn json(text: &str) -> Json {
    Json::parse(text.as_bytes(), 0).expect(text)
}

pub(crate) fn new_id() -> Id {
    Id::from_bytes(random::bytes())
}

pub(crate) fn now() -> Timestamp {
    Clock::System.now()
}

/// A record of these values that was made at `now`.
pub(crate) fn record(now: Timestamp, values: Values) -> Record {
    Record { meta: Meta::new(7, now), values }
}

/// Applies a patch by the service's authority, under the usual policy.
pub(crate) async fn patch(
    store: &dyn Store,
    id: Id,
    patch: &Patch,
    want: Want<'_>,
) -> Result<Result<Applied, Refusal>, Error> {
    let policy = Policy::default();
    let change = Change {
        patch,
        condition: None,
        authority: Authority::Service,
        policy: &policy,
        now: now(),
        touches: true,
        tombstone: Tombstone::Leave,
    };
    store.patch(id, change, want).await
}

/// A new session of this record.
pub(crate) async fn made(store: &dyn Store, record: &Record) -> Id {
    let id = new_id();
    let created = store.create(id, record, &Policy::default()).await;
    assert_eq!(created.expect("created"), Created::Done);
    id
}

async fn all_values(store: &dyn Store, id: Id) -> Values {
    match store.load(id, Want::Values).await.expect("loaded") {
        Some(Entry::Live(record)) => record.values,
        other => panic!("no session: {other:?}"),
    }
}

/// Applies all of `patches` at the same time.
async fn in_parallel(store: &Arc<dyn Store>, id: Id, patches: Vec<Patch>) {
    let mut tasks = JoinSet::new();
    for one in patches {
        let store = Arc::clone(store);
        tasks.spawn(async move { patch(&*store, id, &one, Want::Meta).await });
    }
    for answer in tasks.join_all().await {
        answer.expect("answered").expect("applied");
    }
}

pub(crate) fn parallel_increments_all_count(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = made(&*fresh.store, &record(now(), Values::new())).await;
        for _ in 0..20 {
            let one = Patch::of(Op::Increment(key("n"), 1));
            in_parallel(&fresh.store, id, vec![one; 50]).await;
        }
        assert_eq!(all_values(&*fresh.store, id).await, values(&[("n", "1000")]));
        drop(fresh.keep);
    });
}

pub(crate) fn parallel_patches_of_different_keys_all_hold(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = made(&*fresh.store, &record(now(), Values::new())).await;
        let names: Vec<Key> = (0..50).map(|n| key(&format!("key {n}"))).collect();
        let patches =
            names.iter().map(|name| Patch::of(Op::Set(name.clone(), json("true")))).collect();
        in_parallel(&fresh.store, id, patches).await;
        let expected: Values = names.into_iter().map(|name| (name, json("true"))).collect();
        assert_eq!(all_values(&*fresh.store, id).await, expected);
        drop(fresh.keep);
    });
}

pub(crate) fn create_overwrites_neither_a_session_nor_a_marker(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let first = record(now(), values(&[("who", "1")]));
        let id = made(store, &first).await;
        let other = record(now(), values(&[("who", "2"), ("more", "3")]));
        let again = store.create(id, &other, &Policy::default()).await;
        assert_eq!(again.expect("answered"), Created::Exists);
        let stands = store.load(id, Want::Values).await.expect("loaded");
        assert_eq!(stands, Some(Entry::Live(first)));

        let destroy = Patch { destroy: true, ..Patch::default() };
        let ended = patch(store, id, &destroy, Want::Meta).await;
        let marker = ended.expect("answered").expect("applied").entry;
        assert!(matches!(marker, Some(Entry::Ended { .. })));
        let again = store.create(id, &other, &Policy::default()).await;
        assert_eq!(again.expect("answered"), Created::Exists);
        assert_eq!(store.load(id, Want::Values).await.expect("loaded"), marker);
        drop(fresh.keep);
    });
}

pub(crate) fn what_is_over_is_swept_and_nothing_else(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let long_ago = now() - Duration::from_hours(365 * 24);
        let mut over = Vec::new();
        for _ in 0..7 {
            over.push(made(store, &record(long_ago, values(&[("a", "1")]))).await);
        }
        let alive = made(store, &record(now(), values(&[("a", "2")]))).await;
        let swept = store.sweep(now()).await.expect("swept");
        // A store that removes by itself has nothing to sweep.
        assert!(swept == 7 || swept == 0, "{swept}");
        for id in over {
            assert_eq!(store.load(id, Want::Meta).await.expect("loaded"), None);
        }
        assert_eq!(all_values(store, alive).await, values(&[("a", "2")]));
        assert_eq!(store.sweep(now()).await.expect("swept"), 0);
        drop(fresh.keep);
    });
}

pub(crate) fn every_byte_of_a_value_survives(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let long = format!("\"{}\"", "x".repeat(200_000));
        let pairs = [
            ("number", "1e400"),
            ("precise", "0.1000000000000000055511151231257827"),
            ("minus zero", "-0"),
            ("order", r#"{"b":1,"a":{"z":[],"y":{}}}"#),
            ("escapes", r#""\u00e9\/\ud83d\ude00""#),
            ("nul \0 \" \\ \n \u{1f36a}", r#""\u0000é🍪""#),
            ("=", "null"),
            ("v", "\"looks like a field of ours\""),
            ("long", &long),
        ];
        let first = record(now(), values(&pairs));
        let id = made(&*fresh.store, &first).await;
        assert_eq!(all_values(&*fresh.store, id).await, first.values);
        for (name, text) in pairs {
            let name = key(name);
            let one = fresh.store.load(id, Want::Value(&name)).await;
            let Some(Entry::Live(found)) = one.expect("loaded") else {
                panic!("no session");
            };
            assert_eq!(found.values, [(name, json(text))].into_iter().collect());
        }
        drop(fresh.keep);
    });
}

pub(crate) fn a_list_of_many_has_pages(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let ada = Principal::new("ada").expect("a principal");
        let mut expected = Vec::new();
        for n in 0..300 {
            let mut one = record(now(), Values::new());
            one.meta.principal = (n % 2 == 0).then(|| ada.clone());
            let id = made(store, &one).await;
            expected.push((id, one.meta));
        }
        expected.sort_by_key(|(id, _)| *id);
        assert_eq!(pages(store, None, 7).await, expected);
        expected.retain(|(_, meta)| meta.principal.is_some());
        assert_eq!(pages(store, Some(&ada), 7).await, expected);
        drop(fresh.keep);
    });
}

/// All sessions of a list, by id; none twice.
pub(crate) async fn pages(
    store: &dyn Store,
    principal: Option<&Principal>,
    limit: usize,
) -> Vec<(Id, Meta)> {
    let mut sessions = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = store.list(principal, cursor.as_deref(), limit).await;
        let page = page.expect("listed");
        assert!(page.sessions.len() <= limit);
        sessions.extend(page.sessions);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    sessions.sort_by_key(|(id, _)| *id);
    sessions.dedup_by_key(|(id, _)| *id);
    sessions
}

/// Lists all, one by one: the sessions and what is unreadable, by id.
async fn everything(store: &dyn Store, principal: Option<&Principal>) -> (Vec<Id>, Vec<Id>) {
    let (mut sessions, mut unreadable) = (Vec::new(), Vec::new());
    let mut cursor: Option<String> = None;
    loop {
        let page = store.list(principal, cursor.as_deref(), 1).await.expect("listed");
        sessions.extend(page.sessions.into_iter().map(|(id, _)| id));
        unreadable.extend(page.unreadable);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    for ids in [&mut sessions, &mut unreadable] {
        ids.sort();
        ids.dedup();
    }
    (sessions, unreadable)
}

pub(crate) fn unreadable_records_break_no_list(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        // In memory nothing is parsed, and nothing can be unreadable.
        let Some(spoil) = &fresh.spoil else { return };
        let store = &*fresh.store;
        let ada = Principal::new("ada").expect("a principal");
        let mut hers = record(now(), values(&[("a", "1")]));
        hers.meta.principal = Some(ada.clone());
        let (mut whole, mut spoilt) = (Vec::new(), Vec::new());
        for way in 0..6 {
            whole.push(made(store, &hers).await);
            let id = made(store, &hers).await;
            spoil(id, way).await;
            spoilt.push(id);
        }
        whole.sort();
        spoilt.sort();
        for principal in [None, Some(&ada)] {
            let (sessions, unreadable) = everything(store, principal).await;
            assert_eq!(sessions, whole, "{principal:?}");
            assert_eq!(unreadable, spoilt, "{principal:?}");
        }
        for id in &spoilt {
            assert!(matches!(store.load(*id, Want::Meta).await, Err(Error::Corrupt(_))));
            assert!(store.remove(*id).await.expect("removed").is_some());
            assert_eq!(store.load(*id, Want::Meta).await.expect("loaded"), None);
        }
        for principal in [None, Some(&ada)] {
            assert_eq!(everything(store, principal).await, (whole.clone(), Vec::new()));
        }
        drop(fresh.keep);
    });
}

pub(crate) fn it_answers_pings_and_probes(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        for _ in 0..3 {
            fresh.store.ping().await.expect("an answer");
            fresh.store.probe(now()).await.expect("an answer");
        }
        assert!(pages(&*fresh.store, None, 10).await.is_empty());
        assert_eq!(fresh.store.sweep(now()).await.expect("swept"), 0);
        drop(fresh.keep);
    });
}
