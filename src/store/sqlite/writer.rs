//! Group commit: makes a batch of changes in one transaction, and answers after its commit.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::database::Database;
use super::fault::{Fault, Kind, Trouble};
use super::reserve::Reserve;
use crate::store::worker_thread::Job;

/// Disk space that a change needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Space for what it adds.
    Room,
    /// None: the change only removes, and is made on a full disk too.
    Nothing,
}

/// A change in the writer's queue.
pub(super) struct QueuedChange {
    pub(super) need: Need,
    pub(super) job: Job<Connection>,
}

/// The connection that writes. Truncates the log when it is dropped.
pub(super) struct Committer {
    connection: Connection,
    database: Arc<Database>,
    reserve: Reserve,
}

impl Committer {
    pub(super) fn new(connection: Connection, path: &Path, database: Arc<Database>) -> Self {
        Self { connection, database, reserve: Reserve::of(path) }
    }

    /// Commits a batch and answers its callers. On a full disk, removals are still made.
    pub(super) fn commit_batch(&mut self, batch: Vec<QueuedChange>) {
        let mut batch = batch.into_iter().filter(|change| change.job.is_wanted()).collect();
        if !self.reserve.is_kept() {
            batch = refuse(batch, &Fault::full());
        }
        let mut committed = self.commit(&mut batch);
        if is_full(&committed) {
            self.checkpoint();
            committed = self.commit(&mut batch);
        }
        if let Err(full) = &committed
            && is_full(&committed)
        {
            batch = refuse(batch, full);
            committed = self.commit(&mut batch);
            if is_full(&committed) && self.reserve.give_up() {
                self.checkpoint();
                committed = self.commit(&mut batch);
            }
        }
        report(batch, &committed);
    }

    /// Makes the changes in one transaction. After [`Kind::Full`] all of them were rolled back, and
    /// may be tried again.
    fn commit(&self, batch: &mut [QueuedChange]) -> Result<(), Fault> {
        if batch.is_empty() {
            return Ok(());
        }
        self.database.sound()?;
        self.database.in_place(Kind::Unavailable)?;
        let committed = self.transact(batch).inspect_err(|fault| self.database.note(fault));
        if !self.connection.is_autocommit() {
            // The fault that led here is reported; one of the rollback adds nothing.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        committed?;
        // A commit to a file that is no longer at its path is lost at the next start.
        self.database.in_place(Kind::OutcomeUnknown)
    }

    fn transact(&self, batch: &mut [QueuedChange]) -> Result<(), Fault> {
        // Takes the write lock now. A transaction that begins with a read may be unable to write
        // after another process has committed.
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for QueuedChange { job, .. } in batch {
            job.run(&self.connection);
            if let Some(fault) = job.fault()
                && matches!(fault.kind(), Kind::Full | Kind::Damaged)
            {
                return Err(fault.clone());
            }
            // Some errors make SQLite roll back the transaction, and other changes with it.
            if self.connection.is_autocommit() {
                return Err(Fault::unavailable(Trouble::RolledBack));
            }
        }
        self.connection.execute_batch("COMMIT").map_err(Fault::of_commit)
    }

    /// Moves the log into the database as far as readers allow. If all of it was moved, the next
    /// commit starts at the front of the log and needs no space for it.
    fn checkpoint(&self) {
        // If this fails, so does the commit that follows.
        let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // If another file is at the path, another process may use it and its log. SQLite itself
        // checkpoints at the close only if that is not so.
        if self.database.in_place(Kind::Unavailable).is_ok() {
            // The log is durable as it is; this spares the next start the recovery.
            let _ = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

fn is_full(committed: &Result<(), Fault>) -> bool {
    committed.as_ref().is_err_and(|fault| fault.kind() == Kind::Full)
}

/// Answers the changes that need space with `fault`, and returns the others.
fn refuse(batch: Vec<QueuedChange>, fault: &Fault) -> Vec<QueuedChange> {
    let (refused, kept) = batch.into_iter().partition(|change| change.need == Need::Room);
    report(refused, &Err(fault.clone()));
    kept
}

fn report(batch: Vec<QueuedChange>, committed: &Result<(), Fault>) {
    for change in batch {
        change.job.report(committed.clone());
    }
}
