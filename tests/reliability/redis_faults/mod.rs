//! Redis unreachable, slow, full, demoted, moved or sending garbage, while visitors go on: the
//! behaviour that the guide to Redis documents for each fault.

mod aborts;
mod load;
mod server;
mod topologies;

use std::time::{Duration, Instant};

use self::load::{Load, LoadResult, Outcome, Sample};
use crate::process_stats;
use crate::report::{Measurement, Report};

/// Requirements for a fault, in addition to no wrong response.
#[derive(Clone, Copy)]
pub struct Requirement {
    /// Time after the end of the fault until all requests are served again.
    pub recovers: Duration,
    /// Longest time for a response.
    pub longest: Duration,
    pub failures: Failures,
    /// Acknowledged changes that are lost by asynchronous replication.
    pub losses: Losses,
    /// Sessions that the fault removes, so that their visitors are anonymous.
    pub missing: Missing,
    /// Limit of log lines of the store.
    pub lines: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    None,
    Allowed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    None,
    Allowed,
    /// Some must fail, or the fault had no effect.
    Required,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    None,
    Allowed,
}

/// A page loads the session and its call loads it again, at most 500 ms each; the rest is for a
/// busy machine.
pub const BUDGET: Duration = Duration::from_millis(1500);

impl Default for Requirement {
    fn default() -> Self {
        Self {
            recovers: Duration::from_secs(2),
            longest: BUDGET,
            failures: Failures::Required,
            losses: Losses::None,
            missing: Missing::None,
            lines: 20,
        }
    }
}

/// Begin and end of a fault.
pub struct Window {
    pub began: Instant,
    pub ended: Instant,
}

/// Runs the rows whose scenario contains `wanted`.
pub async fn run(report: &mut Report, wanted: &str) {
    let aborts = Row {
        scenario: "4,000 clients with a session abort at random moments (RST, within the request or the response) while 2,000 others read their own markers",
        repetitions: "once",
        requirement: "no response reaches another client",
        run: aborts::no_crossed_responses,
    };
    let rows = server::rows().into_iter().chain(topologies::rows()).chain([aborts]);
    for row in rows.filter(|row| row.scenario.contains(wanted)) {
        // It blocks; the load has its own thread.
        let measured = async { std::thread::spawn(row.run).join().unwrap_or_else(|_| panicked()) };
        report.row(row.scenario, row.repetitions, row.requirement, measured).await;
    }
}

/// A row of the report, before it is run.
pub struct Row {
    pub scenario: &'static str,
    pub repetitions: &'static str,
    pub requirement: &'static str,
    pub run: fn() -> Measurement,
}

fn panicked() -> Measurement {
    Measurement { text: "it panicked".to_owned(), passed: false }
}

/// Runs the load on this `[store]` during the fault that `inject` makes, and checks the
/// requirement.
pub fn run_fault(
    store: &str,
    requirement: Requirement,
    inject: impl FnOnce(&Load) -> Window,
) -> Measurement {
    let load = Load::start(store);
    load.settle(Duration::from_secs(10));
    let (lines, memory) = (process_stats::lines(), process_stats::resident());
    let window = inject(&load);
    let memory = process_stats::resident() - memory;
    load.settle(requirement.recovers + Duration::from_secs(8));
    let lines = process_stats::lines() - lines;
    let Measurement { text, passed } = measurement(&load.stop(), &window, requirement);
    let passed = passed && lines <= requirement.lines && memory < MEMORY_KIB;
    let grown = memory.max(0) / 1024;
    Measurement {
        text: format!("{text}; {lines} log lines of the store; memory grew by {grown} MiB"),
        passed,
    }
}

/// Limit of memory growth, including the load's own records.
const MEMORY_KIB: i64 = 32 * 1024;

/// Runs `begin`, waits, and runs `end`. Returns the time of the fault.
pub fn window(begin: impl FnOnce(), lasts: Duration, end: impl FnOnce()) -> Window {
    let began = Instant::now();
    begin();
    std::thread::sleep(lasts);
    end();
    Window { began, ended: Instant::now() }
}

