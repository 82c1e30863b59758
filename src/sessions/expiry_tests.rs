//! Random histories of sessions that expire: each is counted once among those that have ended, with its reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{ChangeRequest, Sessions, Shared};
use crate::audit::By;
use crate::random;
use crate::session::id::{Id, PublicId};
use crate::session::patch::Patch;
use crate::session::policy::Policy;
use crate::session::record::{Expiry, Meta, Principal, Record, Values};
use crate::store::file::Files;
use crate::store::memory::Memory;
use crate::store::sqlite::Sqlite;
use crate::store::{Created, Store};
use crate::tasks::Tasks;
use crate::time::{Clock, Timestamp};

/// The end that a session has unless it is destroyed before.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Idle,
    Absolute,
    Unproven,
    Date,
}

/// What ends a session, or finds that it has ended. Its number selects one of the sessions.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create(Kind),
    /// A call with the service token, or the form of the admin page.
    Destroy(usize, By),
    /// A patch of a back office.
    Patch(usize),
    /// A log-out everywhere.
    DestroyAll,
    Sweep,
    Pass(Duration),
}

struct World {
    sessions: Sessions,
    store: Arc<dyn Store>,
    clock: Clock,
    /// Those that have not ended, as far as is known: id, the time of the expiry, and its reason.
    open: Vec<(Id, Timestamp, &'static str)>,
    expected: BTreeMap<&'static str, u64>,
}

const TIMEOUT: Duration = Duration::from_secs(10);

fn principal() -> Principal {
    Principal::new("ada").expect("a principal")
}

impl World {
    fn new(store: impl FnOnce(&Clock) -> Arc<dyn Store>) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let policy = Policy {
            idle_timeout: Duration::from_hours(1),
            absolute_timeout: Some(Duration::from_hours(2)),
            unproven_timeout: Some(Duration::from_mins(20)),
            ..Policy::default()
        };
        let shared = Shared::for_tests(&clock, policy);
        let store = store(&clock);
        let sessions = Sessions::new(Some(Arc::clone(&store)), shared);
        Self { sessions, store, clock, open: Vec::new(), expected: BTreeMap::new() }
    }

    async fn create(&mut self, kind: Kind) {
        let (id, now) = (Id::from_bytes(random::bytes()), self.clock.now());
        let mut meta = Meta::new(0, now);
        meta.unproven = matches!(kind, Kind::Unproven);
        meta.principal = (!meta.unproven).then(principal);
        let reason = match kind {
            Kind::Idle => "idle_timeout",
            Kind::Unproven => "unproven_timeout",
            Kind::Absolute => {
                meta.expiry = Some(Expiry::Idle(Duration::from_hours(10)));
                "absolute_timeout"
            }
            Kind::Date => {
                meta.expiry = Some(Expiry::At(now + Duration::from_mins(30)));
                "expired_by_date"
            }
        };
        let policy = &self.sessions.shared().policy;
        self.open.push((id, policy.ends_at(&meta), reason));
        let record = Record { meta, values: Values::new() };
        let created = self.store.create(id, &record, policy).await;
        assert_eq!(created.expect("created"), Created::Done);
    }

    /// Expects that a session ends now, and returns its id. One that has expired has its own reason.
    fn end(&mut self, at: usize) -> Option<PublicId> {
        if self.open.is_empty() {
            return None;
        }
        let (id, over_at, reason) = self.open.swap_remove(at % self.open.len());
        let reason = if self.clock.now() < over_at { "destroyed_by_service" } else { reason };
        *self.expected.entry(reason).or_default() += 1;
        Some(PublicId::first(id))
    }

