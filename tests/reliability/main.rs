//! Tests that are too slow for every commit. Each scenario is repeated often enough for its figures
//! to be significant, and adds rows to the reliability report. `tests/reliability/run` runs them.
//!
//! `reliability ROWS [SCENARIO [OPTION…]…]` writes the rows to the file ROWS and fails if a
//! requirement is not met.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unused_async,
    clippy::too_many_lines,
    clippy::needless_for_each,
    unreachable_pub,
    reason = "a test fails by panicking, knows its environment, prints its progress, reads from top to \
              bottom, and exports nothing"
)]

mod cache;
mod commands;
mod connections;
mod cpu_limit;
mod drain;
mod environment;
mod fixation;
mod floods;
mod increments;
mod kill;
mod load;
mod log_in_storm;
mod operate;
mod process;
mod process_stats;
mod race;
mod redis_faults;
mod report;
mod rotation_storm;
mod soak;
mod store_cost;
mod stores;
mod tunnels;

#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_macros,
    unused_imports,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    reason = "other tests share the kit, and have their own list"
)]
mod support;

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;

use self::report::Report;

const SCENARIOS: [&str; 18] = [
    "log-in-storm",
    "rotation-storm",
    "store-cost",
    "forged-cookies",
    "fixation",
    "kill",
    "increments",
    "drain",
    "cache",
    "commands",
    "redis-faults",
    "operate",
    "connections",
    "tunnels",
    "race",
    "floods",
    "environment",
    "soak",
];

fn main() -> ExitCode {
    process_stats::count_log_lines();
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
        // A scenario that panics becomes a failed row; the others still run.
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
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(name: &str, report: &mut Report) {
    match name {
        "log-in-storm" => log_in_storm::run(report).await,
        "rotation-storm" => rotation_storm::run(report).await,
        "store-cost" => store_cost::pages(report).await,
        "forged-cookies" => store_cost::forged_cookies(report).await,
        "fixation" => fixation::run(report).await,
        "kill" => kill::run(report).await,
        "increments" => increments::run(report).await,
        "drain" => drain::run(report).await,
        "commands" => commands::run(report).await,
        "environment" => environment::run(report).await,
        "tunnels" => tunnels::run(report).await,
        "race" => race::run(report).await,
        "floods" => floods::run(report).await,
        "cache" => cache::run(report).await,
        name if name.split(' ').next() == Some("soak") => {
            soak::run(report, name.strip_prefix("soak").unwrap()).await;
        }
        // Single rows of a scenario: NAME:ROW.
        name => match name.split_once(':').unwrap_or((name, "")) {
            ("redis-faults", row) => redis_faults::run(report, row).await,
            ("operate", row) => operate::run(report, row).await,
            ("connections", row) => connections::run(report, row).await,
            _ => panic!("unknown scenario {name}; expected one of {SCENARIOS:?}"),
        },
    }
}
