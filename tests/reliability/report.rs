//! The report: one row for each scenario.

use std::fmt;
use std::time::{Duration, Instant};

/// The figures of a scenario, and if they meet the requirement.
pub struct Measurement {
    pub text: String,
    pub passed: bool,
}

/// The rows of the report.
#[derive(Default)]
pub struct Report(Vec<Row>);

struct Row {
    scenario: String,
    repetitions: String,
    requirement: String,
    measured: Measurement,
    took: Duration,
}

impl Report {
    /// Runs a scenario and adds its row.
    pub async fn row(
        &mut self,
        scenario: impl Into<String>,
        repetitions: impl Into<String>,
        requirement: &str,
        run: impl Future<Output = Measurement>,
    ) {
        let began = Instant::now();
        // A scenario is a large future, which would make each caller as large.
        let measured = Box::pin(run).await;
        self.push(Row {
            scenario: scenario.into(),
            repetitions: repetitions.into(),
            requirement: requirement.to_owned(),
            measured,
            took: began.elapsed(),
        });
    }

    /// Adds a failed row for a scenario that panicked.
    pub fn panicked(&mut self, name: &str) {
        let measured = Measurement { text: "it panicked".to_owned(), passed: false };
        self.push(Row {
            scenario: name.to_owned(),
            repetitions: String::new(),
            requirement: "it completes".to_owned(),
            measured,
            took: Duration::ZERO,
        });
    }

    fn push(&mut self, row: Row) {
        print!("{row}");
        self.0.push(row);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns true if every requirement is met.
    pub fn passed(&self) -> bool {
        self.0.iter().all(|row| row.measured.passed)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, repetitions, requirement, measured, took } = self;
        let result = if measured.passed { "passed" } else { "**failed**" };
        let text = &measured.text;
        writeln!(
            f,
            "| {scenario} | {repetitions} | {requirement} | {text} | {result} | {:.1} s |",
            took.as_secs_f64()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|row| row.fmt(f))
    }
}
