//! Counts system calls: of the program under `strace`.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::Budget;
use super::program::Setting;
use super::site::{Browser, Site};

/// Requests by which two runs of the program differ.
const REQUESTS: u64 = 400;

/// Calls that wait for events, or wake a thread that does.
const WAITS: [&str; 3] = ["epoll_wait", "epoll_pwait", "futex"];

/// Returns how many system calls a request makes, except waits.
pub(crate) fn per_request(budget: &Budget, site: &Site) -> u64 {
    let few = trace(budget, site, REQUESTS / 4);
    let many = trace(budget, site, REQUESTS / 4 + REQUESTS);
    let mut total = 0;
    for (name, count) in &many {
        let more = count.saturating_sub(*few.get(name).unwrap_or(&0));
        let calls = (more + REQUESTS / 2) / REQUESTS;
        if calls > 0 && !WAITS.contains(&name.as_str()) {
            println!("  {calls} {name}");
            total += calls;
        }
    }
    total
}

/// Runs the program for some requests. Returns its system calls by name.
fn trace(budget: &Budget, site: &Site, requests: u64) -> BTreeMap<String, u64> {
    let setting = Setting::new(budget, site);
    let output = setting.directory().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o"]).arg(&output);
    command.arg(env!("CARGO_BIN_EXE_cloakroom")).arg("run").arg(&setting.configuration);
    command.stderr(Stdio::null());
    let mut program = setting.start(&mut command);
    let mut browser = Browser::start(program.public);
    browser.open_pages(requests);
    program.terminate_traced();
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(output).unwrap().lines() {
        // `PID name(arguments…) = result`; the rest of an interrupted call is `PID <... name resumed>`.
        let call = line.split_once(' ').map_or("", |(_pid, call)| call.trim_start());
        if let Some((name, _)) = call.split_once('(')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}
