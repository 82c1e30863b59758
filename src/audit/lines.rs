//! The file of the audit trail: one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::log;
use crate::metrics::Event;

/// Most lines that wait to be written. More are dropped, and counted with those of the log: a full disk blocks no request.
const QUEUE_CAPACITY: usize = 10_000;

/// The file, behind a thread that writes to it.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: Arc<Mutex<File>>,
    writer: NonBlocking,
}

/// Writes the lines that are left when it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct FlushGuard {
    _writer: WorkerGuard,
}

impl Lines {
    pub(super) fn open(path: &Path) -> io::Result<(Self, FlushGuard)> {
        let file = Arc::new(Mutex::new(append(path)?));
        let queue =
            NonBlockingBuilder::default().buffered_lines_limit(QUEUE_CAPACITY).thread_name("audit");
        let (writer, guard) = queue.finish(Shared(Arc::clone(&file)));
        log::count_dropped_of(writer.error_counter());
        Ok((Self { path: path.to_owned(), file, writer }, FlushGuard { _writer: guard }))
    }

    /// Writes a line. Of an event that any client can cause as often as it likes, one line a second is written.
    pub(super) fn write(&self, event: Event, line: impl FnOnce() -> String) {
        let is_permitted = match event {
            Event::AmbiguousCookie | Event::CookieWithheld | Event::WrongToken => {
                log::permit(event.as_str()).is_some()
            }
            _ => true,
        };
        if is_permitted {
            let mut line = line();
            line.push('\n');
            // What cannot be queued is counted by the writer.
            let _ = self.writer.clone().write_all(line.as_bytes());
        }
    }

    pub(super) fn reopen(&self) -> io::Result<()> {
        let file = append(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

/// Names of users are for the owner alone.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The file for the thread, which another can replace.
struct Shared(Arc<Mutex<File>>);

impl Write for Shared {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
