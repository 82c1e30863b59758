//! Counts allocations: of this executable as the program, with a counting allocator.

use std::alloc::System;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use cloakroom::cli;
use cloakroom::config::Environment;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use super::Budget;
use super::program::Setting;
use super::site::{Browser, Site};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The argument that makes this executable the program.
pub(crate) const SERVE: &str = "--serve";

/// Requests between two counts.
const REQUESTS: u64 = 2000;

/// Runs the program, which prints its allocations so far for each line on standard input.
pub(crate) fn serve(file: &str) -> ExitCode {
    thread::spawn(|| {
        for _line in std::io::stdin().lines() {
            let stats = ALLOCATOR.stats();
            println!("{}", stats.allocations + stats.reallocations);
        }
    });
    let arguments = ["cloakroom", "run", file].map(Into::into);
    cli::main(arguments, &Environment::of_process())
}

/// Returns how many times a request allocates or reallocates memory.
pub(crate) fn per_request(budget: &Budget, site: &Site) -> u64 {
    let setting = Setting::new(budget, site);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(SERVE).arg(&setting.configuration);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut program = setting.start(&mut command);
    let mut input = program.child.stdin.take().unwrap();
    let mut output = BufReader::new(program.child.stdout.take().unwrap());
    let mut count = || -> u64 {
        writeln!(input).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    };
    let mut browser = Browser::start(program.public);
    browser.open_pages(REQUESTS / 10);
    let before = count();
    browser.open_pages(REQUESTS);
    (count() - before + REQUESTS / 2) / REQUESTS
}
