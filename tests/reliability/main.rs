//! What is too slow for every commit: each scenario is repeated until its count means something, and
//! becomes rows of `docs/reliability.md`. `tests/reliability/run` runs it.
//!
//! `reliability ROWS [SCENARIO [OPTION…]…]` writes the rows into the file ROWS and fails if one does not hold.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unused_async,
    unreachable_pub,
    reason = "a test fails by panicking, knows its environment, says how it goes, and exports nothing"
)]

mod cache;
mod cage;
mod commands;
mod crowd;
mod drain;
mod economy;
mod floods;
mod increments;
mod kill;
mod load;
mod log_in_storm;
mod operate;
mod process;
mod race;
mod redis_faults;
mod report;
mod rotation_storm;
mod soak;
mod stores;
mod surroundings;
mod tunnels;
mod watch;

#[path = "../it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the kit of other tests too")]
mod support;

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;

use self::report::Report;

const SCENARIOS: [&str; 17] = [
    "log-in-storm",
    "rotation-storm",
    "economy",
    "made-up-cookies",
    "kill",
    "increments",
    "drain",
    "cache",
    "commands",
    "redis-faults",
    "operate",
    "crowd",
    "tunnels",
    "race",
    "floods",
    "surroundings",
    "soak",
];

fn main() -> ExitCode {
    watch::begin();
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("the file for the rows");
    let mut wanted: Vec<String> = Vec::new();
    for word in arguments {
        match wanted.last_mut() {
            // An option, or the value of one, belongs to the scenario before it.
            Some(scenario) if !SCENARIOS.contains(&word.split(':').next().unwrap()) => {
                *scenario = format!("{scenario} {word}");
            }
            _ => wanted.push(word),
        }
    }
    if wanted.is_empty() {
        wanted = SCENARIOS.map(str::to_owned).to_vec();
    }
    let mut report = Report::default();
    for name in wanted {
        // A scenario that panics is a row that does not hold; the others still run.
        let rows = std::panic::catch_unwind(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let mut report = Report::default();
            runtime.unwrap().block_on(run(&name, &mut report));
            report
        });
        match rows {
            Ok(rows) => report.extend(rows),
            Err(_) => report.panicked(&name),
        }
        File::create(&path)
            .and_then(|mut file| file.write_all(report.to_string().as_bytes()))
            .unwrap();
    }
    if report.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(name: &str, report: &mut Report) {
    match name {
        "log-in-storm" => log_in_storm::run(report).await,
        "rotation-storm" => rotation_storm::run(report).await,
        "economy" => economy::pages(report).await,
        "made-up-cookies" => economy::made_up_cookies(report).await,
        "kill" => kill::run(report).await,
        "increments" => increments::run(report).await,
        "drain" => drain::run(report).await,
        "commands" => commands::run(report).await,
        "surroundings" => surroundings::run(report).await,
        "tunnels" => tunnels::run(report).await,
        "race" => race::run(report).await,
        "floods" => floods::run(report).await,
        "cache" => cache::run(report).await,
        name if name.split(' ').next() == Some("soak") => {
            soak::run(report, name.strip_prefix("soak").unwrap()).await;
        }
        // Of some, single rows: NAME:ROW.
        name => match name.split_once(':').unwrap_or((name, "")) {
            ("redis-faults", row) => redis_faults::run(report, row).await,
            ("operate", row) => operate::run(report, row).await,
            ("crowd", row) => crowd::run(report, row).await,
            _ => panic!("no such scenario: {name}; there are {SCENARIOS:?}"),
        },
    }
}
