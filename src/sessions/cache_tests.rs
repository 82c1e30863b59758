//! Cached records that are older than the store's may only show that a token opens its session: for
//! each pair of an older and a newer record of one session, and each token.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::request::CookieOutcome;
use super::request_session::{RequestSession, Storage};
use super::{Arrival, Opened, ResponseKind, SessionStatus, Sessions, Shared, TouchPolicy};
use crate::audit::Source;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::navigation::{Navigation, Origin};
use crate::session::patch::{
    Authority, Change, ExpiryChange, Op, Patch, Proof, Rotate, Tombstone, Use,
};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Expiry, Key, Meta, Principal, Record, Values};
use crate::session::rotation::Verdict;
use crate::session::token::CookieToken;
use crate::store::cache::{Cached, Coherence, RecordCache};
use crate::store::config::OnError;
use crate::store::memory::Memory;
use crate::store::{Backend as _, Want};
use crate::time::{Clock, Timestamp};

/// A change of a record.
#[derive(Clone, Copy, Debug)]
enum Transition {
    Promote,
    Rotate,
    LogIn,
    Write,
    Touch,
    Expiry(u64),
    /// With a tombstone in its place, or nothing.
    Destroy(bool),
    Pass(u64),
}

/// A store, and a cache with what the store had some transitions ago.
struct World {
    store: Arc<Memory>,
    direct: Sessions,
    cached: Sessions,
    clock: Clock,
    id: Id,
    older: Option<Meta>,
}

const GRACE: Duration = Duration::from_mins(2);

