//! The suite that every store passes, over sessions in cookies: between two operations the session is
//! only in a cookie jar, sealed.
//!
//! Left out is what cookies cannot do, as the documentation lists it: be listed, be swept, hold more
//! than 4,096 bytes, and serve two requests at once. Instead of parallel requests, the parallel calls
//! of one request are tested.

use std::collections::BTreeMap;
use std::future::ready;

use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::cookie_backed::CookieBacked;
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::session::sealed::Sealed;
use crate::store::conformance::{Fresh, suite};
use crate::store::memory::Memory;
use crate::store::{Answer, Backend, Created, KnownKeys, Page, Store, Swept, Unproven, Want};
use crate::time::Timestamp;

const NAME: &str = "__Host-id";

mod one_request {
    use super::*;

    suite!(|| Fresh::new(CookieBacked::new(NAME, None), ());
        parallel_increments_are_all_counted
        parallel_patches_of_different_keys_are_all_kept
        parallel_merges_and_appends_are_all_kept
        first_of_two_refusals_is_reported
        writes_beside_new_ids_are_kept_or_refused
        create_never_overwrites
    );
}

mod request_after_request {
    use super::*;

    suite!(|| Fresh::new(Jars::new(), ());
        random_histories_match_the_model
        create_never_overwrites
    );
}

/// The cookie jar of a browser for each session.
#[derive(Debug)]
struct Jars {
    ring: KeyRing,
    jars: Mutex<BTreeMap<Id, Jar>>,
}

#[derive(Debug)]
enum Jar {
    /// A cookie, and `principal_since` and `unpresented`, which it leaves out because its token is never rotated away.
    Cookie(String, u32, bool),
    /// The tombstone that a request leaves for its own later calls.
    Ended(Entry),
}

impl Jars {
    fn new() -> Self {
        let ring = KeyRing::new(&Zeroizing::new([7; 32]), &[]);
        Self { ring, jars: Mutex::default() }
    }

    /// Makes a request with the jar's cookie, and puts the response's cookie into the jar.
    async fn request<T>(&self, id: Id, call: impl AsyncFnOnce(&CookieBacked) -> T) -> T {
        let mut jars = self.jars.lock().await;
        let entry = jars.get(&id).map(|jar| (id, self.open(jar)));
        let cookie = CookieBacked::new(NAME, entry);
        let answer = call(&cookie).await;
        match cookie.load(id, Want::Values).await.expect("no I/O") {
            None => jars.remove(&id),
            Some(ended @ Entry::Ended { .. }) => jars.insert(id, Jar::Ended(ended)),
            Some(Entry::Live(Record { meta, .. })) => {
                let cookie = cookie.seal(id, &self.ring).expect("small enough");
                jars.insert(
                    id,
                    Jar::Cookie(cookie.reveal().to_owned(), meta.principal_since, meta.unpresented),
                )
            }
        };
        answer
    }

    fn open(&self, jar: &Jar) -> Entry {
        match jar {
            Jar::Ended(entry) => entry.clone(),
            Jar::Cookie(text, principal_since, unpresented) => {
                let opened = Sealed::open(&self.ring, NAME, text.as_bytes());
                let mut record = opened.expect("sealed with this key").0.record;
                record.meta.principal_since = *principal_since;
                record.meta.unpresented = *unpresented;
                Entry::Live(record)
            }
        }
    }
}

impl Backend for Jars {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        Box::pin(self.request(id, async move |cookie| cookie.load(id, want).await))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        Box::pin(self.request(id, async move |cookie| cookie.create(id, record, policy).await))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        Box::pin(self.request(id, async move |cookie| cookie.patch(id, change, want).await))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        Box::pin(self.request(id, async move |cookie| cookie.record_use(id, used, policy).await))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(self.request(id, async move |cookie| cookie.remove(id).await))
    }

    fn unproven(&self) -> Unproven {
        Unproven::None
    }
}

impl Store for Jars {
    /// Lists all jars, for the histories only.
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        Box::pin(async move {
            let all = Memory::for_tests(Memory::DEFAULT_MAX_BYTES);
            for (id, jar) in &*self.jars.lock().await {
                if let Entry::Live(record) = self.open(jar) {
                    all.create(*id, &record, &Policy::default()).await?;
                }
            }
            all.list(principal, cursor, limit).await
        })
    }

    fn expired(&self, _now: Timestamp) -> Answer<'_, u64> {
        Box::pin(ready(Ok(0)))
    }

    fn sweep<'a>(&'a self, _now: Timestamp, _policy: &'a Policy) -> Answer<'a, Swept> {
        Box::pin(ready(Ok(Swept::default())))
    }

    fn exchange_keys<'a>(
        &'a self,
        _own: &'a [Fingerprint],
        _now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(ready(Ok(KnownKeys::NotKept)))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}

/// A request's cookie as a store, so that the suite runs over it. It is in no list.
impl Store for CookieBacked {
    fn list<'a>(
        &'a self,
        _principal: Option<&'a Principal>,
        _cursor: Option<&'a str>,
        _limit: usize,
    ) -> Answer<'a, Page> {
        Box::pin(ready(Ok(Page::default())))
    }

    fn expired(&self, _now: Timestamp) -> Answer<'_, u64> {
        Box::pin(ready(Ok(0)))
    }

    fn sweep<'a>(&'a self, _now: Timestamp, _policy: &'a Policy) -> Answer<'a, Swept> {
        Box::pin(ready(Ok(Swept::default())))
    }

    fn exchange_keys<'a>(
        &'a self,
        _own: &'a [Fingerprint],
        _now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(ready(Ok(KnownKeys::NotKept)))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}
