//! The rows of the report.

use std::fmt;
use std::time::{Duration, Instant};

/// What was counted, and whether it is what was demanded.
pub struct Counted {
    pub text: String,
    pub held: bool,
}

#[derive(Default)]
pub struct Report(Vec<Row>);

struct Row {
    done: String,
    times: String,
    demanded: String,
    counted: Counted,
    took: Duration,
}

impl Report {
    /// Runs `scenario` and notes what it counted.
    pub async fn row(
        &mut self,
        done: impl Into<String>,
        times: impl Into<String>,
        demanded: &str,
        scenario: impl Future<Output = Counted>,
    ) {
        let began = Instant::now();
        let counted = scenario.await;
        let (took, demanded) = (began.elapsed(), demanded.to_owned());
        self.push(Row { done: done.into(), times: times.into(), demanded, counted, took });
    }

    /// A scenario that did not come to its end.
    pub fn panicked(&mut self, name: &str) {
        let counted = Counted { text: "it panicked".to_owned(), held: false };
        self.push(Row {
            done: name.to_owned(),
            times: String::new(),
            demanded: "it ends".to_owned(),
            counted,
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

    pub fn held(&self) -> bool {
        self.0.iter().all(|row| row.counted.held)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, times, demanded, counted, took } = self;
        let held = if counted.held { "held" } else { "**not held**" };
        let text = &counted.text;
        writeln!(
            f,
            "| {done} | {times} | {demanded} | {text} | {held} | {:.1} s |",
            took.as_secs_f64()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|row| row.fmt(f))
    }
}
