//! Rotation at the shortest allowed interval, while responses are lost, late and reordered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Measurement, Report};
use crate::stores::{ALL, Kind, TestBed};
use crate::support::{Browser, Page, Script};

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 100_000;
const TRIES: usize = 200;

/// Rotation grace in seconds; a tick of the manual clock is one second.
const GRACE: u64 = 120;
const POLICY: &str = "[session]\nrotate_every = \"2m\"\nrotation_grace = \"2m\"";

pub async fn run(report: &mut Report) {
    for kind in ALL {
        report
            .row(
                format!(
                    "{CONNECTIONS} connections with one cookie jar, rotate_every = rotation_grace; a third of the responses lost, the others and the requests up to the grace late, reordered, {}",
                    kind.name()
                ),
                format!("{REQUESTS} requests"),
                "0 log-outs",
                storm(kind),
            )
            .await;
    }
    for kind in ALL {
        report
            .row(
                format!(
                    "a log-in with a cookie jar restored from a minute to ten hours ago, {}",
                    kind.name()
                ),
                format!("{TRIES} attempts"),
                "it always succeeds",
                restored(kind),
            )
            .await;
    }
}

/// State of a connection.
enum State {
    Idle,
    /// The request is on its way, with the cookie that the jar had when it was sent.
    Requesting(Box<Browser>),
    /// The response is on its way.
    Responding(Box<Page>),
}

#[derive(Default)]
struct Count {
    sent: usize,
    logged_out: usize,
    dropped: usize,
}

async fn storm(kind: Kind) -> Measurement {
    let bed = TestBed::new(kind, POLICY).await;
    let browser = Browser::new(&bed.cloakroom);
    browser.navigate("/", &Script::new().patch(&json!({"principal": "alice"}))).await;
    // Each connection has its own pool; they share one jar.
    let connections: Vec<Browser> = (0..CONNECTIONS)
        .map(|_| {
            let mut connection = Browser::new(&bed.cloakroom);
            connection.jar = Arc::clone(&browser.jar);
            connection
        })
        .collect();
    let mut states: Vec<State> = connections.iter().map(|_| State::Idle).collect();
    let mut events: BinaryHeap<_> = (0..CONNECTIONS).map(|index| Reverse((0, index))).collect();
    let (mut now, mut count) = (0, Count::default());
    while count.sent < REQUESTS {
        let due = take_due(&mut events, now);
        let mut arrivals = JoinSet::new();
        for index in due {
            let (next, delay) = match std::mem::replace(&mut states[index], State::Idle) {
                State::Idle => (State::Requesting(Box::new(connections[index].copy())), delay()),
                State::Requesting(browser) => {
                    arrivals.spawn(async move { (index, arrive(&browser).await) });
                    continue;
                }
                State::Responding(page) => {
                    if random(3) == 0 {
                        count.dropped += 1;
                    } else {
                        connections[index].keep(&page);
                    }
                    (State::Idle, random(6))
                }
            };
            states[index] = next;
            events.push(Reverse((now + delay, index)));
        }
        // Requests that arrive within the same tick are concurrent.
        for (index, page) in arrivals.join_all().await {
            count.sent += 1;
            count.logged_out += usize::from(!is_alice(&page));
            states[index] = State::Responding(Box::new(page));
            events.push(Reverse((now + delay(), index)));
        }
        bed.upstream.take_seen();
        let next = events.peek().map_or(now, |Reverse((tick, _))| *tick);
        bed.cloakroom.advance(Duration::from_secs(next - now));
        now = next;
    }
    let renewals = bed.cloakroom.metrics().event_count(Event::RenewalIssued);
    let Count { sent, logged_out, dropped } = count;
    Measurement {
        text: format!(
            "{logged_out} of {sent} logged out; {dropped} responses lost, {renewals} new tokens issued in {} h of the manual clock",
            now / 3600
        ),
        passed: logged_out == 0 && renewals > 100,
    }
}

fn take_due(events: &mut BinaryHeap<Reverse<(u64, usize)>>, now: u64) -> Vec<usize> {
    let mut due = Vec::new();
    while let Some(Reverse((tick, index))) = events.peek().copied()
        && tick <= now
    {
        events.pop();
        due.push(index);
    }
    due
}

async fn arrive(browser: &Browser) -> Page {
    match random(2) {
        0 => browser.navigate("/", &Script::new()).await,
        _ => browser.fetch("/", &Script::new()).await,
    }
}

/// Returns a delay in ticks: none for half of the messages, up to the grace for the others.
fn delay() -> u64 {
    if random(2) == 0 { 0 } else { random(GRACE) }
}

fn random(below: u64) -> u64 {
    u64::from_be_bytes(cloakroom::random::bytes()) % below
}

fn is_alice(page: &Page) -> bool {
    page.saw("x-session-principal").as_deref() == Some("alice")
}

async fn restored(kind: Kind) -> Measurement {
    let bed = TestBed::new(kind, POLICY).await;
    let log_in = Script::new().patch(&json!({"principal": "alice"}));
    let (mut anonymous, mut failed) = (0, 0);
    for number in 0..TRIES {
        let browser = Browser::new(&bed.cloakroom);
        browser.navigate("/", &log_in).await;
        let old = browser.copy();
        // One to twenty rotations follow, the last of them a minute or half an hour ago.
        for _ in 0..=number % 20 {
            bed.cloakroom.advance(Duration::from_mins(if number % 2 == 0 { 1 } else { 30 }));
            for _ in 0..2 {
                browser.navigate("/", &Script::new()).await;
            }
        }
        if number % 4 < 2 {
            anonymous += usize::from(!is_alice(&old.navigate("/", &Script::new()).await));
        }
        let page = old.navigate("/", &log_in).await;
        let logged_in =
            page.last().status == 200 && is_alice(&old.navigate("/", &Script::new()).await);
        failed += usize::from(!logged_in);
        bed.upstream.take_seen();
    }
    Measurement {
        text: format!(
            "{failed} of {TRIES} failed; of {} that requested a page first, {anonymous} were logged out at that time",
            TRIES / 2
        ),
        passed: failed == 0,
    }
}
