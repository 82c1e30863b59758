//! Rotation as often as the rules allow, while answers get lost, come late and out of order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Counted, Report};
use crate::stores::{ALL, Ground, Kind};
use crate::support::{Browser, Page, Script};

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 100_000;
const TRIES: usize = 200;

/// In seconds, which are the ticks of the clock here.
const GRACE: u64 = 120;
const POLICY: &str = "[session]\nrotate_every = \"2m\"\nrotation_grace = \"2m\"";

pub async fn run(report: &mut Report) {
    for kind in ALL {
        report
            .row(
                format!(
                    "{CONNECTIONS} connections with one jar, rotate_every = rotation_grace; a third of the answers lost, the others and the requests late by up to the grace, out of order, {}",
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
                    "a jar restored from a minute to ten hours before logs in again, {}",
                    kind.name()
                ),
                format!("{TRIES} tries"),
                "it always can",
                restored(kind),
            )
            .await;
    }
}

/// Where the request of a connection is.
enum Lane {
    Idle,
    /// With the cookie that the jar had when it left.
    Under(Box<Browser>),
    Back(Box<Page>),
}

#[derive(Default)]
struct Count {
    sent: usize,
    logged_out: usize,
    dropped: usize,
}

async fn storm(kind: Kind) -> Counted {
    let ground = Ground::new(kind, POLICY).await;
    let browser = Browser::new(&ground.cloakroom);
    browser.navigate("/", &Script::new().patch(&json!({"principal": "alice"}))).await;
    // Each connection has a pool of its own; the jar is one.
    let connections: Vec<Browser> = (0..CONNECTIONS)
        .map(|_| {
            let mut connection = Browser::new(&ground.cloakroom);
            connection.jar = Arc::clone(&browser.jar);
            connection
        })
        .collect();
    let mut lanes: Vec<Lane> = connections.iter().map(|_| Lane::Idle).collect();
    let mut events: BinaryHeap<_> = (0..CONNECTIONS).map(|lane| Reverse((0, lane))).collect();
    let (mut now, mut count) = (0, Count::default());
    while count.sent < REQUESTS {
        let due = take_due(&mut events, now);
        let mut arrivals = JoinSet::new();
        for lane in due {
            let (next, delay) = match std::mem::replace(&mut lanes[lane], Lane::Idle) {
                Lane::Idle => (Lane::Under(Box::new(connections[lane].copy())), delay()),
                Lane::Under(browser) => {
                    arrivals.spawn(async move { (lane, arrive(&browser).await) });
                    continue;
                }
                Lane::Back(page) => {
                    if random(3) == 0 {
                        count.dropped += 1;
                    } else {
                        connections[lane].keep(&page);
                    }
                    (Lane::Idle, random(6))
                }
            };
            lanes[lane] = next;
            events.push(Reverse((now + delay, lane)));
        }
        // Those that arrive within a tick are there at once.
        for (lane, page) in arrivals.join_all().await {
            count.sent += 1;
            count.logged_out += usize::from(!is_alice(&page));
            lanes[lane] = Lane::Back(Box::new(page));
            events.push(Reverse((now + delay(), lane)));
        }
        ground.upstream.take_seen();
        let next = events.peek().map_or(now, |Reverse((tick, _))| *tick);
        ground.cloakroom.advance(Duration::from_secs(next - now));
        now = next;
    }
    let renewals = ground.cloakroom.metrics().event_count(Event::RenewalIssued);
    let Count { sent, logged_out, dropped } = count;
    Counted {
        text: format!(
            "{logged_out} of {sent} logged out; {dropped} answers lost, {renewals} new tokens issued in {} h of clock",
            now / 3600
        ),
        held: logged_out == 0 && renewals > 100,
    }
}

fn take_due(events: &mut BinaryHeap<Reverse<(u64, usize)>>, now: u64) -> Vec<usize> {
    let mut due = Vec::new();
    while let Some(Reverse((tick, lane))) = events.peek().copied()
        && tick <= now
    {
        events.pop();
        due.push(lane);
    }
    due
}

async fn arrive(browser: &Browser) -> Page {
    match random(2) {
        0 => browser.navigate("/", &Script::new()).await,
        _ => browser.fetch("/", &Script::new()).await,
    }
}

/// Half of what goes over the wire goes at once, the other half takes anything below the grace.
fn delay() -> u64 {
    if random(2) == 0 { 0 } else { random(GRACE) }
}

fn random(below: u64) -> u64 {
    u64::from_be_bytes(cloakroom::random::bytes()) % below
}

fn is_alice(page: &Page) -> bool {
    page.saw("x-session-principal").as_deref() == Some("alice")
}

async fn restored(kind: Kind) -> Counted {
    let ground = Ground::new(kind, POLICY).await;
    let log_in = Script::new().patch(&json!({"principal": "alice"}));
    let (mut anonymous, mut failed) = (0, 0);
    for number in 0..TRIES {
        let browser = Browser::new(&ground.cloakroom);
        browser.navigate("/", &log_in).await;
        let old = browser.copy();
        // One to twenty rotations go over it; the last of them a minute or half an hour ago.
        for _ in 0..=number % 20 {
            ground.cloakroom.advance(Duration::from_mins(if number % 2 == 0 { 1 } else { 30 }));
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
        ground.upstream.take_seen();
    }
    Counted {
        text: format!(
            "{failed} of {TRIES} could not; of {} that looked first, {anonymous} were logged out until then",
            TRIES / 2
        ),
        held: failed == 0,
    }
}
