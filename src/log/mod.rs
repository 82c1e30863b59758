//! The log: one line for each event, as text or JSON, on standard error.
//!
//! Standard output is for the results of commands. The access log consists of the lines of [`access()`] and the events with
//! the target [`ACCESS`]; it has a switch of its own and does not follow the level. A reload changes both.
//!
//! A thread of its own writes the lines, in batches. If they come faster than they can be written, e.g. because the disk
//! is full, they are dropped and counted: logging never blocks a request.

mod access;
mod filter;
mod journal;
mod time;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};

use filter::{SWITCHES, Switches};
use journal::Prioritized;

pub(crate) use access::{Line, access, api, logs_api};
pub(crate) use journal::{Receiver, as_error};

/// The target of the access log's lines.
pub(crate) const ACCESS: &str = "access";

/// The target of the lines of the session API's calls.
const API: &str = "api";

/// Settings of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The format of a line.
    pub(crate) format: Format,
    /// The level of all events but access.
    pub(crate) level: LevelFilter,
    /// The switch of the access log.
    pub(crate) access: bool,
    /// The switch of the lines of the session API's calls.
    pub(crate) api: bool,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::Text, level: LevelFilter::INFO, access: true, api: false }
    }
}

/// Texts that have been logged before and are not logged again: at most [`Seen::MAX`], since clients choose them and could
/// fill the log and the memory.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashSet<String>>);

impl Seen {
    /// Most texts that are remembered; others are not logged.
    pub(crate) const MAX: usize = 100;

    /// Returns whether a text is new and should be logged.
    pub(crate) fn is_first(&self, text: &str) -> bool {
        // A panic elsewhere cannot leave the set half changed.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() < Self::MAX && !seen.contains(text) && seen.insert(text.to_owned())
    }
}

/// The process has initialised its log already.
#[derive(Debug, thiserror::Error)]
#[error("the log is initialised already")]
pub(crate) struct AlreadyInitialized(#[source] tracing::dispatcher::SetGlobalDefaultError);

/// Most lines that wait to be written.
const QUEUE_CAPACITY: usize = 10_000;

/// Most bytes that are written at once, but for a longer line: what a pipe takes in one piece (POSIX calls it
/// `PIPE_BUF`), so that lines stay whole if other processes write to the same pipe.
const BATCH_BYTES: usize = 4096;

/// How long lines gather before the next batch. A line that comes after a pause is written at once.
const BATCH_PAUSE: Duration = Duration::from_millis(10);

static DROPPED: Mutex<Vec<ErrorCounter>> = Mutex::new(Vec::new());

/// Flushes the log when it is dropped, within a second.
#[derive(Debug)]
#[must_use]
pub(crate) struct FlushGuard {
    _writer: WorkerGuard,
}

/// Initialises the log of this process, whose lines go to `receiver`.
pub(crate) fn init(config: Config, receiver: Receiver) -> Result<FlushGuard, AlreadyInitialized> {
    let lines =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE_CAPACITY).thread_name("log");
    let (lines, writer) = lines.finish(Batches::new(io::stderr()));
    count_dropped_of(lines.error_counter());
    SWITCHES.set(config);
    let subscriber = subscriber(config.format, receiver, &SWITCHES, lines.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(AlreadyInitialized)?;
    access::open(config.format, lines);
    Ok(FlushGuard { _writer: writer })
}

/// Applies another configuration to the log of this process, except the format, which stays.
pub(crate) fn reload(config: Config) {
    SWITCHES.set(config);
    tracing::callsite::rebuild_interest_cache();
}

/// Writes lines in batches.
///
/// The log's thread writes each queued line here and flushes when the queue is empty. It then pauses: otherwise the next
/// line would have to wake it, and would be written alone.
#[derive(Debug)]
struct Batches<W: Write>(BufWriter<W>);

impl<W: Write> Batches<W> {
    fn new(writer: W) -> Self {
        Self(BufWriter::with_capacity(BATCH_BYTES, writer))
    }
}

impl<W: Write> Write for Batches<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    #[expect(clippy::disallowed_methods, reason = "to let lines gather is the purpose")]
    fn flush(&mut self) -> io::Result<()> {
        // What could not be written stays in the buffer. The thread ignores errors, and one would hide from it that it
        // has to end.
        let _ = self.0.flush();
        thread::sleep(BATCH_PAUSE);
        Ok(())
    }
}

/// Adds a writer to those whose dropped lines are counted.
pub(crate) fn count_dropped_of(counter: ErrorCounter) {
    DROPPED.lock().unwrap_or_else(PoisonError::into_inner).push(counter);
}

/// Returns how many lines were dropped.
pub(crate) fn dropped_lines() -> u64 {
    let counters = DROPPED.lock().unwrap_or_else(PoisonError::into_inner);
    counters.iter().map(|dropped| dropped.dropped_lines() as u64).sum()
}

/// A permit to write a line that many requests may cause at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    /// Lines of this cause that were suppressed since its last one; `None` if none was.
    pub(crate) suppressed: Option<u64>,
}

/// Permits one line a second for each cause, and counts the others.
pub(crate) fn permit(cause: &'static str) -> Option<Permit> {
    static LIMITER: Limiter = Limiter(Mutex::new(BTreeMap::new()));
    LIMITER.permit(cause, Instant::now())
}

/// Logs a line of its cause, such as `limited!(warn, "replayed", session = %id, "…")`, if [`permit`] does.
macro_rules! limited {
    ($level:ident, $cause:literal, $($line:tt)+) => {
        if let Some($crate::log::Permit { suppressed }) = $crate::log::permit($cause) {
            ::tracing::$level!(suppressed, $($line)+);
        }
    };
}
pub(crate) use limited;

