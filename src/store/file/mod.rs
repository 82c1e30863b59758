//! The file store: one file per session in a directory, for one process; survives restarts.
//!
//! Writer threads make the changes. All changes of one session go to the same thread, which makes
//! each of them atomic; several changes share one `fsync` of the directory. Reader threads do the
//! rest. No async task waits for the disk: it waits for a channel, up to the deadline.
//!
//! An index in memory has the expiry and the principal of every session, about 200 bytes for each.
//! It is built when the store is opened, by reading every file once.

mod directory;
mod format;
mod index;
mod sessions;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::directory::Fault;
pub(crate) use self::directory::OpenError;
use self::sessions::SessionFiles;
use super::owned::{OwnedChange, OwnedWant};
use super::worker_thread::{IoKind, Job, WorkerThreads};
use super::{Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Principal, Record};
use crate::time::Timestamp;

/// Number of threads that read, and of threads that write.
const THREADS: usize = 4;

/// Maximum number of changes that share one `fsync` of the directory.
const MAX_BATCH: usize = 64;

/// Number of files in a batch of a sweep.
const SWEEP_BATCH: usize = 256;

/// The file store.
#[derive(Debug)]
pub(crate) struct Files {
    timeout: Duration,
    sessions: Arc<SessionFiles>,
    readers: WorkerThreads<Job<SessionFiles>>,
    /// One thread each, so that a session's changes keep their order.
    writers: Vec<WorkerThreads<Job<SessionFiles>>>,
}

impl Files {
    /// Opens the directory, or creates it with mode 0700, and locks it for this process. Reads every
    /// file in it. Each later call has `timeout` to answer.
    pub(crate) fn open(path: &Path, timeout: Duration) -> Result<Self, OpenError> {
        let sessions = Arc::new(SessionFiles::open(path)?);
        let readers = (0..THREADS).map(|_| {
            let sessions = Arc::clone(&sessions);
            move |jobs| read_batch(&sessions, jobs)
        });
        let readers = WorkerThreads::start("file-reader", 1, readers).map_err(OpenError::Thread)?;
        let writer = |_| {
            let sessions = Arc::clone(&sessions);
            let write = move |jobs| write_batch(&sessions, jobs);
            WorkerThreads::start("file-writer", MAX_BATCH, [write]).map_err(OpenError::Thread)
        };
        let writers = (0..THREADS).map(writer).collect::<Result<_, _>>()?;
        Ok(Self { timeout, sessions, readers, writers })
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnMut(&SessionFiles) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, answer) = Job::new(IoKind::Read, query);
        self.readers.submit(job)?;
        answer.within(self.timeout).await
    }

    async fn write<T: Send + 'static>(
        &self,
        id: Id,
        change: impl FnMut(&SessionFiles) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, answer) = Job::new(IoKind::Write, change);
        self.writer(id).submit(job)?;
        answer.within(self.timeout).await
    }

    fn writer(&self, id: Id) -> &WorkerThreads<Job<SessionFiles>> {
        // Ids are random in every byte.
        let [first, ..] = id.as_bytes();
        let index = usize::from(*first) % THREADS;
        self.writers.get(index).expect("a remainder is less than the number of threads")
    }
}

fn read_batch(sessions: &SessionFiles, jobs: Vec<Job<SessionFiles>>) {
    for mut job in jobs.into_iter().filter(Job::is_wanted) {
        job.run(sessions);
        job.report(Ok(()));
    }
}

/// Makes the changes of a batch, syncs the directory once, and then answers all callers.
fn write_batch(sessions: &SessionFiles, jobs: Vec<Job<SessionFiles>>) {
    let directory = sessions.directory();
    let changes = directory.changes();
    let mut done = Vec::with_capacity(jobs.len());
    for mut job in jobs.into_iter().filter(Job::is_wanted) {
        job.run(sessions);
        done.push(job);
    }
    // The counter is shared: it may have moved for another thread's change, which costs a needless
    // sync, but it never misses one of this thread's.
    let synced = if changes == directory.changes() { Ok(()) } else { directory.sync() };
    for job in done {
        job.report(synced.clone());
    }
}

impl Backend for Files {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let want = OwnedWant::from(want);
        Box::pin(
            self.read(move |sessions| Ok(sessions.load(id)?.map(|entry| want.borrow().of(&entry)))),
        )
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        let (record, policy) = (record.clone(), policy.clone());
        Box::pin(self.write(id, move |sessions| sessions.create(id, &record, &policy)))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        let (change, want) = (OwnedChange::from(change), OwnedWant::from(want));
        Box::pin(self.write(id, move |sessions| sessions.patch(id, change.borrow(), want.borrow())))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let policy = policy.clone();
        Box::pin(self.write(id, move |sessions| sessions.record_use(id, used, &policy)))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(
            self.write(id, move |sessions| {
                Ok(sessions.remove(id)?.then_some(Replicated::NotAsked))
            }),
        )
    }

    fn unproven(&self) -> Unproven {
        Unproven::Kept
    }
}

impl Store for Files {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        let principal = principal.cloned();
        let after = cursor.and_then(Id::parse);
        Box::pin(self.read(move |sessions| sessions.list(principal.as_ref(), after, limit)))
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, u64> {
        Box::pin(std::future::ready(Ok(self.sessions.count_expired(now))))
    }

    fn sweep<'a>(&'a self, now: Timestamp, policy: &'a Policy) -> Answer<'a, Swept> {
        Box::pin(async move {
            let expired = self.sessions.expired(now, SWEEP_BATCH);
            let mut swept = Swept { more: expired.len() == SWEEP_BATCH, ..Swept::default() };
            // All are queued before the first answer is awaited, so that they share an `fsync`.
            let mut answers = Vec::with_capacity(expired.len());
            for id in expired {
                let policy = policy.clone();
                let sweep = move |sessions: &SessionFiles| sessions.sweep(id, now, &policy);
                let (job, answer) = Job::new(IoKind::Write, sweep);
                self.writer(id).submit(job)?;
                answers.push(answer);
            }
            let mut failed = None;
            for answer in answers {
                match answer.within(self.timeout).await {
                    Ok(one) => swept.add(one),
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                // What was removed is to be counted. The failure is met again by the next batch.
                Some(_) if swept.entries > 0 => Ok(Swept { more: true, ..swept }),
                Some(error) => Err(error),
                None => Ok(swept),
            }
        })
    }

    fn exchange_keys<'a>(
        &'a self,
        _own: &'a [Fingerprint],
        _now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(std::future::ready(Ok(KnownKeys::NotKept)))
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(self.read(|sessions| sessions.directory().check()))
    }

    fn probe(&self, _now: Timestamp) -> Answer<'_, ()> {
        let any = Id::from_bytes([0; Id::BYTES]);
        Box::pin(self.write(any, |sessions| sessions.directory().probe()))
    }
}

#[cfg(test)]
pub(super) mod tests;
