//! The threads that read, each on a connection of its own.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::fault::{Fault, Trouble};
use super::schema::{self, OpenError};

const THREADS: usize = 4;
const QUEUE: usize = 1024;

type Query = Box<dyn FnOnce(&Connection) + Send>;

/// A pool of readers. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Readers {
    queue: Option<SyncSender<Query>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn open(path: &Path, patience: Duration) -> Result<Self, OpenError> {
        let (queue, queries) = sync_channel(QUEUE);
        let queries = Arc::new(Mutex::new(queries));
        // From here on an early return drops the queue, which ends the threads so far.
        let mut readers = Self { queue: Some(queue), threads: Vec::new() };
        for _ in 0..THREADS {
            let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
            let connection = schema::connect(path, patience).map_err(failed)?;
            connection.pragma_update(None, "query_only", true).map_err(failed)?;
            // It opens the log with the first read, and later that may be another's.
            connection
                .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
                .map_err(failed)?;
            let queries = Arc::clone(&queries);
            let thread = thread::Builder::new()
                .name("sqlite-reader".to_owned())
                .spawn(move || run(&connection, &queries))
                .map_err(|source| OpenError::Thread { source })?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    /// Hands a query over. One whose asker has gone before its turn is not made.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Fault>>, Fault> {
        let (asker, answer) = oneshot::channel();
        let query: Query = Box::new(move |connection| {
            if !asker.is_closed() {
                // Where the asker has gone since, nobody misses the answer.
                let _ = asker.send(query(connection));
            }
        });
        let ended = Fault::unavailable(Trouble::ThreadEnded);
        match self.queue.as_ref().ok_or(ended)?.try_send(query) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(Fault::unavailable(Trouble::QueueFull)),
            Err(TrySendError::Disconnected(_)) => Err(Fault::unavailable(Trouble::ThreadEnded)),
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A reader that panicked has been reported by the panic.
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, queries: &Mutex<Receiver<Query>>) {
    loop {
        // The lock is held while this thread waits, and never while it reads.
        let query = queries.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match query {
            Ok(query) => query(connection),
            Err(_) => return,
        }
    }
}
