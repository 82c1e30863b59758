//! Redis away, slow, full, demoted, moved and lying, under visitors who go on: what
//! `docs/redis.md` promises of each.

mod aborts;
mod load;
mod one;
mod several;

use std::time::{Duration, Instant};

use self::load::{Load, Outcome, Told};
use crate::report::{Counted, Report};
use crate::watch;

/// What is demanded of an ordeal, beside no wrong answer.
#[derive(Clone, Copy)]
pub struct Demand {
    /// After the fault's end all are served again.
    pub recovers: Duration,
    /// No answer takes longer.
    pub longest: Duration,
    /// How many requests may fail.
    pub failures: Failures,
    /// Whether acknowledged changes may be lost: as replication has it.
    pub losses: Losses,
    /// Whether sessions are taken away, so that their visitors are strangers.
    pub gone: Gone,
    /// The log has no more lines of the store.
    pub lines: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    None,
    Allowed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    None,
    Allowed,
    /// Some, or the fault was none.
    Demanded,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Losses {
    None,
    Counted,
}

/// One page is a load, and a call that is another, of 500 ms each, and what a noisy machine adds.
pub const BUDGET: Duration = Duration::from_millis(1500);

impl Default for Demand {
    fn default() -> Self {
        Self {
            recovers: Duration::from_secs(2),
            longest: BUDGET,
            failures: Failures::Demanded,
            losses: Losses::None,
            gone: Gone::None,
            lines: 20,
        }
    }
}

/// When a fault began and ended.
pub struct Window {
    pub began: Instant,
    pub ended: Instant,
}

/// Those rows whose text has `wanted` in it.
pub async fn run(report: &mut Report, wanted: &str) {
    let aborts = Row {
        done: "4,000 clients with a session each abort at random moments (RST, of the request or the answer) while 2,000 others ask for their markers",
        lasts: "once",
        demanded: "0 crossed answers",
        run: aborts::crossed,
    };
    let rows = one::rows().into_iter().chain(several::rows()).chain([aborts]);
    for row in rows.filter(|row| row.done.contains(wanted)) {
        // It blocks; the load has a thread of its own.
        let counted = async { std::thread::spawn(row.run).join().unwrap_or_else(|_| panicked()) };
        report.row(row.done, row.lasts, row.demanded, counted).await;
    }
}

/// A row of the report, before it is run.
pub struct Row {
    pub done: &'static str,
    pub lasts: &'static str,
    pub demanded: &'static str,
    pub run: fn() -> Counted,
}

fn panicked() -> Counted {
    Counted { text: "it panicked".to_owned(), held: false }
}

/// Has visitors go on before this `[store]` while `inject` does its work.
pub fn ordeal(store: &str, demand: Demand, inject: impl FnOnce(&Load) -> Window) -> Counted {
    let load = Load::begin(store);
    load.settle(Duration::from_secs(10));
    let (lines, memory) = (watch::lines(), watch::resident());
    let window = inject(&load);
    let memory = watch::resident() - memory;
    load.settle(demand.recovers + Duration::from_secs(8));
    let lines = watch::lines() - lines;
    let Counted { text, held } = counted(&load.end(), &window, demand);
    let held = held && lines <= demand.lines && memory < MEMORY_KIB;
    let grown = memory.max(0) / 1024;
    Counted {
        text: format!("{text}; {lines} lines of the store in the log, {grown} MiB more memory"),
        held,
    }
}

/// The load's own notes are in it.
const MEMORY_KIB: i64 = 32 * 1024;

/// A fault that lasts from the end of `begin` to the end of `end`.
pub fn window(begin: impl FnOnce(), lasts: Duration, end: impl FnOnce()) -> Window {
    let began = Instant::now();
    begin();
    std::thread::sleep(lasts);
    end();
    Window { began, ended: Instant::now() }
}

fn counted(told: &Told, window: &Window, demand: Demand) -> Counted {
    let samples = &told.samples;
    let gone = samples.iter().filter(|sample| sample.outcome == Outcome::Gone).count();
    let wrong: Vec<_> = samples
        .iter()
        .filter_map(|sample| match &sample.outcome {
            Outcome::Wrong(what) => Some(format!("{what} ({}, {})", sample.asked, sample.visitor)),
            Outcome::Served | Outcome::Gone | Outcome::Failed(..) => None,
        })
        .collect();
    let failed: Vec<_> =
        samples.iter().filter(|sample| matches!(sample.outcome, Outcome::Failed(..))).collect();
    // A life is several requests and pauses.
    let single = |asked: &str| asked != "a life";
    let longest = samples.iter().filter(|sample| single(sample.asked)).map(|sample| sample.took);
    let longest = longest.max().unwrap_or_default();
    let late = failed.iter().map(|sample| sample.began + sample.took).max();
    let recovered =
        late.map_or(Duration::ZERO, |late| late.saturating_duration_since(window.ended));
    let before = failed.iter().filter(|sample| sample.began + sample.took < window.began).count();
    // Once the breaker is open.
    let opened = window.began + Duration::from_millis(2500);
    let mut fast: Vec<_> = failed
        .iter()
        .filter(|sample| sample.began > opened && sample.began + sample.took < window.ended)
        .filter(|sample| single(sample.asked))
        .map(|sample| sample.took)
        .collect();
    fast.sort();
    let mut text = format!(
        "{} requests, {} wrong answers, {} failed; the longest took {} ms; all served again {} ms after",
        samples.len(),
        wrong.len(),
        failed.len(),
        longest.as_millis(),
        recovered.as_millis(),
    );
    if let (Some(median), Some(most)) = (fast.get(fast.len() / 2), fast.get(fast.len() * 99 / 100))
    {
        text += &format!(
            "; from 2.5 s on failures took {:.1} ms, 99 of 100 at most {:.1} ms",
            median.as_secs_f64() * 1000.0,
            most.as_secs_f64() * 1000.0
        );
    }
    text += &format!("; {} destroyed, {} of them served again", told.destroyed, told.risen);
    if demand.losses == Losses::Counted {
        text += &format!("; {} acknowledged increments lost with it", told.lost);
    } else if told.lost > 0 {
        text += &format!("; {} acknowledged increments lost", told.lost);
    }
    if let Some(first) = wrong.first() {
        text += &format!("; first wrong: {first}");
    }
    if gone > 0 {
        text += &format!("; {gone} requests of visitors whose session was gone");
    }
    let gone_fits = (gone > 0) == (demand.gone == Gone::Allowed);
    let failures_fit = match demand.failures {
        Failures::None => failed.is_empty(),
        Failures::Allowed => true,
        Failures::Demanded => !failed.is_empty(),
    };
    let held = wrong.is_empty()
        && told.risen == 0
        && before == 0
        && failures_fit
        && gone_fits
        && longest <= demand.longest
        && recovered <= demand.recovers
        && (demand.losses == Losses::Counted || told.lost == 0);
    Counted { text, held }
}
