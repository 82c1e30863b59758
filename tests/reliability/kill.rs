//! SIGKILL during writes: acknowledged changes survive.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use http::Request;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::process::{Addresses, Process, SERVICE_TOKEN};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::{Browser, PATIENCE, Script, Upstream};

const KILLS: usize = 100;
const CLIENTS: usize = 16;

/// Rounds after which a client starts a new session.
const SESSION_ROUNDS: usize = 4;

/// The acknowledged changes of one session.
#[derive(Default)]
struct Ledger {
    /// The highest number that an increment returned.
    counter: i64,
    /// The keys of acknowledged patches.
    keys: Vec<String>,
}

#[derive(Default)]
struct Count {
    acknowledged: usize,
    unanswered: usize,
    rejected: usize,
    lost: usize,
    broken: usize,
}

pub async fn run(report: &mut Report) {
    for (name, store) in [("SQLite", "sqlite:cloakroom.db"), ("files", "file:sessions")] {
        report
            .row(
                format!("SIGKILL while {CLIENTS} clients increment and set values, {name}"),
                format!("{KILLS} kills"),
                "every acknowledged write (2xx) is present after the restart; PRAGMA integrity_check reports ok, or every file is intact",
                kills(store),
            )
            .await;
    }
}

async fn kills(store: &str) -> Measurement {
    let (directory, upstream, addresses) = (directory(), Upstream::start(), Addresses::free());
    addresses.configure(directory.path(), upstream.address, store);
    let mut ledgers = BTreeMap::new();
    let mut browsers: Vec<_> = (0..CLIENTS).map(|_| Browser::to(addresses.public)).collect();
    let mut count = Count::default();
    let mut process = Process::start(directory.path(), &addresses).await;
    for round in 0..KILLS {
        for (number, browser) in browsers.iter_mut().enumerate() {
            if (round + number) % SESSION_ROUNDS == 0 {
                *browser = Browser::to(addresses.public);
            }
        }
        let mut load = JoinSet::new();
        for (number, browser) in browsers.iter().enumerate() {
            load.spawn(write_until_killed(browser.clone(), round * CLIENTS + number));
        }
        let moment = u64::from(cloakroom::random::bytes::<1>()[0]);
        tokio::time::sleep(Duration::from_millis(20 + moment / 2)).await;
        process.kill();
        load.join_all().await;
        let touched = record(&upstream, &mut ledgers, &mut count).await;
        process = Process::start(directory.path(), &addresses).await;
        for id in touched {
            verify(addresses.api, &id, &ledgers[&id], &mut count).await;
        }
        count.broken += usize::from(!is_intact(directory.path()));
    }
    // All sessions again, including those of earlier rounds.
    for (id, ledger) in &ledgers {
        verify(addresses.api, id, ledger, &mut count).await;
    }
    let Count { acknowledged, unanswered, rejected, lost, broken } = count;
    Measurement {
        text: format!(
            "{acknowledged} writes acknowledged in {} sessions, {lost} lost; {unanswered} without a response, {rejected} rejected; {broken} of {KILLS} integrity checks failed",
            ledgers.len()
        ),
        passed: lost == 0 && broken == 0 && acknowledged > KILLS * CLIENTS,
    }
}

/// Sends patches and increments in turn until a request fails.
async fn write_until_killed(browser: Browser, number: usize) {
    for step in 0..400 {
        let script = if step % 2 == 0 {
            let key = format!("k{number}-{step}");
            Script::new().header("x-key", &key).patch(&json!({"values": {key: step}}))
        } else {
            Script::new().call("POST", "/values/n/increment", "")
        };
        match browser.try_send("GET", "/", &[], &script).await {
            Ok(page) => browser.keep(&page),
            Err(_) => return,
        }
    }
}

/// Waits for the pages that still run, and records the responses to their calls. Returns the ids of
/// their sessions.
async fn record(
    upstream: &Upstream,
    ledgers: &mut BTreeMap<String, Ledger>,
    count: &mut Count,
) -> Vec<String> {
    // The connections of their calls are closed already; the pages only have to notice.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut touched = Vec::new();
    for seen in upstream.take_seen() {
        let Some(call) = seen.calls.first() else { continue };
        match call.status {
            0 => count.unanswered += 1,
            200 => {
                count.acknowledged += 1;
                let header = |name| {
                    seen.headers
                        .iter()
                        .find_map(|(known, value)| (known == name).then(|| value.clone()))
                };
                let script: Script = serde_json::from_str(&header("x-script").unwrap()).unwrap();
                let answer = call.json();
                let id =
                    answer["id"].as_str().map(str::to_owned).or_else(|| header("x-session-id"));
                // An increment that created its session returns the number only, not the id.
                let Some(id) = id else { continue };
                let ledger: &mut Ledger = ledgers.entry(id.clone()).or_default();
                match answer.as_i64() {
                    Some(number) => ledger.counter = ledger.counter.max(number),
                    None => ledger.keys.push(script.headers[0].1.clone()),
                }
                touched.push(id);
            }
            _ => count.rejected += 1,
        }
    }
    touched.sort();
    touched.dedup();
    touched
}

/// Reads a session with the service token and counts its lost changes.
async fn verify(api: SocketAddr, id: &str, ledger: &Ledger, count: &mut Count) {
    let target: Target = format!("http://{api}").parse().unwrap();
    let pool = Pool::new(target, Config { max_idle: 0, ..Config::default() });
    let request = Request::get(format!("/_sessions/{id}/values"))
        .header("authorization", format!("Bearer {SERVICE_TOKEN}"))
        .body(Body::empty())
        .unwrap();
    let response = pool.fetch(request, &Tasks::new(), 1 << 20, PATIENCE).await.unwrap();
    let values: Value = serde_json::from_slice(response.body()).unwrap();
    if response.status() != 200 {
        count.lost += ledger.keys.len() + usize::try_from(ledger.counter).unwrap();
        return;
    }
    let counter = values["n"].as_i64().unwrap_or(0);
    count.lost += usize::try_from((ledger.counter - counter).max(0)).unwrap();
    count.lost += ledger.keys.iter().filter(|key| values.get(key.as_str()).is_none()).count();
}

/// Returns true if the store is intact: SQLite checks itself, and the program logs unreadable files
/// at its start.
fn is_intact(directory: &Path) -> bool {
    let database = directory.join("cloakroom.db");
    if !database.exists() {
        let log = std::fs::read_to_string(directory.join("log")).unwrap();
        return directory.join("sessions").is_dir() && !log.contains("cannot be read");
    }
    let connection = rusqlite::Connection::open(database).unwrap();
    let result: String =
        connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    result == "ok"
}
