//! The budget of a request: its allocations and system calls, counted on real sockets, in whole ones per request.
//!
//! The program runs in a process of its own, so that only its costs are counted: this executable again,
//! with a counting allocator, for allocations; the program under `strace` for system calls. Two counts are
//! compared, so that the start is left out. What happens once a second rounds to nothing.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, prints its results, and knows its environment"
)]

mod allocations;
mod program;
mod site;
mod system_calls;

#[expect(dead_code, unused_imports, reason = "other tests share the kit")]
#[path = "../it/support/redis/mod.rs"]
mod redis;
#[expect(unused_macros, unused_imports, reason = "other tests share the kit")]
#[path = "../it/support/tools.rs"]
mod tools;

use std::process::ExitCode;

use site::Site;

/// The setting of a measurement, and the most that one of its requests may cost.
struct Budget {
    name: &'static str,
    /// Lines of the route.
    route: &'static str,
    /// Lines of the store.
    store: String,
    allocations: u64,
    /// A read and a write each for the client, the upstream and the store. Waits for events do not count.
    system_calls: u64,
}

/// Allocations of the `redis` crate for one command: mostly its parser's, for the fields of the reply.
const REDIS_CRATE: u64 = 13;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [command, file] if command == allocations::SERVE => allocations::serve(file),
        // Cargo passes its filters to every target; this one has a single test.
        _ => check(),
    }
}

fn check() -> ExitCode {
    let memory = || "url = \"memory:\"".to_owned();
    let mut budgets = vec![
        Budget {
            name: "no session",
            route: "session = \"off\"",
            store: memory(),
            allocations: 18,
            system_calls: 4,
        },
        Budget {
            name: "session in memory",
            route: "",
            store: memory(),
            // Two more than for a cached session may take: the boxed look-up, and the boxed answer of the store.
            allocations: 28,
            system_calls: 4,
        },
        Budget {
            name: "held cookie",
            route: "hold_cookies = [\"SID\"]",
            store: memory(),
            // Fourteen more than without: the host and the path, the line, and to open the seal.
            allocations: 42,
            system_calls: 4,
        },
    ];
    let redis = is_installed("redis-server").then(|| redis::RedisServer::start(&[]));
    if let Some(redis) = &redis {
        let url = format!("url = \"{}\"", redis.url());
        budgets.push(Budget {
            name: "cached session",
            route: "",
            store: format!("{url}\ncache = {{}}"),
            allocations: 26,
            system_calls: 4,
        });
        budgets.push(Budget {
            name: "session in Redis",
            route: "",
            store: url,
            allocations: 40 + REDIS_CRATE,
            system_calls: 6,
        });
    }
    if keeps_within(&budgets) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Counts what requests cost, and returns whether all budgets are kept.
fn keeps_within(budgets: &[Budget]) -> bool {
    let (site, traces) = (Site::start(), is_installed("strace"));
    let mut is_exceeded = false;
    for budget in budgets {
        let found = allocations::per_request(budget, &site);
        is_exceeded |= report(budget.name, "allocations", found, budget.allocations);
        if traces {
            let found = system_calls::per_request(budget, &site);
            is_exceeded |= report(budget.name, "system calls", found, budget.system_calls);
        }
    }
    !is_exceeded
}

/// Prints a count, and returns whether it exceeds the budget.
fn report(name: &str, what: &str, found: u64, budget: u64) -> bool {
    let verdict = if found > budget { "EXCEEDED" } else { "ok" };
    println!("budget: {name}: {found} {what} of {budget}: {verdict}");
    found > budget
}

/// Returns whether a program is in PATH. Under `tests/run` a missing one is a failure.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    let is_required = std::env::var_os("TESTS_NEED_TOOLS").is_some();
    assert!(is_found || !is_required, "{program} is not installed");
    if !is_found {
        println!("needs {program}: run tests/run");
    }
    is_found
}