    /// Expects the end of those that have expired, or of those that have not.
    fn end_each(&mut self, is_ended: impl Fn(&(Id, Timestamp, &'static str), Timestamp) -> bool) {
        let now = self.clock.now();
        while let Some(at) = self.open.iter().position(|one| is_ended(one, now)) {
            self.end(at);
        }
    }

    async fn take(&mut self, step: Step) {
        let directory = |by| self.sessions.directory(by).expect("a store");
        let (service, operator) = (directory(By::Service), directory(By::Operator));
        match step {
            Step::Create(kind) => self.create(kind).await,
            Step::Destroy(at, by) => {
                let directory = if by == By::Operator { operator } else { service };
                if let Some(id) = self.end(at) {
                    directory.destroy(id).await.expect("destroyed");
                    // Again, which finds nothing.
                    assert_eq!(directory.destroy(id).await.expect("an answer").count, 0);
                }
            }
            Step::Patch(at) => {
                let Some((id, over_at, _)) = self.open.get(at % self.open.len().max(1)).copied()
                else {
                    return;
                };
                let patch = Patch::of_destroy();
                let change = service.apply(PublicId::first(id), ChangeRequest::new(&patch)).await;
                let is_live = self.clock.now() < over_at;
                assert_eq!(change.is_ok(), is_live);
                if is_live {
                    self.end(at % self.open.len());
                }
            }
            Step::DestroyAll => {
                service.destroy_all_of(&principal(), None).await.expect("destroyed");
                self.end_each(|(_, over_at, reason), now| {
                    now < *over_at && *reason != "unproven_timeout"
                });
            }
            Step::Sweep => {
                self.sessions.sweep(|_| ()).await.expect("swept");
                self.end_each(|(_, over_at, _), now| *over_at <= now);
            }
            Step::Pass(duration) => self.clock.advance(duration),
        }
    }

    /// Returns how many sessions have ended, by the reason.
    fn counted(&self) -> BTreeMap<&'static str, u64> {
        let text = self.sessions.shared().metrics.text();
        let mut counted = BTreeMap::new();
        for reason in [
            "idle_timeout",
            "absolute_timeout",
            "unproven_timeout",
            "expired_by_date",
            "destroyed_by_service",
            "logout",
            "evicted",
        ] {
            let series = format!("cloakroom_sessions_ended_total{{reason=\"{reason}\"}} ");
            let count = text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok());
            counted.insert(reason, count.expect("a count"));
        }
        counted.retain(|_, count| *count > 0);
        counted
    }

    async fn play(mut self, steps: &[Step]) {
        let rest = [Step::Pass(Duration::from_hours(48)), Step::Sweep, Step::Sweep];
        for step in steps.iter().chain(&rest) {
            self.take(*step).await;
            assert_eq!(self.counted(), self.expected, "after {step:?} of {steps:?}");
        }
        assert!(self.open.is_empty());
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Idle, Kind::Absolute, Kind::Unproven, Kind::Date])
}

fn step() -> impl Strategy<Value = Step> {
    let minutes = prop::sample::select(vec![1_u64, 10, 19, 20, 30, 59, 61, 90]);
    prop_oneof![
        4 => kind().prop_map(Step::Create),
        3 => (any::<usize>(), prop::sample::select(vec![By::Service, By::Operator]))
            .prop_map(|(at, by)| Step::Destroy(at, by)),
        1 => any::<usize>().prop_map(Step::Patch),
        1 => Just(Step::DestroyAll),
        1 => Just(Step::Sweep),
        3 => minutes.prop_map(|minutes| Step::Pass(Duration::from_mins(minutes))),
    ]
}

fn play(world: World, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(world.play(steps));
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_store_counts_each_end_once(steps in prop::collection::vec(step(), 1..60)) {
        play(World::new(|_| Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES))), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sqlite_counts_each_end_once(steps in prop::collection::vec(step(), 1..60)) {
        let directory = directory();
        let path = directory.path().join("sessions.db");
        let open = |_: &Clock| {
            Arc::new(Sqlite::open(&path, TIMEOUT, Tasks::new()).expect("a database")) as _
        };
        play(World::new(open), &steps);
    }

    #[test]
    fn files_count_each_end_once(steps in prop::collection::vec(step(), 1..60)) {
        let directory = directory();
        let open = |_: &Clock| Arc::new(Files::open(directory.path(), TIMEOUT).expect("files")) as _;
        play(World::new(open), &steps);
    }
}
