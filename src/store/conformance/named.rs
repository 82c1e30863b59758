//! Tests of what sequential random histories do not cover.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::kit::{create_session, json, key, now, pages, patch, patch_as, record, values};
use super::{Fresh, runtime};
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{Authority, Op, Patch, Refusal, Rotate};
use crate::session::policy::{Expired, Policy};
use crate::session::record::{Entry, Key, Principal, Values};
use crate::store::{Created, Error, Store, Swept, Want};

/// Returns the name of the store by the module of the running test, e.g. `redis, cluster`.
fn store_name() -> String {
    let thread = std::thread::current();
    let path = thread.name().unwrap_or_default();
    let modules = path.split("::").take_while(|module| *module != "conformance");
    let names = modules.filter(|module| !["store", "tests", "topologies"].contains(module));
    names.collect::<Vec<_>>().join(", ").replace('_', " ")
}

async fn all_values(store: &dyn Store, id: Id) -> Values {
    match store.load(id, Want::Values).await.expect("loaded") {
        Some(Entry::Live(record)) => record.values,
        other => panic!("no session: {other:?}"),
    }
}

/// Applies all patches concurrently.
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

pub(crate) fn parallel_increments_are_all_counted(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = create_session(&*fresh.store, &record(now(), Values::new())).await;
        for _ in 0..20 {
            let one = Patch::of(Op::Increment(key("n"), 1));
            in_parallel(&fresh.store, id, vec![one; 50]).await;
        }
        assert_eq!(all_values(&*fresh.store, id).await, values(&[("n", "1000")]));
        drop(fresh.keep);
    });
}

pub(crate) fn parallel_patches_of_different_keys_are_all_kept(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = create_session(&*fresh.store, &record(now(), Values::new())).await;
        let names: Vec<Key> = (0..50).map(|n| key(&format!("key {n}"))).collect();
        let patches =
            names.iter().map(|name| Patch::of(Op::Set(name.clone(), json("true")))).collect();
        in_parallel(&fresh.store, id, patches).await;
        let expected: Values = names.into_iter().map(|name| (name, json("true"))).collect();
        assert_eq!(all_values(&*fresh.store, id).await, expected);
        drop(fresh.keep);
    });
}

pub(crate) fn parallel_merges_and_appends_are_all_kept(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = create_session(&*fresh.store, &record(now(), Values::new())).await;
        let object = |n: u32| json(&format!("{{\"member {n}\":{{\"is\":{n}}}}}"));
        let merges = (0..50).map(|n| Patch::of(Op::Merge(key("object"), object(n))));
        let appends = (0..50).map(|n| Patch::of(Op::Append(key("array"), json(&format!("[{n}]")))));
        in_parallel(&fresh.store, id, merges.chain(appends).collect()).await;

        let found = all_values(&*fresh.store, id).await;
        let members = found[&key("object")].members().expect("an object");
        let members: BTreeMap<String, Json> = members.into_iter().collect();
        let expected = (0..50).map(|n| (format!("member {n}"), json(&format!("{{\"is\":{n}}}"))));
        let merged = members.len();
        assert_eq!(members, expected.collect());
        let mut elements = found[&key("array")].elements().expect("an array");
        elements.sort_by_key(Json::as_integer);
        assert_eq!(elements, (0..50).map(Json::integer).collect::<Vec<_>>());
        println!("{}: {merged} of 50 merges, {} of 50 appends kept", store_name(), elements.len());
        drop(fresh.keep);
    });
}

pub(crate) fn first_of_two_refusals_is_reported(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = create_session(&*fresh.store, &record(now(), Values::new())).await;
        let patch_of = |ops: Vec<Op>| Patch { ops, ..Patch::default() };
        let object = |name: &str| Op::Merge(key(name), json(r#"{"member":1}"#));
        let array = Op::Set(key("array"), json("[1]"));
        let increment = Op::Increment(key("object"), 1);
        // Each has a merge that succeeds, and two operations that would be refused.
        let merge_second =
            patch_of(vec![object("object"), array.clone(), increment.clone(), object("array")]);
        let merge_first = patch_of(vec![object("object"), array, object("array"), increment]);
        for (patch_of_both, first) in [
            (merge_second, Refusal::NotAnInteger(key("object"))),
            (merge_first, Refusal::NotAnObject(key("array"))),
        ] {
            let answer = patch(&*fresh.store, id, &patch_of_both, Want::Meta).await;
            assert_eq!(answer.expect("answered").expect_err("refused"), first);
        }
        assert_eq!(all_values(&*fresh.store, id).await, Values::new());
        drop(fresh.keep);
    });
}

/// Each change is made once: one that was refused because its token was rotated away has left nothing.
pub(crate) fn writes_beside_new_ids_are_kept_or_refused(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let id = create_session(&*fresh.store, &record(now(), Values::new())).await;
        let rotate = Patch { rotate: Some(Rotate::Id), ..Patch::default() };
        let names: Vec<Key> = (0..25).map(|n| key(&format!("key {n}"))).collect();
        let writes = names.iter().map(|name| Patch::of(Op::Increment(name.clone(), 1)));
        let mut tasks = JoinSet::new();
        for patch in writes.flat_map(|write| [rotate.clone(), write]) {
            let store = Arc::clone(&fresh.store);
            tasks.spawn(async move { refusals_of(&*store, id, &patch).await });
        }
        let refused: u32 = tasks.join_all().await.into_iter().sum();
        let values = all_values(&*fresh.store, id).await;
        let kept = values.len();
        assert_eq!(values, names.into_iter().map(|name| (name, json("1"))).collect());
        let Some(Entry::Live(record)) = fresh.store.load(id, Want::Meta).await.expect("loaded")
        else {
            panic!("no session");
        };
        let rotations = record.meta.id_counter;
        assert_eq!(rotations, 25);
        println!(
            "{}: {rotations} new ids, {kept} writes kept, {refused} attempts refused",
            store_name()
        );
        drop(fresh.keep);
    });
}