/// By cause: the time of its last line, and how many were suppressed since.
struct Limiter(Mutex<BTreeMap<&'static str, (Instant, u64)>>);

impl Limiter {
    fn permit(&self, cause: &'static str, now: Instant) -> Option<Permit> {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match causes.get_mut(cause) {
            Some((last, suppressed)) if now < *last + Duration::from_secs(1) => {
                *suppressed += 1;
                None
            }
            known => {
                let suppressed =
                    known.map(|(_, suppressed)| *suppressed).filter(|count| *count > 0);
                causes.insert(cause, (now, 0));
                Some(Permit { suppressed })
            }
        }
    }
}

fn subscriber<W>(
    format: Format,
    receiver: Receiver,
    switches: &'static Switches,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_timer(time::Time).with_writer(writer);
    let lines = match format {
        Format::Text => {
            let lines = lines.with_ansi(false);
            lines.map_event_format(|format| Prioritized { format, receiver }).boxed()
        }
        Format::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(switches))
}

/// Initialises the log of the unit tests, once: at TRACE into the directory `TEST_LOG_DIRECTORY`, which is searched for
/// secrets afterwards, or nowhere.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests take their settings from the environment")]
pub(crate) fn begin_for_tests() {
    static INITIALIZED: std::sync::Once = std::sync::Once::new();
    INITIALIZED.call_once(|| {
        let Some(directory) = std::env::var_os("TEST_LOG_DIRECTORY") else { return };
        let path =
            std::path::Path::new(&directory).join(format!("unit-{}.log", std::process::id()));
        let file = std::fs::File::create(path).expect("the test log's directory is there");
        let config = Config { level: LevelFilter::TRACE, ..Config::default() };
        let file = std::sync::Arc::new(file);
        SWITCHES.set(config);
        // No other test of this binary initialises the log.
        let lines = subscriber(config.format, Receiver::File, &SWITCHES, file.clone());
        let _ = tracing::subscriber::set_global_default(lines);
        access::open(config.format, file);
    });
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns a subscriber with switches of its own.
    pub(super) fn subscriber_with<W>(config: Config, writer: W) -> impl Subscriber + Send + Sync
    where
        W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    {
        let switches: &Switches = Box::leak(Box::new(Switches::new()));
        switches.set(config);
        subscriber(config.format, Receiver::File, switches, writer)
    }

    fn written(config: Config) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        tracing::subscriber::with_default(subscriber_with(config, move || writer.clone()), || {
            tracing::warn!(store = "down", "a warning");
            tracing::info!("some news");
            tracing::info!(target: ACCESS, status = 200, "GET /");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn access_log_does_not_follow_the_level() {
        for (level, access, expected) in [
            (LevelFilter::INFO, true, [true, true, true]),
            (LevelFilter::WARN, true, [true, false, true]),
            (LevelFilter::OFF, true, [false, false, true]),
            (LevelFilter::TRACE, false, [true, true, false]),
        ] {
            let log = written(Config { level, access, ..Config::default() });
            let logged = ["a warning", "some news", "GET /"].map(|text| log.contains(text));
            assert_eq!(logged, expected, "{level} {access}");
        }
    }

    #[test]
    fn writes_hold_whole_lines() {
        /// Records each write, and fails every other one.
        #[derive(Default)]
        struct Flaky(Vec<String>, bool);

        impl Write for Flaky {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.0.push(String::from_utf8(bytes.to_vec()).unwrap());
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut batches = Batches::new(Flaky::default());
        let line = |number: usize| format!("{number} {}\n", "x".repeat(number * 7 % 300));
        let accepted: String =
            (0..100).map(line).filter(|line| batches.write_all(line.as_bytes()).is_ok()).collect();
        batches.flush().unwrap();
        batches.flush().unwrap();
        let writes = &batches.0.get_ref().0;
        assert_eq!(writes.concat(), accepted);
        assert!(writes.iter().all(|text| text.ends_with('\n') && text.len() <= BATCH_BYTES));
        assert!(writes.len() < 10, "{}", writes.len());
    }

    #[test]
    fn lines_begin_with_the_time() {
        let log = written(Config::default());
        for line in log.lines() {
            let (time, _) = line.split_once(' ').unwrap();
            assert_eq!(time.len(), "2026-11-20T11:03:12.000000Z".len(), "{line}");
            assert!(crate::time::Timestamp::parse_rfc3339(time).is_some(), "{line}");
        }
    }

    #[test]
    fn limiter_permits_one_line_a_second_for_each_cause() {
        let limiter = Limiter(Mutex::default());
        let start = Instant::now();
        let permitted = |cause, millis| {
            let permit = limiter.permit(cause, start + Duration::from_millis(millis));
            permit.map(|permit| permit.suppressed)
        };
        assert_eq!(permitted("one", 0), Some(None));
        assert_eq!(permitted("one", 0), None);
        assert_eq!(permitted("another", 1), Some(None));
        assert_eq!(permitted("one", 999), None);
        assert_eq!(permitted("one", 1000), Some(Some(2)));
        assert_eq!(permitted("one", 2000), Some(None));
    }

    #[test]
    fn seen_texts_are_logged_once_and_bounded() {
        let seen = Seen::default();
        assert!(seen.is_first("a") && !seen.is_first("a") && seen.is_first("b"));
        let more = (0..10 * Seen::MAX).filter(|text| seen.is_first(&text.to_string())).count();
        assert_eq!(more, Seen::MAX - 2);
    }

    #[test]
    fn json_has_one_object_a_line() {
        let log = written(Config { format: Format::Json, ..Config::default() });
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["store"], "down");
        assert_eq!(lines[2]["status"], 200);
        assert_eq!(lines[2]["target"], "access");
    }
}
