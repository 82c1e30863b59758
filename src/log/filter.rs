//! Which lines are logged. A reload changes it.
//!
//! Requests read atomics only. `tracing` keeps the answer of [`Switches`] for each place that logs, until the answers are
//! asked for again after a change.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use super::{ACCESS, Config};

/// The switches of this process.
pub(super) static SWITCHES: Switches = Switches::new();

/// Which lines are logged.
#[derive(Debug)]
pub(super) struct Switches {
    /// The position of the level in [`LEVELS`].
    level: AtomicU8,
    pub(super) access: AtomicBool,
    pub(super) api: AtomicBool,
}

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

impl Switches {
    /// Everything is off.
    pub(super) const fn new() -> Self {
        let (access, api) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { level: AtomicU8::new(0), access, api }
    }

    pub(super) fn set(&self, config: Config) {
        let position = LEVELS.iter().position(|level| *level == config.level).unwrap_or_default();
        self.level.store(u8::try_from(position).unwrap_or_default(), Ordering::Relaxed);
        self.access.store(config.access, Ordering::Relaxed);
        self.api.store(config.api, Ordering::Relaxed);
    }

    fn level(&self) -> LevelFilter {
        let position = usize::from(self.level.load(Ordering::Relaxed));
        LEVELS.get(position).copied().unwrap_or(LevelFilter::OFF)
    }

    fn logs(&self, metadata: &Metadata<'_>) -> bool {
        match metadata.target() {
            ACCESS => self.access.load(Ordering::Relaxed),
            _ => *metadata.level() <= self.level(),
        }
    }
}

impl<S: Subscriber> Filter<S> for &'static Switches {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.logs(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.logs(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Events of the access log are of the level INFO.
        let access = self.access.load(Ordering::Relaxed);
        let least = if access { LevelFilter::INFO } else { LevelFilter::OFF };
        Some(self.level().max(least))
    }
}
