//! Records, patches and lists for the tests of stores.

use crate::random;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{Applied, Authority, Change, Patch, Refusal};
use crate::session::policy::Policy;
use crate::session::record::{Key, Meta, Principal, Record, Values};
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

/// Returns a record with these values that was created at `now`.
pub(crate) fn record(now: Timestamp, values: Values) -> Record {
    Record { meta: Meta::new(7, now), values }
}

/// Applies a patch with the authority of the service, under the default policy.
pub(crate) async fn patch(
    store: &dyn Store,
    id: Id,
    patch: &Patch,
    want: Want<'_>,
) -> Result<Result<Applied, Refusal>, Error> {
    change(store, id, patch, want, Authority::Service(0)).await
}

/// Applies a patch with an authority, under the default policy.
pub(crate) async fn patch_as(
    store: &dyn Store,
    id: Id,
    patch: &Patch,
    authority: Authority,
) -> Result<Result<Applied, Refusal>, Error> {
    change(store, id, patch, Want::Meta, authority).await
}

async fn change(
    store: &dyn Store,
    id: Id,
    patch: &Patch,
    want: Want<'_>,
    authority: Authority,
) -> Result<Result<Applied, Refusal>, Error> {
    let policy = Policy::default();
    let change = Change { authority, ..Change::of_service(patch, &policy, now()) };
    store.patch(id, change, want).await
}

/// Creates a session with this record under a new id.
pub(crate) async fn create_session(store: &dyn Store, record: &Record) -> Id {
    let id = new_id();
    let created = store.create(id, record, &Policy::default()).await;
    assert_eq!(created.expect("created"), Created::Done);
    id
}

/// Returns values with these keys and JSON texts.
pub(crate) fn values(pairs: &[(&str, &str)]) -> Values {
    pairs.iter().map(|(name, text)| (key(name), json(text))).collect()
}

/// Lists all sessions, ordered by id, without duplicates.
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
