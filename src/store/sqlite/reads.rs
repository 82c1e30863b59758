//! Reads of the file, in batches.
//!
//! Waking a thread costs as much as several reads. So the sessions that a worker loads in one turn of its event loop
//! are a batch, which wakes a reader once, reads one snapshot of the file, and wakes the worker once.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::database::Database;
use super::fault::{Fault, Kind};
use super::schema::{self, OpenError};
use crate::store::Error;
use crate::store::worker_thread::{IoKind, Job, Refused, WorkerThreads};
use crate::tasks::Tasks;

/// Number of threads that read.
const READERS: usize = 4;

/// Maximum number of reads in a batch: the readers share a larger burst, and a slow read delays no more.
const MAX_READS: usize = 32;

type Query = Job<Connection>;

/// The threads that read, each on a connection of its own, and the batches that are being gathered for them.
#[derive(Debug)]
pub(super) struct Reads {
    timeout: Duration,
    readers: Arc<WorkerThreads<Batch>>,
    /// The batch that each worker gathers. It belongs to the task that will deliver it.
    gathering: Mutex<HashMap<runtime::Id, Weak<Gathered>>>,
    tasks: Tasks,
}

/// A batch that is being gathered; empty once it has been taken for delivery.
#[derive(Debug)]
struct Gathered(Mutex<Vec<Query>>);

/// Reads that one reader makes, and the sender that returns them to their runtime, where they wake their callers
/// at less cost than from another thread.
struct Batch {
    queries: Vec<Query>,
    done: oneshot::Sender<Vec<Query>>,
}

/// Opens the connections that read. Each has read once.
pub(super) fn connect(path: &Path, patience: Duration) -> Result<Vec<Connection>, OpenError> {
    (0..READERS).map(|_| schema::open_reader(path, patience)).collect()
}

impl Reads {
    /// Starts a thread for each connection.
    pub(super) fn start(
        connections: Vec<Connection>,
        database: &Arc<Database>,
        timeout: Duration,
        tasks: Tasks,
    ) -> Result<Self, OpenError> {
        let readers = connections.into_iter().map(|connection| {
            let database = Arc::clone(database);
            move |batches: Vec<Batch>| {
                for Batch { mut queries, done } in batches {
                    answer(&mut queries, &connection, &database);
                    // The callers may have stopped waiting.
                    let _ = done.send(queries);
                }
            }
        });
        let readers = WorkerThreads::start("sqlite-reader", 1, readers)
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { timeout, readers: Arc::new(readers), gathering: Mutex::default(), tasks })
    }

    /// Makes a read that may take long, in a batch of its own.
    pub(super) async fn make<T: Send + 'static>(
        &self,
        query: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, answer) = Job::new(IoKind::Read, query);
        deliver(vec![job], Arc::downgrade(&self.readers), self.timeout).await;
        answer.within(self.timeout).await
    }

    /// Makes a short read, together with others of this turn of the event loop.
    pub(super) async fn gather<T: Send + 'static>(
        &self,
        query: impl FnMut(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (job, answer) = Job::new(IoKind::Read, query);
        self.add(job);
        answer.within(self.timeout).await
    }

    /// Adds a query to the batch that this worker gathers, or begins one.
    fn add(&self, query: Query) {
        let worker = Handle::current().id();
        let mut gathering = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = match gathering.get(&worker).and_then(Weak::upgrade) {
            Some(batch) => batch.add(query),
            None => Some(query),
        };
        let Some(query) = rest else { return };
        let batch = Arc::new(Gathered(Mutex::new(vec![query])));
        gathering.retain(|_, batch| batch.strong_count() > 0);
        gathering.insert(worker, Arc::downgrade(&batch));
        drop(gathering);
        let (readers, timeout) = (Arc::downgrade(&self.readers), self.timeout);
        // This task runs after those that are ready now, which may add to the batch.
        let task = self.tasks.run(async move { deliver(batch.take(), readers, timeout).await });
        task.detach();
    }
}

impl Gathered {
    fn queries(&self) -> MutexGuard<'_, Vec<Query>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a query, or returns it if the batch is full or taken.
    fn add(&self, query: Query) -> Option<Query> {
        let mut queries = self.queries();
        if queries.is_empty() || queries.len() >= MAX_READS {
            return Some(query);
        }
        queries.push(query);
        None
    }

    fn take(&self) -> Vec<Query> {
        std::mem::take(&mut self.queries())
    }
}

/// Has a reader make the reads, and answers their callers.
async fn deliver(queries: Vec<Query>, readers: Weak<WorkerThreads<Batch>>, deadline: Duration) {
    let (done, answered) = oneshot::channel();
    let Some(readers) = readers.upgrade() else { return };
    let submitted = readers.submit(Batch { queries, done });
    drop(readers);
    if let Err(Refused { job, fault }) = submitted {
        for query in job.queries {
            query.report(Err(fault.clone()));
        }
        return;
    }
    // Without an answer, the callers have their own deadlines.
    let Ok(Ok(queries)) = timeout(deadline, answered).await else { return };
    for query in queries {
        query.report(Ok(()));
    }
}

/// Makes the reads of a batch.
fn answer(queries: &mut [Query], connection: &Connection, database: &Database) {
    if let Err(fault) = read(queries, connection, database) {
        for query in queries {
            query.fail(fault.clone());
        }
    }
}

/// Makes reads on one snapshot, and checks the file that it is from.
fn read(queries: &mut [Query], connection: &Connection, database: &Database) -> Result<(), Fault> {
    database.sound()?;
    // A single read is a transaction by itself.
    let shares = queries.len() > 1;
    if shares {
        connection.prepare_cached("BEGIN")?.execute([])?;
    }
    for query in queries.iter_mut().filter(|query| query.is_wanted()) {
        query.run(connection);
        if let Some(fault) = query.fault() {
            database.note(fault);
        }
    }
    if shares && !connection.is_autocommit() {
        connection.prepare_cached("ROLLBACK")?.execute([])?;
    }
    database.sound()?;
    database.in_place(Kind::Unavailable)
}
