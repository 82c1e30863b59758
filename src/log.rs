//! The log: one line for each event, as text or JSON, on standard error.
//!
//! Standard output belongs to the answers of commands. The access log is made of events of the target
//! [`ACCESS`]; it has a switch of its own and does not follow the level.
//!
//! Lines are written by a thread of their own. Where they come faster than they are taken, as of a reader that
//! has stopped or a disk that is full, they are dropped and counted, and requests go on.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};

/// The target of the access log's events.
pub const ACCESS: &str = "access";

/// What the log is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How a line looks.
    pub format: Format,
    /// What is told of everything but access.
    pub level: LevelFilter,
    /// Whether each request is told.
    pub access: bool,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::Text, level: LevelFilter::INFO, access: true }
    }
}

/// What has been logged before and is not logged again: at most [`Seen::MAX`] texts, so that strangers
/// who choose them fill neither the log nor the memory.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashSet<String>>);

impl Seen {
    /// The most texts that are remembered; further ones are not logged.
    pub const MAX: usize = 100;

    /// Whether a text comes for the first time, and is to be logged.
    pub fn is_first(&self, text: &str) -> bool {
        // A set that another thread left is as good as before: nothing in it is half done.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() < Self::MAX && !seen.contains(text) && seen.insert(text.to_owned())
    }
}

/// The log is begun once in a process.
#[derive(Debug, thiserror::Error)]
#[error("this process has a log already")]
pub struct BegunAlready(#[source] tracing::dispatcher::SetGlobalDefaultError);

/// Lines that wait to be written.
const LINES: usize = 10_000;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Writes, when it is dropped, what has not been written yet, for as long as a second.
#[derive(Debug)]
pub struct Rest {
    _writer: WorkerGuard,
}

/// Begins the log of this process.
pub fn init(config: Config) -> Result<Rest, BegunAlready> {
    let lines = NonBlockingBuilder::default().buffered_lines_limit(LINES).thread_name("log");
    let (lines, writer) = lines.finish(io::stderr());
    DROPPED.get_or_init(|| lines.error_counter());
    tracing::subscriber::set_global_default(subscriber(config, lines)).map_err(BegunAlready)?;
    Ok(Rest { _writer: writer })
}

/// How many lines were dropped.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Leave to write a line that many requests may cause at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// How many lines of this cause were left out since its last one; `None` if none was.
    pub left_out: Option<u64>,
}

/// Permits one line a second for each cause, and counts those that are left out meanwhile.
pub fn permit(cause: &'static str) -> Option<Permit> {
    static LIMITER: Limiter = Limiter(Mutex::new(BTreeMap::new()));
    LIMITER.permit(cause, Instant::now())
}

/// Logs a line of its cause, such as `limited!(warn, "replayed", session = %id, "…")`, if [`permit`] does.
macro_rules! limited {
    ($level:ident, $cause:literal, $($line:tt)+) => {
        if let Some($crate::log::Permit { left_out }) = $crate::log::permit($cause) {
            ::tracing::$level!(left_out, $($line)+);
        }
    };
}
pub(crate) use limited;

/// By cause: when its last line was written, and how many were left out since.
struct Limiter(Mutex<BTreeMap<&'static str, (Instant, u64)>>);

impl Limiter {
    fn permit(&self, cause: &'static str, now: Instant) -> Option<Permit> {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match causes.get_mut(cause) {
            Some((last, left_out)) if now < *last + Duration::from_secs(1) => {
                *left_out += 1;
                None
            }
            known => {
                let left_out = known.map(|(_, left_out)| *left_out).filter(|count| *count > 0);
                causes.insert(cause, (now, 0));
                Some(Permit { left_out })
            }
        }
    }
}

fn subscriber<W>(config: Config, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let access = if config.access { LevelFilter::TRACE } else { LevelFilter::OFF };
    let told = Targets::new().with_default(config.level).with_target(ACCESS, access);
    let lines = fmt::layer().with_writer(writer);
    let lines = match config.format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(told))
}

/// Begins the log of the unit tests, once: at TRACE into the directory that `TEST_LOG_DIRECTORY` names,
/// where it is searched for secrets afterwards, or nowhere.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests take their settings from the environment")]
pub(crate) fn begin_for_tests() {
    static BEGUN: std::sync::Once = std::sync::Once::new();
    BEGUN.call_once(|| {
        let Some(directory) = std::env::var_os("TEST_LOG_DIRECTORY") else { return };
        let path =
            std::path::Path::new(&directory).join(format!("unit-{}.log", std::process::id()));
        let file = std::fs::File::create(path).expect("the test log's directory is there");
        let config = Config { level: LevelFilter::TRACE, ..Config::default() };
        // The binary begins no other.
        let _ = tracing::subscriber::set_global_default(subscriber(config, Mutex::new(file)));
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

    fn written(config: Config) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        tracing::subscriber::with_default(subscriber(config, move || writer.clone()), || {
            tracing::warn!(store = "away", "a warning");
            tracing::info!("some news");
            tracing::info!(target: ACCESS, status = 200, "GET /");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn access_has_a_switch_of_its_own() {
        for (level, access, expected) in [
            (LevelFilter::INFO, true, [true, true, true]),
            (LevelFilter::WARN, true, [true, false, true]),
            (LevelFilter::OFF, true, [false, false, true]),
            (LevelFilter::TRACE, false, [true, true, false]),
        ] {
            let log = written(Config { level, access, ..Config::default() });
            let told = ["a warning", "some news", "GET /"].map(|text| log.contains(text));
            assert_eq!(told, expected, "{level} {access}");
        }
    }

    #[test]
    fn one_line_a_second_for_each_cause() {
        let limiter = Limiter(Mutex::default());
        let start = Instant::now();
        let permitted = |cause, millis| {
            let permit = limiter.permit(cause, start + Duration::from_millis(millis));
            permit.map(|permit| permit.left_out)
        };
        assert_eq!(permitted("one", 0), Some(None));
        assert_eq!(permitted("one", 0), None);
        assert_eq!(permitted("another", 1), Some(None));
        assert_eq!(permitted("one", 999), None);
        assert_eq!(permitted("one", 1000), Some(Some(2)));
        assert_eq!(permitted("one", 2000), Some(None));
    }

    #[test]
    fn a_text_is_logged_once_and_texts_are_bounded() {
        let seen = Seen::default();
        assert!(seen.is_first("a") && !seen.is_first("a") && seen.is_first("b"));
        let more = (0..10 * Seen::MAX).filter(|text| seen.is_first(&text.to_string())).count();
        assert_eq!(more, Seen::MAX - 2);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let log = written(Config { format: Format::Json, ..Config::default() });
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["store"], "away");
        assert_eq!(lines[2]["status"], 200);
        assert_eq!(lines[2]["target"], "access");
    }
}