impl World {
    async fn new(older: &[Transition], newer: &[Transition]) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let policy = Policy {
            rotate_every: Some(GRACE),
            rotation_grace: GRACE,
            idle_timeout: Duration::from_mins(10),
            ..Policy::default()
        };
        let shared = Shared::for_tests(&clock, policy);
        let store = Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES));
        let hot = Arc::new(RecordCache::new(1 << 20, Coherence::Owned));
        let cache = Arc::new(Cached::new(Arc::<Memory>::clone(&store), hot));
        let id = Id::from_bytes([7; 16]);
        let record = Record { meta: Meta::new(1, clock.now()), values: Values::new() };
        store.create(id, &record, &shared.policy).await.expect("created");
        let direct = Sessions::new(Some(Arc::<Memory>::clone(&store)), Arc::clone(&shared));
        let cached = Sessions::new(Some(Arc::<Cached>::clone(&cache)), shared);
        let mut world = Self { store, direct, cached, clock, id, older: None };
        for transition in older {
            world.apply(*transition).await;
        }
        cache.load(id, Want::Values).await.expect("loaded");
        let held = cache.cached(id, Want::Meta).and_then(Entry::into_live);
        world.older = held.map(|record| record.meta);
        for transition in newer {
            world.apply(*transition).await;
        }
        world
    }

    /// Applies a transition to the store, without the cache.
    async fn apply(&self, transition: Transition) {
        let destroyed = Patch { destroy: true, ..Patch::default() };
        let (patch, tombstone) = match transition {
            Transition::Pass(seconds) => {
                self.clock.advance(Duration::from_secs(seconds));
                return;
            }
            Transition::Promote | Transition::Touch => {
                let is_promotion = matches!(transition, Transition::Promote);
                let generation = self.generation().await + u32::from(is_promotion);
                let now = self.clock.now();
                let used = Use {
                    generation,
                    touches: !is_promotion,
                    sets_cookie: false,
                    proves: Proof::None,
                    now,
                };
                let policy = &self.direct.shared.policy;
                self.store.record_use(self.id, used, policy).await.expect("recorded");
                return;
            }
            Transition::Rotate => (Patch::of_rotation(Rotate::Token), Tombstone::None),
            Transition::LogIn => (Patch::of_log_in(ada()), Tombstone::None),
            Transition::Write => {
                let op = Op::Increment(Key::new("n").expect("a key"), 1);
                (Patch::of(op), Tombstone::None)
            }
            Transition::Expiry(seconds) => {
                let own = Expiry::Idle(Duration::from_secs(seconds));
                let expiry = Some(ExpiryChange::Own(own));
                (Patch { expiry, ..Patch::default() }, Tombstone::None)
            }
            Transition::Destroy(true) => (destroyed, Tombstone::Leave),
            Transition::Destroy(false) => (destroyed, Tombstone::None),
        };
        let change = Change {
            patch: &patch,
            condition: None,
            authority: Authority::Service(0),
            policy: &self.direct.shared.policy,
            now: self.clock.now(),
            touches: true,
            tombstone,
            held_keys: None,
            known: None,
        };
        let _ = self.store.patch(self.id, change, Want::Meta).await.expect("answered");
    }

    async fn generation(&self) -> u32 {
        let entry = self.store.load(self.id, Want::Meta).await.expect("loaded");
        entry.and_then(Entry::into_live).map_or(1, |record| record.meta.generation)
    }

    async fn open(&self, sessions: &Sessions, token: &Secret) -> Opened {
        let arrival = Arrival {
            origin: Origin { navigation: Navigation::Safe, withholds_cookie: false },
            cookies: [Secret::new(token.reveal().to_owned())].into_iter().collect(),
            header_exchange: None,
            touch: TouchPolicy::OnUse,
            on_error: OnError::Fail,
            turn_within: None,
            address: None,
            client: None,
            source: Source::default(),
        };
        sessions.opener().open(arrival).await.expect("the store answers")
    }

    /// Compares the results of a token of `generation` with the cache and with the store.
    async fn check(&self, generation: u32) {
        let shared = &self.direct.shared;
        let (name, now) = (&shared.attributes.name, self.clock.now());
        let token = CookieToken { id: self.id, generation }.sign(&shared.ring, name);
        let truth = self.open(&self.direct, &token).await;
        let truth = truth.guard.session().request.outcome.clone();
        let opened = self.open(&self.cached, &token).await;
        let session = opened.guard.session();
        let outcome = &session.request.outcome;
        if *outcome != truth {
            let older = self.older.as_ref().expect("the cache holds a record");
            let by_older = Verdict::of(generation, older, &shared.policy, now);
            assert!(by_older.is_valid(), "{generation}: {outcome:?}, not {truth:?}");
            let CookieOutcome::Session { verdict, meta, .. } = outcome else {
                panic!("{generation}: {outcome:?}, not {truth:?}");
            };
            assert_eq!((*verdict, &**meta), (by_older, older));
        }
        let direct = RequestSession {
            storage: Storage::Store(Arc::<Memory>::clone(&self.store)),
            ..session.clone()
        };
        let read = session.read(Want::Meta).await.map_err(|error| error.to_string());
        if let Err(error) = read {
            let truth = direct.read(Want::Meta).await;
            assert_eq!(truth.map(drop).map_err(|truth| truth.to_string()), Err(error));
        }
        if let (Some(watched), Some(direct)) = (session.watch().await, direct.watch().await)
            && watched.check(false).await == SessionStatus::Ended
        {
            assert_eq!(direct.check(false).await, SessionStatus::Ended);
        }
        let cookie = session.commit(ResponseKind::Normal, None, None).await.cookie;
        if let Some(line) = cookie {
            let line = line.to_str().expect("text");
            let value = line.split(['=', ';']).nth(1).expect("a value");
            if value.is_empty() {
                assert_eq!(truth, CookieOutcome::Unknown, "the cookie of {generation} was deleted");
            } else {
                let set = self.open(&self.direct, &Secret::new(value.to_owned())).await;
                let set = &set.guard.session().request.outcome;
                let opens = matches!(
                    set,
                    CookieOutcome::Session { verdict: Verdict::Current | Verdict::Next, .. }
                );
                assert!(opens, "the cookie that was set for {generation} is {set:?}");
            }
        }
    }
}

fn transitions() -> impl Strategy<Value = Vec<Transition>> {
    let one = prop_oneof![
        3 => Just(Transition::Promote),
        2 => Just(Transition::Rotate),
        2 => Just(Transition::LogIn),
        1 => Just(Transition::Write),
        2 => Just(Transition::Touch),
        1 => (10_u64..4000).prop_map(Transition::Expiry),
        1 => any::<bool>().prop_map(Transition::Destroy),
        4 => (1_u64..400).prop_map(Transition::Pass),
    ];
    prop::collection::vec(one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cached_record_only_ever_opens(older in transitions(), newer in transitions()) {
        crate::log::begin_for_tests();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let last = World::new(&older, &newer).await.generation().await;
            for generation in 0..last + 4 {
                World::new(&older, &newer).await.check(generation).await;
            }
        });
    }
}

fn ada() -> Principal {
    Principal::new("ada").expect("a principal")
}
