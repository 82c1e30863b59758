//! The suite that every store passes, over sessions in cookies: between any two operations the
//! session is nowhere but in a jar, sealed.
//!
//! What is left out is what cookies cannot do, as `docs/sessions.md` lists it: being listed, being
//! swept, more than 4,096 bytes, and two requests at once. What requests at once ask of a store, the
//! calls of one request at once ask of its session here.

use std::collections::BTreeMap;
use std::future::ready;

use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::carried::Carried;
use crate::metrics::Metrics;
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::session::sealed::Sealed;
use crate::store::conformance::{Fresh, suite};
use crate::store::memory::Memory;
use crate::store::{Answer, Backend, Created, KnownKeys, Page, Store, Unproven, Want};
use crate::time::Timestamp;

const NAME: &str = "__Host-id";

mod one_request {
    use super::*;

    suite!(|| Fresh::new(Carried::new(NAME, None), ());
        parallel_increments_all_count
        parallel_patches_of_different_keys_all_hold
        create_overwrites_neither_a_session_nor_a_marker
    );
}

mod request_after_request {
    use super::*;

    suite!(|| Fresh::new(Jars::new(), ());
        random_histories_answer_as_the_pure_function
        create_overwrites_neither_a_session_nor_a_marker
    );
}

/// A browser's jar for each session.
#[derive(Debug)]
struct Jars {
    ring: KeyRing,
    jars: Mutex<BTreeMap<Id, Jar>>,
}

#[derive(Debug)]
enum Jar {
    Cookie(String),
    /// What a request that ends its session remembers while it lasts.
    Ended(Entry),
}

impl Jars {
    fn new() -> Self {
        let ring = KeyRing::new(&Zeroizing::new([7; 32]), &[]);
        Self { ring, jars: Mutex::default() }
    }

    /// A request with the jar's cookie, and what its response leaves in the jar.
    async fn request<T>(&self, id: Id, call: impl AsyncFnOnce(&Carried) -> T) -> T {
        let mut jars = self.jars.lock().await;
        let entry = jars.get(&id).map(|jar| (id, self.open(jar)));
        let carried = Carried::new(NAME, entry);
        let answer = call(&carried).await;
        match carried.load(id, Want::Values).await.expect("it is here") {
            None => jars.remove(&id),
            Some(ended @ Entry::Ended { .. }) => jars.insert(id, Jar::Ended(ended)),
            Some(Entry::Live(_)) => {
                let cookie = carried.seal(id, &self.ring).expect("it fits");
                jars.insert(id, Jar::Cookie(cookie.reveal().to_owned()))
            }
        };
        answer
    }

    fn open(&self, jar: &Jar) -> Entry {
        match jar {
            Jar::Ended(entry) => entry.clone(),
            Jar::Cookie(text) => {
                let opened = Sealed::open(&self.ring, NAME, text.as_bytes());
                Entry::Live(opened.expect("we sealed it").0.record)
            }
        }
    }
}

impl Backend for Jars {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        Box::pin(self.request(id, async move |carried| carried.load(id, want).await))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        Box::pin(self.request(id, async move |carried| carried.create(id, record, policy).await))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        Box::pin(self.request(id, async move |carried| carried.patch(id, change, want).await))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        Box::pin(self.request(id, async move |carried| carried.record_use(id, used, policy).await))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(self.request(id, async move |carried| carried.remove(id).await))
    }

    fn unproven(&self) -> Unproven {
        Unproven::None
    }
}

impl Store for Jars {
    /// Nobody but the histories can look into all jars.
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        Box::pin(async move {
            let all = Memory::new(Memory::DEFAULT_MAX_BYTES, Metrics::new());
            for (id, jar) in &*self.jars.lock().await {
                if let Entry::Live(record) = self.open(jar) {
                    all.create(*id, &record, &Policy::default()).await?;
                }
            }
            all.list(principal, cursor, limit).await
        })
    }

    fn sweep(&self, _now: Timestamp) -> Answer<'_, u64> {
        Box::pin(ready(Ok(0)))
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
impl Store for Carried {
    fn list<'a>(
        &'a self,
        _principal: Option<&'a Principal>,
        _cursor: Option<&'a str>,
        _limit: usize,
    ) -> Answer<'a, Page> {
        Box::pin(ready(Ok(Page::default())))
    }

    fn sweep(&self, _now: Timestamp) -> Answer<'_, u64> {
        Box::pin(ready(Ok(0)))
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
