//! Whether the store can be read and written, as its calls and probes have found it.

use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Unproven, Want};
use crate::metrics::{Metrics, StoreAccess};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// For this long after its last failure a side stays down. On a nearly full disk small changes
/// go through and others do not, by turns.
const SETTLES: Duration = Duration::from_secs(2);

/// Where a store is, which decides what its failures mean for the traffic that an instance takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the process.
    Process,
    /// On a disk of the machine: without it the instance is of no use.
    Disk,
    /// Over the network: all instances lose it together.
    Network,
}

/// The state of the store of this process. Its lines are in the log for a store of the process or
/// the disk; Redis has its own.
#[derive(Debug)]
pub struct Health {
    place: Place,
    metrics: Metrics,
    read: Mutex<Side>,
    write: Mutex<Side>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// Whether it has ever done what it was asked for.
    reached: bool,
    /// When it last failed, if it has not recovered since.
    failed_at: Option<Instant>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(place: Place, metrics: Metrics) -> Self {
        // A local store has been opened by now. One over the network may not have been reached.
        let up = place != Place::Network;
        metrics.store_up(StoreAccess::Read, up);
        metrics.store_up(StoreAccess::Write, up);
        Self { place, metrics, read: Mutex::default(), write: Mutex::default() }
    }

    /// Returns whether [`Self::is_ready`] needs a probe to be right: of a disk always, since
    /// an instance that is not ready may get no calls that would show its recovery; of Redis until
    /// it was reached.
    pub fn needs_probe(&self) -> bool {
        match self.place {
            Place::Process => false,
            Place::Disk => true,
            Place::Network => !self.was_reached(),
        }
    }

    /// Returns whether the store lets this instance take traffic. A store over the network that
    /// was read and written once since the start does for ever: if it goes away, it does so for all
    /// instances, and taking all of them out at once helps no one.
    pub fn is_ready(&self) -> bool {
        match self.place {
            Place::Process => true,
            Place::Disk => self.was_reached() && !self.is_down(),
            Place::Network => self.was_reached(),
        }
    }

    /// Returns whether a store on disk could not be read or written lately.
    pub fn is_down_on_disk(&self) -> bool {
        self.place == Place::Disk && self.is_down()
    }

    fn was_reached(&self) -> bool {
        self.side(StoreAccess::Read).reached && self.side(StoreAccess::Write).reached
    }

    fn is_down(&self) -> bool {
        let down = |operation| self.side(operation).failed_at.is_some();
        down(StoreAccess::Read) || down(StoreAccess::Write)
    }

    fn side(&self, operation: StoreAccess) -> MutexGuard<'_, Side> {
        let side = match operation {
            StoreAccess::Read => &self.read,
            StoreAccess::Write => &self.write,
        };
        side.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self, operation: StoreAccess) {
        let mut side = self.side(operation);
        let was_reached = std::mem::replace(&mut side.reached, true);
        match side.failed_at {
            None if was_reached => return,
            None => {}
            Some(failed_at) if self.place != Place::Network && failed_at.elapsed() < SETTLES => {
                return;
            }
            Some(_) => {
                side.failed_at = None;
                if self.place != Place::Network {
                    let operation = operation.as_str();
                    info!(operation, "session store recovered");
                }
            }
        }
        self.metrics.store_up(operation, true);
    }

    fn failed(&self, operation: StoreAccess, error: &Error) {
        let mut side = self.side(operation);
        if side.failed_at.replace(Instant::now()).is_some() {
            return;
        }
        self.metrics.store_up(operation, false);
        if self.place != Place::Network {
            let operation = operation.as_str();
            let cause = error.source().map(ToString::to_string);
            error!(operation, %error, cause, "session store failed");
        }
    }

    /// Notes what a read was answered. A record that cannot be read is an answer.
    fn note_read<T>(&self, answer: &Result<T, Error>) {
        match answer {
            Ok(_) | Err(Error::Corrupt(_)) => self.succeeded(StoreAccess::Read),
            Err(error) => self.failed(StoreAccess::Read, error),
        }
    }

    /// Notes what a change was answered. Only one that needed room shows that there is some.
    fn note_write<T>(&self, answer: &Result<T, Error>, needed_room: impl FnOnce(&T) -> bool) {
        match answer {
            Ok(answer) if needed_room(answer) => self.succeeded(StoreAccess::Write),
            Ok(_) | Err(Error::Corrupt(_)) => {}
            Err(error) => self.failed(StoreAccess::Write, error),
        }
    }
}

/// A store whose answers are noted.
#[derive(Debug)]
pub struct Observed {
    store: Arc<dyn Store>,
    health: Arc<Health>,
}

impl Observed {
    /// `store`, whose answers tell `health` how it is. All stores of a process share one.
    pub fn new(store: Arc<dyn Store>, health: Arc<Health>) -> Self {
        Self { store, health }
    }

    fn reads<'a, T: 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async {
            let answer = answer.await;
            self.health.note_read(&answer);
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
            self.health.note_write(&answer, needed_room);
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

    fn sweep(&self, now: Timestamp) -> Answer<'_, u64> {
        self.writes(self.store.sweep(now), |_| false)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{Fresh, suite};
    use crate::store::memory::Memory;

    suite!(|| {
        let store = Arc::new(Memory::new(Memory::DEFAULT_MAX_BYTES, Metrics::new()));
        let health = Arc::new(Health::new(Place::Network, Metrics::new()));
        Fresh::new(Observed::new(store, health), ())
    });

    fn health(place: Place) -> Health {
        Health::new(place, Metrics::new())
    }

    fn fail(health: &Health) {
        health.failed(StoreAccess::Write, &Error::Full);
    }

    #[test]
    fn network_store_stays_ready_once_reached() {
        let health = health(Place::Network);
        assert!(!health.is_ready() && health.needs_probe());
        health.succeeded(StoreAccess::Read);
        assert!(!health.is_ready());
        health.succeeded(StoreAccess::Write);
        fail(&health);
        assert!(health.is_ready() && !health.needs_probe());
        assert!(health.metrics.text().contains("store_up{operation=\"write\"} 0"));
    }

    #[test]
    fn disk_store_is_ready_while_it_works() {
        let health = health(Place::Disk);
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
        let health = health(Place::Disk);
        health.note_write(&Ok(()), |()| false);
        assert!(!health.was_reached());
        health.note_write(&Err::<(), _>(Error::Corrupt("one record".into())), |()| true);
        assert!(!health.is_down());
    }
}