/// The samples of a load, sorted by their outcome.
struct Samples<'a> {
    wrong: Vec<String>,
    failed: Vec<&'a Sample>,
    missing: usize,
    longest: Duration,
}

/// Returns true for a single request; a life cycle is several requests and pauses.
fn is_single(sample: &Sample) -> bool {
    sample.request != "a life cycle"
}

impl<'a> Samples<'a> {
    fn of(result: &'a LoadResult) -> Self {
        let mut samples =
            Self { wrong: Vec::new(), failed: Vec::new(), missing: 0, longest: Duration::ZERO };
        for sample in &result.samples {
            match &sample.outcome {
                Outcome::Served => {}
                Outcome::Missing => samples.missing += 1,
                Outcome::Failed(..) => samples.failed.push(sample),
                Outcome::Wrong(text) => {
                    samples.wrong.push(format!("{text} ({}, {})", sample.request, sample.visitor));
                }
            }
            if is_single(sample) {
                samples.longest = samples.longest.max(sample.took);
            }
        }
        samples
    }

    /// Returns the time from the end of the fault to the last failure.
    fn recovery(&self, window: &Window) -> Duration {
        let last = self.failed.iter().map(|sample| sample.began + sample.took).max();
        last.map_or(Duration::ZERO, |last| last.saturating_duration_since(window.ended))
    }

    /// Returns the sorted durations of failures during the fault, once the circuit breaker is open.
    fn fast_failures(&self, window: &Window) -> Vec<Duration> {
        let opened = window.began + Duration::from_millis(2500);
        let mut durations: Vec<_> = self
            .failed
            .iter()
            .filter(|sample| sample.began > opened && sample.began + sample.took < window.ended)
            .filter(|sample| is_single(sample))
            .map(|sample| sample.took)
            .collect();
        durations.sort();
        durations
    }
}

fn measurement(result: &LoadResult, window: &Window, requirement: Requirement) -> Measurement {
    let samples = Samples::of(result);
    let recovery = samples.recovery(window);
    let text = summary(result, &samples, window, requirement);
    let failed = &samples.failed;
    let before = failed.iter().any(|sample| sample.began + sample.took < window.began);
    let missing_fits = (samples.missing > 0) == (requirement.missing == Missing::Allowed);
    let failures_fit = match requirement.failures {
        Failures::None => failed.is_empty(),
        Failures::Allowed => true,
        Failures::Required => !failed.is_empty(),
    };
    let passed = samples.wrong.is_empty()
        && result.resurrected == 0
        && !before
        && failures_fit
        && missing_fits
        && samples.longest <= requirement.longest
        && recovery <= requirement.recovers
        && (requirement.losses == Losses::Allowed || result.lost == 0);
    Measurement { text, passed }
}

fn summary(
    result: &LoadResult,
    samples: &Samples<'_>,
    window: &Window,
    requirement: Requirement,
) -> String {
    let mut parts = vec![
        format!("{} requests, {} wrong responses", result.samples.len(), samples.wrong.len()),
        format!("{} failed", samples.failed.len()),
        format!("the longest took {} ms", samples.longest.as_millis()),
        format!("all served again after {} ms", samples.recovery(window).as_millis()),
    ];
    let fast = samples.fast_failures(window);
    if let (Some(median), Some(p99)) = (fast.get(fast.len() / 2), fast.get(fast.len() * 99 / 100)) {
        parts.push(format!(
            "failures from 2.5 s on took {:.1} ms (median), {:.1} ms (p99)",
            median.as_secs_f64() * 1000.0,
            p99.as_secs_f64() * 1000.0
        ));
    }
    let LoadResult { destroyed, resurrected, lost, .. } = result;
    parts.push(format!("{destroyed} destroyed, {resurrected} of them served again"));
    if requirement.losses == Losses::Allowed {
        parts.push(format!("{lost} acknowledged increments lost by the failover"));
    } else if *lost > 0 {
        parts.push(format!("{lost} acknowledged increments lost"));
    }
    if let Some(first) = samples.wrong.first() {
        parts.push(format!("first wrong response: {first}"));
    }
    if samples.missing > 0 {
        parts.push(format!("{} requests of visitors whose session was missing", samples.missing));
    }
    parts.join("; ")
}
