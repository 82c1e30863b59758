//! Random histories, played against a store and the model in parallel.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestCaseResult, TestRunner};
use zeroize::Zeroizing;

use super::kit::{json, key, new_id, now, pages};
use super::model::Model;
use super::seed::{
    AuthoritySeed, ConditionSeed, ExpirySeed, HeldSeed, KEYS, Kind, KnownSeed, PatchSeed,
    RecordSeed, SLOTS, SetSeed, Step, UseSeed, WantSeed, any_policy, any_record, any_step,
};
use super::{Fresh, runtime};
use crate::secret::Secret;
use crate::session::held::{
    HeldChange, HeldKeys, HeldOp, Identity, Lifetime, ReplacedFor, SetCookie,
};
use crate::session::id::Id;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{
    Applied, Authority, Change, Condition, ExpiryChange, Patch, Replicated, Use, value_tag,
};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Expiry, Key, Meta, Principal, Record, Values};
use crate::store::{Created, Store, Unproven, Want};
use crate::time::Timestamp;

const CASES: u32 = 48;
const STEPS: usize = 70;

pub(crate) fn random_histories_match_the_model(fresh: fn() -> Fresh) {
    let runtime = runtime();
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let begin = [(); SLOTS].map(|()| any_record());
    let histories = (any_policy(), begin, vec(any_step(), 1..STEPS));
    TestRunner::new(config)
        .run(&histories, |(policy, begin, steps)| {
            let fresh = fresh();
            let begin = begin.into_iter().enumerate();
            let begin = begin.map(|(slot, seed)| Step::Create(slot, seed));
            runtime.block_on(play(&*fresh.store, policy, begin.chain(steps)))
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Plays a history against the store and the model.
///
/// The clock starts a minute ahead of the machine's, which the server of a store may use: an entry that
/// is alive here must not have expired there. The reverse is allowed.
async fn play(
    store: &dyn Store,
    policy: Policy,
    steps: impl Iterator<Item = Step>,
) -> TestCaseResult {
    let mut play = Play {
        store,
        model: Model::new(policy, now() + Duration::from_mins(1)),
        ids: [(); SLOTS].map(|()| new_id()),
        keys: KEYS.map(key),
        earlier: HashMap::new(),
        ring: Arc::new(KeyRing::new(&Zeroizing::new([7; 32]), &[])),
    };
    for (at, step) in steps.enumerate() {
        let name = format!("step {at}: {step:?}");
        play.step(step).await.map_err(|error| TestCaseError::fail(format!("{name}: {error}")))?;
    }
    for slot in 0..SLOTS {
        play.load(play.ids[slot], WantSeed::Values).await?;
    }
    Ok(())
}

struct Play<'a> {
    store: &'a dyn Store,
    model: Model,
    ids: [Id; SLOTS],
    keys: [Key; KEYS.len()],
    /// Sessions as they were once.
    earlier: HashMap<Id, Meta>,
    ring: Arc<KeyRing>,
}

#[track_caller]
fn same<T: Debug + PartialEq>(answer: &T, expected: &T) -> TestCaseResult {
    prop_assert_eq!(answer, expected);
    Ok(())
}

impl Play<'_> {
    async fn step(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Create(slot, seed) => self.create(self.ids[slot], seed).await,
            Step::Load(slot, want) => {
                let id = self.ids[slot];
                if let Some(Entry::Live(record)) = self.model.entries.get(&id) {
                    self.earlier.insert(id, record.meta.clone());
                }
                self.load(id, want).await
            }
            Step::Patch(slot, seed, want) => self.patch(self.ids[slot], seed, want).await,
            Step::Use(slot, seed) => self.record_use(self.ids[slot], seed).await,
            Step::Remove(slot) => self.remove(self.ids[slot]).await,
            Step::List(principal, limit) => self.list(principal.as_ref(), limit).await,
            Step::Sweep => self.sweep().await,
            Step::Wait(step) => {
                self.model.wait(step);
                Ok(())
            }
            Step::WaitForEnd(slot, after) => {
                let end = match self.model.entries.get(&self.ids[slot]) {
                    Some(Entry::Live(record)) => self.model.policy.ends_at(&record.meta),
                    Some(Entry::Ended { until }) => *until,
                    None => self.model.now,
                };
                // Not to the end of time: every later step would find everything expired.
                if end < self.model.now + Duration::from_hours(24) {
                    self.model.wait_until(Timestamp::from_millis(end.as_millis() + after));
                }
                Ok(())
            }
        }
    }

    async fn create(&mut self, id: Id, seed: RecordSeed) -> TestCaseResult {
        let record = self.record(seed);
        let created = self.store.create(id, &record, &self.model.policy).await?;
        let exists = self.model.entries.contains_key(&id);
        match created {
            Created::Exists => {
                prop_assert!(exists || self.model.expired.contains(&id), "not taken");
            }
            Created::Done => {
                prop_assert!(!exists, "overwritten");
                self.earlier.insert(id, record.meta.clone());
                self.model.insert(id, record);
            }
        }
        Ok(())
    }

    async fn load(&self, id: Id, want: WantSeed) -> TestCaseResult {
        let want = self.want(want);
        // A cache must not serve a record older than a change that went through it.
        if let Some(held) = self.store.cached(id, want) {
            same(&self.model.unexpired(Some(held)), &self.model.load(id, want))?;
        }
        let answer = self.store.load(id, want).await?;
        same(&self.model.unexpired(answer), &self.model.load(id, want))
    }

    async fn patch(&mut self, id: Id, seed: PatchSeed, want: WantSeed) -> TestCaseResult {
        let found = match self.model.entries.get(&id) {
            Some(Entry::Live(record)) => record.clone(),
            _ => Record { meta: Meta::new(0, self.model.now), values: Values::new() },
        };
        let patch = self.patch_of(&seed, &found.meta);
        let condition = seed.condition.map(|(at, kind)| {
            let key = self.keys[at].clone();
            let tag = found.values.get(&key).map(|text| value_tag(text.as_str()));
            match kind {
                ConditionSeed::Missing => Condition::Missing(key),
                ConditionSeed::Present => Condition::Present(key),
                ConditionSeed::RightTag => Condition::Tagged(key, tag.unwrap_or_default()),
                ConditionSeed::WrongTag => Condition::Tagged(key, "0".repeat(40)),
            }
        });
        let (max_values, max_bytes) =
            seed.limits.unwrap_or((self.model.policy.max_values, self.model.policy.max_bytes));
        let policy = Policy { max_bytes, max_values, ..self.model.policy.clone() };
        let known = match seed.known {
            KnownSeed::Nothing => None,
            KnownSeed::Current => Some(found.meta.clone()),
            KnownSeed::Earlier => self.earlier.get(&id).cloned(),
        };
        let change = Change {
            patch: &patch,
            condition: condition.as_ref(),
            authority: authority_on(&found.meta, seed.authority),
            policy: &policy,
            now: self.model.now,
            touches: seed.touches,
            tombstone: seed.tombstone,
            held_keys: Some(HeldKeys { ring: &self.ring, id }),
            known: known.as_ref(),
        };
        let keys = self.keys.clone();
        let want = wanted(&keys, want);
        let answer = self.store.patch(id, change, want).await?;
        // Replication depends on the deployment, which the model does not know.
        let replicated = Replicated::NotAsked;
        let answer = answer.map(|applied| Applied { replicated, ..applied });
        same(&answer, &self.model.patch(id, change, want))
    }

    async fn record_use(
        &mut self,
        id: Id,
        UseSeed { away, touches, sets_cookie, proves }: UseSeed,
    ) -> TestCaseResult {
        let generation = match self.model.entries.get(&id) {
            Some(Entry::Live(record)) => away_from(record.meta.generation, away),
            _ => 1,
        };
        let used = Use { generation, touches, sets_cookie, proves, now: self.model.now };
        let answer = self.store.record_use(id, used, &self.model.policy).await?;
        same(&self.model.unexpired(answer), &self.model.record_use(id, used))
    }

    async fn remove(&mut self, id: Id) -> TestCaseResult {
        let removed = self.store.remove(id).await?.is_some();
        let expected = self.model.remove(id).unwrap_or(removed);
        same(&removed, &expected)
    }

    async fn list(&self, principal: Option<&Principal>, limit: usize) -> TestCaseResult {
        let mut listed = pages(self.store, principal, limit).await;
        listed.retain(|(_, meta)| self.model.policy.is_alive(meta, self.model.now));
        let expected: Vec<(Id, Meta)> = self
            .model
            .entries
            .iter()
            .filter_map(|(id, entry)| match entry {
                Entry::Live(record) => Some((*id, record.meta.clone())),
                Entry::Ended { .. } => None,
            })
            .filter(|(_, meta)| principal.is_none() || meta.principal.as_ref() == principal)
            .collect();
        same(&listed, &expected)
    }

    async fn sweep(&self) -> TestCaseResult {
        let swept = self.store.sweep(self.model.now, &self.model.policy).await?;
        let sessions = swept.sessions.values().sum::<u64>();
        prop_assert!(
            usize::try_from(sessions).is_ok_and(|swept| swept <= self.model.expired.len()),
            "{swept:?}"
        );
        Ok(())
    }

    fn want(&self, seed: WantSeed) -> Want<'_> {
        wanted(&self.keys, seed)
    }

    fn record(&self, seed: RecordSeed) -> Record {
        let now = self.model.now;
        let then = now - seed.age;
        let mut meta = Meta::new(seed.version, then);
        meta.generation = seed.generation;
        meta.previous_until = seed.previous.map(|ago| now - ago);
        meta.login_at = seed.login.map(|ago| now - ago);
        meta.former_principal = seed.former.filter(|_| seed.principal.is_none()).map(Box::new);
        meta.principal = seed.principal;
        meta.principal_since =
            seed.principal_since.map_or(0, |ago| seed.generation.saturating_sub(ago));
        meta.id_counter = seed.id_counter;
        meta.expiry = seed.expiry.and_then(|seed| self.expiry(seed));
        meta.withheld = seed.withheld;
        // Unproven records have no principal and no renewed token.
        meta.unproven =
            seed.unproven && meta.principal.is_none() && self.store.unproven() != Unproven::None;
        meta.floor = seed.generation.saturating_sub(u32::from(!meta.unproven));
        meta.client = seed.client.map(Box::new);
        Record {
            meta,
            values: seed.values.into_iter().map(|(key, text)| (key, json(text))).collect(),
        }
    }

    fn expiry(&self, seed: ExpirySeed) -> Option<Expiry> {
        Some(match seed {
            ExpirySeed::Policy => return None,
            ExpirySeed::Idle(seconds) => Expiry::Idle(Duration::from_secs(seconds)),
            ExpirySeed::BrowserClose(seconds) => {
                Expiry::BrowserClose(seconds.map(Duration::from_secs))
            }
            ExpirySeed::At(after) => {
                Expiry::At(Timestamp::from_millis(self.model.now.as_millis().saturating_add(after)))
            }
            ExpirySeed::Never => Expiry::At(Timestamp::MAX),
        })
    }

    fn patch_of(&self, seed: &PatchSeed, meta: &Meta) -> Patch {
        let if_version = seed.version.map(|away| meta.version.wrapping_add(away));
        match seed.kind.clone() {
            Kind::Destroy => Patch { if_version, destroy: true, ..Patch::default() },
            Kind::Change { ops, expiry, principal, rotate, held } => Patch {
                if_version,
                destroy: false,
                ops,
                expiry: expiry.map(|seed| match self.expiry(seed) {
                    Some(expiry) => ExpiryChange::Own(expiry),
                    None => ExpiryChange::Policy,
                }),
                principal,
                rotate,
                held: held.map(|seed| self.held_change(seed, meta)),
                drops_if_lost: false,
            },
        }
    }
}

