//! Store health: tracks whether the store can be read and written, from its calls and probes.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want};
use crate::metrics::{Metrics, StoreAccess};
use crate::redis::{Notices, whole};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// A side stays down for this long after its last failure: on a nearly full disk, small changes
/// succeed and larger ones fail, by turns.
const RECOVERY_DELAY: Duration = Duration::from_secs(2);

/// The location of a store, which decides whether an instance with a failing store takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In the memory of the process.
    Process,
    /// On a disk of the machine: an instance whose disk fails must take no traffic.
    Disk,
    /// On the network: all instances lose it together.
    Network,
}

/// The state of the store of this process. Logs the changes of a local store; the Redis store logs
/// its own.
#[derive(Debug)]
pub(crate) struct Health {
    location: Location,
    metrics: Metrics,
    created: Instant,
    /// What the store itself has logged about its servers, maybe before a call failed.
    notices: Option<Arc<Notices>>,
    read: Side,
    write: Side,
}

/// The state of reads, or of writes.
#[derive(Debug, Default)]
struct Side {
    /// True while `history` is `reached` and has no failure. A successful call, which is nearly every
    /// one, then changes nothing and takes no lock.
    works: AtomicBool,
    /// The time of the last answer, in milliseconds after [`Health::created`], plus 1; 0 before the first.
    answered: AtomicU64,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// True once a call has succeeded.
    reached: bool,
    /// The failure, if there was no recovery since.
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    since: Instant,
    last: Instant,
    /// The cause of the last error.
    cause: String,
}

/// What the last calls say about reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// There was no call yet.
    NotUsed,
    /// The last call succeeded, this long ago.
    Works { age: Duration },
    Fails {
        /// The time since the last call.
        age: Duration,
        /// The time of the first of the calls that failed, or of its sign in the log.
        since: Instant,
        /// The cause of the last error.
        cause: String,
    },
}

/// What the last calls say about the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) read: Access,
    pub(crate) write: Access,
}

impl Access {
    /// Returns the time since the last call, if there was one.
    pub(crate) fn age(&self) -> Option<Duration> {
        match self {
            Self::NotUsed => None,
            Self::Works { age } | Self::Fails { age, .. } => Some(*age),
        }
    }
}

impl Side {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Returns the state before the first call.
    pub(crate) fn new(location: Location, metrics: Metrics) -> Self {
        // A local store has been opened by now. One over the network may not have been reached, and
        // is neither up nor down before its first call.
        if location != Location::Network {
            metrics.store_up(StoreAccess::Read, true);
            metrics.store_up(StoreAccess::Write, true);
        }
        let (read, write) = (Side::default(), Side::default());
        Self { location, metrics, created: Instant::now(), notices: None, read, write }
    }

    /// Dates failures from the time at which the store logged that a server cannot be used.
    #[must_use]
    pub(crate) fn with_notices(self, notices: Option<Arc<Notices>>) -> Self {
        Self { notices, ..self }
    }

    /// Returns true if [`Self::is_ready`] needs a probe first: a store on disk always, since an
    /// instance that is not ready may get no calls that would show its recovery; a store on the
    /// network until it was reached.
    pub(crate) fn needs_probe(&self) -> bool {
        match self.location {
            Location::Process => false,
            Location::Disk => true,
            Location::Network => !self.was_reached(),
        }
    }

    /// Returns true if the store lets this instance take traffic. A store on the network does so once
    /// it was read and written: if it becomes unreachable, it does so for all instances, and taking
    /// all of them out of service would turn a degradation into an outage.
    pub(crate) fn is_ready(&self) -> bool {
        match self.location {
            Location::Process => true,
            Location::Disk => self.was_reached() && !self.is_down(),
            Location::Network => self.was_reached(),
        }
    }

    /// Returns true if the store is on disk and its last reads or writes failed.
    pub(crate) fn is_down_on_disk(&self) -> bool {
        self.location == Location::Disk && self.is_down()
    }

    /// Returns what the last calls say.
    pub(crate) fn report(&self) -> Report {
        Report { read: self.access(&self.read), write: self.access(&self.write) }
    }

    fn access(&self, side: &Side) -> Access {
        let answered = side.answered.load(Ordering::Relaxed);
        if answered == 0 {
            return Access::NotUsed;
        }
        let age = self.created.elapsed().saturating_sub(Duration::from_millis(answered - 1));
        match &side.history().failure {
            None => Access::Works { age },
            Some(Failure { since, cause, .. }) => {
                Access::Fails { age, since: *since, cause: cause.clone() }
            }
        }
    }

