//! Load on the store by page reads and by forged cookies.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Measurement, Report};
use crate::stores::{ALL, Kind, TestBed};
use crate::support::{Browser, Script};

const GETS: u32 = 100;
const MINUTES: usize = 50;
const FORGED: usize = 100_000;
const CONNECTIONS: usize = 32;

pub async fn pages(report: &mut Report) {
    for kind in ALL {
        report
            .row(
                format!(
                    "{GETS} GETs of a page in one minute, touch and rotation due, {}",
                    kind.name()
                ),
                format!("{MINUTES} minutes"),
                "at most 2 store writes and 1 Set-Cookie in each minute",
                minutes(kind),
            )
            .await;
    }
}

async fn minutes(kind: Kind) -> Measurement {
    let bed = TestBed::new(kind, "").await;
    let browser = Browser::new(&bed.cloakroom);
    browser.navigate("/", &Script::new().patch(&json!({"values": {"a": 1}}))).await;
    let (mut most_writes, mut most_cookies, mut anonymous) = (0, 0, 0);
    for _ in 0..MINUTES {
        bed.cloakroom.advance(Duration::from_hours(1));
        let before = bed.store_writes();
        let mut cookies = 0;
        for _ in 0..GETS {
            let page = browser.navigate("/", &Script::new()).await;
            cookies += page.set_cookies().len();
            anonymous += u32::from(page.saw("x-session-id").is_none());
            bed.cloakroom.advance(Duration::from_mins(1) / GETS);
        }
        most_writes = most_writes.max(bed.store_writes() - before);
        most_cookies = most_cookies.max(cookies);
        bed.upstream.take_seen();
    }
    Measurement {
        text: format!(
            "at most {most_writes} writes and {most_cookies} Set-Cookie; {anonymous} pages without the session"
        ),
        passed: most_writes <= 2 && most_cookies <= 1 && anonymous == 0,
    }
}

pub async fn forged_cookies(report: &mut Report) {
    for kind in ALL {
        report
            .row(
                format!(
                    "GETs with forged cookies (well-formed, truncated, with invalid characters, several at once), {CONNECTIONS} connections, {}",
                    kind.name()
                ),
                format!("{FORGED} requests"),
                "0 store commands, 0 records, 0 Set-Cookie",
                flood(kind),
            )
            .await;
    }
}

async fn flood(kind: Kind) -> Measurement {
    let bed = TestBed::new(kind, "").await;
    // After this the connections to Redis have completed their handshakes.
    bed.cloakroom.admin_get("/ready").await;
    let (calls, commands) = (bed.store_calls(), bed.redis_commands());
    let mut clients = JoinSet::new();
    for client in 0..CONNECTIONS {
        let browser = Browser::new(&bed.cloakroom);
        let upstream = bed.upstream.clone();
        clients.spawn(async move {
            let mut cookies = 0;
            for number in 0..FORGED / CONNECTIONS {
                browser.set_cookie(Some(&forged(number)));
                let page = browser.navigate("/", &Script::new().body("ok")).await;
                assert_eq!(page.status, 200);
                cookies += page.set_cookies().len();
                if client == 0 && number % 100 == 0 {
                    upstream.take_seen();
                }
            }
            cookies
        });
    }
    let cookies: usize = clients.join_all().await.iter().sum();
    let calls = bed.store_calls() - calls;
    let commands = bed.redis_commands() - commands;
    let records = bed.records();
    let figures = match records {
        Some(records) if kind == Kind::Redis => {
            format!("{calls} calls, {commands} commands at the server, {records} keys")
        }
        Some(records) => format!("{calls} calls, {records} rows"),
        None => format!("{calls} calls"),
    };
    Measurement {
        text: format!("{figures}, {cookies} Set-Cookie"),
        passed: calls == 0 && commands == 0 && records.unwrap_or(0) == 0 && cookies == 0,
    }
}

fn forged(number: usize) -> String {
    let bytes: [u8; 36] = cloakroom::random::bytes();
    let text = URL_SAFE_NO_PAD.encode(bytes);
    match number % 8 {
        0 => text.chars().take(47).collect(),
        1 => format!("{text}="),
        2 => text.replacen(|_| true, "%41", 1),
        3 => format!("{text}; __Host-id={text}; __Host-id={}", URL_SAFE_NO_PAD.encode([0; 36])),
        _ => text,
    }
}
