//! The audit trail: what was done to which session, by what. Never a token or a value.
//!
//! Each entry is counted, written as a line, and kept in memory for the admin page. Entries of one event displace only each
//! other, so that a flood of one that strangers can cause hides none of the rest.

mod entry;
mod lines;
mod recent;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::debug;

use crate::metrics::{Event, Metrics};
use crate::time::Clock;
use lines::Lines;
use recent::Recent;

pub(crate) use entry::{By, Entry, Line, Source};
pub(crate) use lines::FlushGuard;
pub(crate) use recent::{Counts, Filter, Numbered};

/// The target of the audit trail's events in the log.
const TARGET: &str = "audit";

/// Settings of the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file of its lines. Without one they are events of the log, at level `debug`.
    pub(crate) path: Option<PathBuf>,
}

/// The audit trail of one process. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Audit(Arc<Trail>);

#[derive(Debug)]
struct Trail {
    /// This process, as its lines name it.
    instance: String,
    metrics: Metrics,
    clock: Clock,
    recent: Recent,
    lines: Option<Lines>,
}

impl Audit {
    /// Opens the trail of an instance. The guard writes the lines that are left when it is dropped.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(
        config: &Config,
        instance: String,
        metrics: Metrics,
        clock: Clock,
    ) -> io::Result<(Self, Option<FlushGuard>)> {
        let (lines, guard) = match &config.path {
            None => (None, None),
            Some(path) => {
                let (lines, guard) = Lines::open(path)?;
                (Some(lines), Some(guard))
            }
        };
        let trail = Trail { instance, metrics, clock, recent: Recent::default(), lines };
        Ok((Self(Arc::new(trail)), guard))
    }

    /// Returns the metrics in which entries are counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Counts, writes and keeps an entry.
    pub(crate) fn record(&self, mut entry: Entry) {
        let Trail { instance, metrics, clock, recent, lines } = &*self.0;
        entry.time = clock.now();
        metrics.event(entry.event);
        match entry.event {
            Event::Created => metrics.session_created(),
            Event::Destroyed | Event::Evicted => metrics.sessions_ended(entry.by.ends_as(), 1),
            _ => {}
        }
        let write = || entry.to_json(instance);
        if let Some(lines) = lines {
            lines.write(entry.event, write);
        } else {
            debug!(target: TARGET, entry = %write());
        }
        recent.push(entry);
    }

    /// Returns the latest entries that a filter selects, the newest first.
    pub(crate) fn recent(&self, filter: &Filter<'_>, limit: usize) -> Vec<Numbered> {
        self.0.recent.select(filter, limit)
    }

    /// Counts the latest entries that a filter selects, whatever their number.
    pub(crate) fn count(&self, filter: &Filter<'_>) -> Counts {
        self.0.recent.count(filter)
    }

    /// Opens the file again, after it was renamed. If that fails, the old one is kept.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        self.0.lines.as_ref().map_or(Ok(()), Lines::reopen)
    }
}

#[cfg(test)]
impl Audit {
    /// Returns a trail without a file.
    pub(crate) fn for_tests(metrics: &Metrics, clock: &Clock) -> Self {
        let opened =
            Self::open(&Config::default(), "test".to_owned(), metrics.clone(), clock.clone());
        opened.expect("a trail without a file opens").0
    }
}