impl Play<'_> {
    fn held_change(&self, seed: HeldSeed, meta: &Meta) -> HeldChange {
        let set = |SetSeed { name, path, value, lasts, rotates, nonce }: SetSeed| {
            let text = |text: &str| text.to_owned();
            let identity =
                Identity { name: text(name), domain: text("a.example"), path: text(path) };
            let lifetime = match lasts {
                None => Lifetime::Browser,
                Some(millis) => Lifetime::Until(Timestamp::from_millis(
                    self.model.now.as_millis().saturating_add(millis),
                )),
            };
            let value = Secret::new(text(value));
            let cookie = SetCookie {
                identity,
                is_host_only: true,
                value,
                lifetime,
                is_http_only: true,
                same_site: None,
            };
            HeldOp::Set { cookie, nonce, rotates }
        };
        let clear = seed.clears.then_some(HeldOp::Clear);
        HeldChange {
            ops: clear.into_iter().chain(seed.sets.into_iter().map(set)).collect(),
            may_rotate: seed.may_rotate,
            replaced_for: seed
                .replaces
                .then_some(ReplacedFor { from: meta.floor, since: meta.generation_since }),
        }
    }
}

fn authority_on(meta: &Meta, seed: AuthoritySeed) -> Authority {
    match seed {
        AuthoritySeed::Request(away) => Authority::Request(away_from(meta.generation, away)),
        AuthoritySeed::Stale(away) => Authority::Stale(away_from(meta.generation, away)),
        AuthoritySeed::Service(true) => Authority::Service(meta.id_counter),
        AuthoritySeed::Service(false) => Authority::Service(meta.id_counter.wrapping_add(1)),
    }
}

fn wanted(keys: &[Key], seed: WantSeed) -> Want<'_> {
    match seed {
        WantSeed::Meta => Want::Meta,
        WantSeed::Value(at) => Want::Value(&keys[at]),
        WantSeed::Before(at) => Want::Before(&keys[at]),
        WantSeed::Values => Want::Values,
    }
}

fn away_from(generation: u32, away: i64) -> u32 {
    let generation = i64::from(generation).saturating_add(away);
    u32::try_from(generation.clamp(0, i64::from(u32::MAX))).expect("in range")
}
