//! What reading pages and made-up cookies cost the store.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Counted, Report};
use crate::stores::{ALL, Ground, Kind};
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
                "a minute costs at most 2 store writes and 1 Set-Cookie",
                minutes(kind),
            )
            .await;
    }
}

async fn minutes(kind: Kind) -> Counted {
    let ground = Ground::new(kind, "").await;
    let browser = Browser::new(&ground.cloakroom);
    browser.navigate("/", &Script::new().patch(&json!({"values": {"a": 1}}))).await;
    let (mut most_writes, mut most_cookies, mut strangers) = (0, 0, 0);
    for _ in 0..MINUTES {
        ground.cloakroom.advance(Duration::from_hours(1));
        let before = ground.store_writes();
        let mut cookies = 0;
        for _ in 0..GETS {
            let page = browser.navigate("/", &Script::new()).await;
            cookies += page.set_cookies().len();
            strangers += u32::from(page.saw("x-session-id").is_none());
            ground.cloakroom.advance(Duration::from_mins(1) / GETS);
        }
        most_writes = most_writes.max(ground.store_writes() - before);
        most_cookies = most_cookies.max(cookies);
        ground.upstream.take_seen();
    }
    Counted {
        text: format!(
            "at most {most_writes} writes and {most_cookies} Set-Cookie; {strangers} pages without their session"
        ),
        held: most_writes <= 2 && most_cookies <= 1 && strangers == 0,
    }
}

pub async fn made_up_cookies(report: &mut Report) {
    for kind in ALL {
        report
            .row(
                format!(
                    "GETs with made-up cookies (well-formed, truncated, with other bytes, several at once), {CONNECTIONS} connections, {}",
                    kind.name()
                ),
                format!("{FORGED} requests"),
                "0 store commands, 0 records, 0 Set-Cookie",
                flood(kind),
            )
            .await;
    }
}

async fn flood(kind: Kind) -> Counted {
    let ground = Ground::new(kind, "").await;
    // The connections to Redis have said their greetings by then.
    ground.cloakroom.admin_get("/ready").await;
    let (calls, commands) = (ground.store_calls(), ground.redis_commands());
    let mut lanes = JoinSet::new();
    for lane in 0..CONNECTIONS {
        let browser = Browser::new(&ground.cloakroom);
        let upstream = ground.upstream.clone();
        lanes.spawn(async move {
            let mut cookies = 0;
            for number in 0..FORGED / CONNECTIONS {
                browser.set_cookie(Some(&forged(number)));
                let page = browser.navigate("/", &Script::new().body("ok")).await;
                assert_eq!(page.status, 200);
                cookies += page.set_cookies().len();
                if lane == 0 && number % 100 == 0 {
                    upstream.take_seen();
                }
            }
            cookies
        });
    }
    let cookies: usize = lanes.join_all().await.iter().sum();
    let calls = ground.store_calls() - calls;
    let commands = ground.redis_commands() - commands;
    let records = ground.records();
    let said = match records {
        Some(records) if kind == Kind::Redis => {
            format!("{calls} calls, {commands} commands at the server, {records} keys")
        }
        Some(records) => format!("{calls} calls, {records} rows"),
        None => format!("{calls} calls"),
    };
    Counted {
        text: format!("{said}, {cookies} Set-Cookie"),
        held: calls == 0 && commands == 0 && records.unwrap_or(0) == 0 && cookies == 0,
    }
}

fn forged(number: usize) -> String {
    let bytes: [u8; 36] = cloakroom::random::bytes();
    let text = URL_SAFE_NO_PAD.encode(bytes);
    match number % 8 {
        0 => text[..47].to_owned(),
        1 => format!("{text}="),
        2 => text.replacen(|_| true, "%41", 1),
        3 => format!("{text}; __Host-id={text}; __Host-id={}", URL_SAFE_NO_PAD.encode([0; 36])),
        _ => text,
    }
}