/// Makes a change as a request with the current token, again after each rotation that takes the token away. Returns
/// the number of refusals.
async fn refusals_of(store: &dyn Store, id: Id, patch: &Patch) -> u32 {
    let mut refused = 0;
    loop {
        let generation = generation(store, id).await;
        let answer = patch_as(store, id, patch, Authority::Request(generation)).await;
        match answer.expect("answered") {
            Ok(_) => return refused,
            Err(Refusal::Rotated) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
}

async fn generation(store: &dyn Store, id: Id) -> u32 {
    match store.load(id, Want::Meta).await.expect("loaded") {
        Some(Entry::Live(record)) => record.meta.generation,
        other => panic!("no session: {other:?}"),
    }
}

pub(crate) fn create_never_overwrites(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let first = record(now(), values(&[("who", "1")]));
        let id = create_session(store, &first).await;
        let other = record(now(), values(&[("who", "2"), ("more", "3")]));
        let again = store.create(id, &other, &Policy::default()).await;
        assert_eq!(again.expect("answered"), Created::Exists);
        let current = store.load(id, Want::Values).await.expect("loaded");
        assert_eq!(current, Some(Entry::Live(first)));

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

pub(crate) fn sweep_removes_only_expired_entries(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let long_ago = now() - Duration::from_hours(365 * 24);
        let mut expired = Vec::new();
        for _ in 0..7 {
            expired.push(create_session(store, &record(long_ago, values(&[("a", "1")]))).await);
        }
        let alive = create_session(store, &record(now(), values(&[("a", "2")]))).await;
        let policy = Policy::default();
        let found = store.expired(now()).await.expect("counted");
        let swept = store.sweep(now(), &policy).await.expect("swept");
        // A store with its own expiry has nothing to sweep.
        assert!(
            swept.sessions == [(Expired::Idle, 7)].into() || swept == Swept::default(),
            "{swept:?}"
        );
        assert_eq!((swept.entries, swept.more), (found, false));
        for id in expired {
            assert_eq!(store.load(id, Want::Meta).await.expect("loaded"), None);
        }
        assert_eq!(all_values(store, alive).await, values(&[("a", "2")]));
        assert_eq!(store.expired(now()).await.expect("counted"), 0);
        assert_eq!(store.sweep(now(), &policy).await.expect("swept"), Swept::default());
        drop(fresh.keep);
    });
}

pub(crate) fn values_are_stored_byte_for_byte(fresh: fn() -> Fresh) {
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
        let id = create_session(&*fresh.store, &first).await;
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

pub(crate) fn long_lists_have_pages(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        let store = &*fresh.store;
        let ada = Principal::new("ada").expect("a principal");
        let mut expected = Vec::new();
        for n in 0..300 {
            let mut one = record(now(), Values::new());
            one.meta.principal = (n % 2 == 0).then(|| ada.clone());
            let id = create_session(store, &one).await;
            expected.push((id, one.meta));
        }
        expected.sort_by_key(|(id, _)| *id);
        assert_eq!(pages(store, None, 7).await, expected);
        expected.retain(|(_, meta)| meta.principal.is_some());
        assert_eq!(pages(store, Some(&ada), 7).await, expected);
        drop(fresh.keep);
    });
}

/// Lists everything with pages of one: the sessions and the unreadable records, ordered by id.
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

pub(crate) fn unreadable_records_do_not_break_lists(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        // The memory store parses nothing, so no record can be unreadable.
        let Some(spoil) = &fresh.spoil else { return };
        let store = &*fresh.store;
        let ada = Principal::new("ada").expect("a principal");
        let mut hers = record(now(), values(&[("a", "1")]));
        hers.meta.principal = Some(ada.clone());
        let (mut whole, mut corrupted) = (Vec::new(), Vec::new());
        for way in 0..6 {
            whole.push(create_session(store, &hers).await);
            let id = create_session(store, &hers).await;
            spoil(id, way).await;
            corrupted.push(id);
        }
        whole.sort();
        corrupted.sort();
        for principal in [None, Some(&ada)] {
            let (sessions, unreadable) = everything(store, principal).await;
            assert_eq!(sessions, whole, "{principal:?}");
            assert_eq!(unreadable, corrupted, "{principal:?}");
        }
        for id in &corrupted {
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

pub(crate) fn answers_pings_and_probes(fresh: fn() -> Fresh) {
    runtime().block_on(async {
        let fresh = fresh();
        for _ in 0..3 {
            fresh.store.ping().await.expect("an answer");
            fresh.store.probe(now()).await.expect("an answer");
        }
        assert!(pages(&*fresh.store, None, 10).await.is_empty());
        let swept = fresh.store.sweep(now(), &Policy::default()).await.expect("swept");
        assert!(swept.sessions.is_empty(), "{swept:?}");
        drop(fresh.keep);
    });
}