    fn answered(&self, side: &Side) {
        let millis = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        side.answered.store(millis + 1, Ordering::Relaxed);
    }

    /// Returns when a cause was logged first, if that was after the last call, which succeeded.
    fn first_sign(&self, side: &Side, cause: &str) -> Option<Instant> {
        let logged = self.notices.as_ref()?.since(cause)?.into_std();
        let answered = Duration::from_millis(side.answered.load(Ordering::Relaxed));
        (logged.saturating_duration_since(self.created) >= answered).then_some(logged)
    }

    fn was_reached(&self) -> bool {
        let reached = |access| self.side(access).history().reached;
        reached(StoreAccess::Read) && reached(StoreAccess::Write)
    }

    fn is_down(&self) -> bool {
        let down = |access| self.side(access).history().failure.is_some();
        down(StoreAccess::Read) || down(StoreAccess::Write)
    }

    fn side(&self, access: StoreAccess) -> &Side {
        match access {
            StoreAccess::Read => &self.read,
            StoreAccess::Write => &self.write,
        }
    }

    fn succeeded(&self, access: StoreAccess) {
        let side = self.side(access);
        self.answered(side);
        if side.works.load(Ordering::Relaxed) {
            return;
        }
        // The lock is held until the metric is set, so that it shows the last change.
        let mut history = side.history();
        let was_reached = std::mem::replace(&mut history.reached, true);
        match &history.failure {
            None if was_reached => return,
            None => {}
            Some(Failure { last, .. })
                if self.location != Location::Network && last.elapsed() < RECOVERY_DELAY =>
            {
                return;
            }
            Some(_) => {
                history.failure = None;
                if self.location != Location::Network {
                    info!(operation = access.as_str(), "session store recovered");
                }
            }
        }
        side.works.store(true, Ordering::Relaxed);
        self.metrics.store_up(access, true);
    }

    fn failed(&self, access: StoreAccess, error: &Error) {
        let side = self.side(access);
        // Without what the error adds: that the store is not available, or full.
        let cause = whole(error.source().unwrap_or(error));
        let last = Instant::now();
        let mut history = side.history();
        let since = self.first_sign(side, &cause).unwrap_or(last);
        self.answered(side);
        if let Some(failure) = &mut history.failure {
            *failure = Failure { since: failure.since, last, cause };
            return;
        }
        history.failure = Some(Failure { since, last, cause });
        side.works.store(false, Ordering::Relaxed);
        self.metrics.store_up(access, false);
        if self.location != Location::Network {
            let cause = error.source().map(ToString::to_string);
            error!(operation = access.as_str(), %error, cause, "session store failed");
        }
    }

    /// Records the result of a read. A corrupt record shows that the store can be read.
    fn record_read<T>(&self, answer: &Result<T, Error>) {
        match answer {
            Ok(_) | Err(Error::Corrupt(_)) => self.succeeded(StoreAccess::Read),
            Err(error) => self.failed(StoreAccess::Read, error),
        }
    }

    /// Records the result of a change. Only one that needed space shows that there is some.
    fn record_write<T>(&self, answer: &Result<T, Error>, needed_room: impl FnOnce(&T) -> bool) {
        match answer {
            Ok(answer) if needed_room(answer) => self.succeeded(StoreAccess::Write),
            Ok(_) | Err(Error::Corrupt(_)) => {}
            Err(error) => self.failed(StoreAccess::Write, error),
        }
    }
}

/// A store that records the results of its calls in a [`Health`].
#[derive(Debug)]
pub(crate) struct Observed {
    store: Arc<dyn Store>,
    health: Arc<Health>,
}

impl Observed {
    /// Wraps `store`. All stores of a process share one `health`.
    pub(crate) fn new(store: Arc<dyn Store>, health: Arc<Health>) -> Self {
        Self { store, health }
    }

    fn reads<'a, T: 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async {
            let answer = answer.await;
            self.health.record_read(&answer);
            answer
        })
    }

    fn writes<'a, T: 'a>(
        &'a self,
        answer: Answer<'a, T>,
        needed_room: impl FnOnce(&T) -> bool + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async {
            let answer = answer.await;
            self.health.record_write(&answer, needed_room);
            answer
        })
    }
}

