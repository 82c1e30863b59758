//! Statistics of processes: log lines of the stores, memory and file descriptors.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

static LINES: AtomicU64 = AtomicU64::new(0);

struct Counter;

impl<S: Subscriber> Layer<S> for Counter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("cloakroom::store") {
            LINES.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Starts to count the log lines of this process at INFO and above.
pub fn count_log_lines() {
    tracing_subscriber::registry().with(Counter.with_filter(LevelFilter::INFO)).init();
}

/// Returns the number of log lines of the stores so far.
pub fn lines() -> u64 {
    LINES.load(Ordering::Relaxed)
}

/// Returns the resident memory of this process in KiB.
pub fn resident() -> i64 {
    resident_of(std::process::id())
}

/// Returns the resident memory of a process and its children in KiB.
pub fn resident_of(process: u32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let own: i64 = line.split_whitespace().next().unwrap().parse().unwrap();
    let children = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let of_children = children.split_whitespace().map(|child| resident_of(child.parse().unwrap()));
    own + of_children.sum::<i64>()
}

/// Returns the number of open file descriptors of a process.
pub fn descriptors_of(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}
