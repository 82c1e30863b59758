//! Metrics of the process: the standard `process_*` names, read when they are scraped.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::net::descriptors;
use crate::{log, tasks};

/// Counts of the whole process that are kept outside of [`super::Metrics`].
#[derive(Debug)]
pub(super) struct ProcessCounts;

impl Collector for ProcessCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lines = "Log lines that were dropped because standard error was not read fast enough";
        let panics = "Panics of requests and other tasks; each ended only its own task";
        expose(&mut encoder, "log_lines_dropped", lines, &ConstCounter::new(log::dropped_lines()))?;
        expose(&mut encoder, "panics", panics, &ConstCounter::new(tasks::panics()))
    }
}

/// Resources of the process, as the kernel counts them. On systems without `/proc` only the limit of descriptors is known.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        if let Some(stat) = Stat::read() {
            let cpu = "User and system CPU time of the process, in seconds";
            expose(encoder, "process_cpu_seconds", cpu, &ConstCounter::new(stat.cpu_seconds))?;
            if let Some(boot) = boot_time() {
                let start = "Start time of the process, in seconds since the Unix epoch";
                let gauge = ConstGauge::new(boot + stat.start_seconds_after_boot);
                expose(encoder, "process_start_time_seconds", start, &gauge)?;
            }
        }
        if let Some(bytes) = resident_memory() {
            let memory = "Resident memory of the process, in bytes";
            expose(encoder, "process_resident_memory_bytes", memory, &ConstGauge::new(bytes))?;
        }
        if let Some(open) = descriptors::open() {
            let help = "Open file descriptors of the process";
            let open = i64::try_from(open).unwrap_or(i64::MAX);
            expose(encoder, "process_open_fds", help, &ConstGauge::new(open))?;
        }
        let limit = i64::try_from(descriptors::limit()).unwrap_or(i64::MAX);
        let help = "Limit of open file descriptors of the process";
        expose(encoder, "process_max_fds", help, &ConstGauge::new(limit))
    }
}

fn expose(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Clock ticks in a second, in the unit of `/proc`: Linux fixes `USER_HZ` at 100 for user space, whatever the kernel's own
/// frequency is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of `/proc/self/stat` (`proc_pid_stat(5)`) that are exposed.
struct Stat {
    cpu_seconds: f64,
    start_seconds_after_boot: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the name of the program in parentheses, and may have spaces and parentheses in it.
        let (_, rest) = text.rsplit_once(')')?;
        // Fields are numbered from 1; the third is the first of these.
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse().ok();
        let (user, system, start): (f64, f64, f64) = (field(14)?, field(15)?, field(22)?);
        Some(Self {
            cpu_seconds: (user + system) / TICKS_PER_SECOND,
            start_seconds_after_boot: start / TICKS_PER_SECOND,
        })
    }
}

/// Returns when the system started, in seconds since the epoch.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn resident_memory() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn stat_is_parsed_whatever_the_program_is_called() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 12345 1 1";
        for name in ["cloakroom", "a) b (c", "("] {
            let stat = Stat::parse(&format!("42 ({name}) {rest}")).unwrap();
            assert_eq!((stat.cpu_seconds, stat.start_seconds_after_boot), (2.0, 123.45), "{name}");
        }
        assert!(Stat::parse("42 (cloakroom) S 1").is_none());
    }
}