impl Backend for Observed {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        self.reads(self.store.load(id, want))
    }

    fn cached(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        self.store.cached(id, want)
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        self.writes(self.store.create(id, record, policy), |created| *created == Created::Done)
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let removes = change.patch.only_destroys();
        self.writes(self.store.patch(id, change, want), move |applied| applied.is_ok() && !removes)
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        self.writes(self.store.record_use(id, used, policy), |_| false)
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        self.writes(self.store.remove(id), |_| false)
    }

    fn unproven(&self) -> Unproven {
        self.store.unproven()
    }
}

impl Store for Observed {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        self.reads(self.store.list(principal, cursor, limit))
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, u64> {
        self.reads(self.store.expired(now))
    }

    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept> {
        self.writes(self.store.sweep(now, policy), |_| false)
    }

    fn exchange_keys<'a>(
        &'a self,
        own: &'a [Fingerprint],
        now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        self.writes(self.store.exchange_keys(own, now), |_| false)
    }

    fn ping(&self) -> Answer<'_, ()> {
        self.reads(self.store.ping())
    }

    fn probe(&self, now: Timestamp) -> Answer<'_, ()> {
        self.writes(self.store.probe(now), |()| true)
    }

    fn server_time(&self) -> Answer<'_, Option<Timestamp>> {
        self.store.server_time()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{Fresh, suite};
    use crate::store::memory::Memory;

    suite!(|| {
        let store = Arc::new(Memory::for_tests(Memory::DEFAULT_MAX_BYTES));
        let health = Arc::new(Health::new(Location::Network, Metrics::new()));
        Fresh::new(Observed::new(store, health), ())
    });

    fn health(location: Location) -> Health {
        Health::new(location, Metrics::new())
    }

    fn fail(health: &Health) {
        health.failed(StoreAccess::Write, &Error::Full("no space left".into()));
    }

    #[test]
    fn network_store_stays_ready_once_reached() {
        let health = health(Location::Network);
        assert!(!health.is_ready() && health.needs_probe());
        let up = |operation: &str| {
            let series = format!("cloakroom_store_up{{operation=\"{operation}\"}} ");
            let text = health.metrics.text();
            text.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned))
        };
        assert_eq!((up("read"), up("write")), (None, None), "not known before the first call");
        health.succeeded(StoreAccess::Read);
        assert_eq!((up("read").as_deref(), up("write")), (Some("1"), None));
        assert!(!health.is_ready());
        health.succeeded(StoreAccess::Write);
        fail(&health);
        assert!(health.is_ready() && !health.needs_probe());
        assert!(health.metrics.text().contains("store_up{operation=\"write\"} 0"));
    }

    #[test]
    fn disk_store_is_ready_while_it_works() {
        let health = health(Location::Disk);
        assert!(!health.is_ready() && health.needs_probe());
        health.succeeded(StoreAccess::Read);
        health.succeeded(StoreAccess::Write);
        assert!(health.is_ready() && health.needs_probe());
        fail(&health);
        assert!(!health.is_ready() && health.is_down_on_disk());
        // A small change that went through in between shows nothing.
        health.succeeded(StoreAccess::Write);
        assert!(!health.is_ready());
    }

    #[test]
    fn removals_do_not_show_that_there_is_room() {
        let health = health(Location::Disk);
        health.record_write(&Ok(()), |()| false);
        assert!(!health.was_reached());
        health.record_write(&Err::<(), _>(Error::Corrupt("one record".into())), |()| true);
        assert!(!health.is_down());
    }

    #[test]
    fn report_has_the_last_cause() {
        let health = health(Location::Network);
        assert_eq!(health.report(), Report { read: Access::NotUsed, write: Access::NotUsed });
        health.succeeded(StoreAccess::Read);
        fail(&health);
        health.failed(StoreAccess::Write, &Error::Unavailable("READONLY".into()));
        let Report { read, write } = health.report();
        assert!(matches!(read, Access::Works { .. }), "{read:?}");
        let Access::Fails { cause, age, since } = write else { panic!("{write:?}") };
        assert_eq!(cause, "READONLY");
        assert!(age <= since.elapsed() + Duration::from_millis(1), "{age:?} {since:?}");
        health.succeeded(StoreAccess::Write);
        assert!(matches!(health.report().write, Access::Works { .. }));
    }
}
