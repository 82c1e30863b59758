//! WebSockets: integrity of their messages, and closing with the session.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};

use crate::report::{Measurement, Report};
use crate::support::{
    Browser, COOKIE, Cloakroom, Echo, Message, RedisServer, Script, Upstream, socket,
};

const MESSAGES: usize = 100_000;
const REVOKED: usize = 20;
const DEADLINE: Duration = Duration::from_secs(2);

pub async fn run(report: &mut Report) {
    report
        .row(
            "messages of 0 to 70,000 bytes over a WebSocket to a site that echoes them",
            format!("{MESSAGES} messages"),
            "each is echoed unchanged, in order",
            echoes(),
        )
        .await;
    report
        .row(
            "a session with an open WebSocket is destroyed by the back office at another instance, Redis",
            format!("{REVOKED} WebSockets, one after another"),
            "each is closed with code 1008 within 2 s",
            revoked(),
        )
        .await;
}

fn routes(echo: &Echo, store: &str) -> String {
    format!(
        "{store}[[route]]\nupstream = \"UPSTREAM\"\n[[route]]\npath = \"/ws\"\nupstream = \"http://{}\"\n",
        echo.address
    )
}

/// Returns a message that differs from the next one in length and in its bytes.
fn message(index: usize) -> Message {
    let length = match index % 100 {
        0 => 70_000,
        1 => 0,
        rest => rest * 13,
    };
    let seed = index.to_le_bytes();
    Message::binary(seed.iter().copied().cycle().take(length).collect::<Vec<u8>>())
}

async fn echoes() -> Measurement {
    let (upstream, echo) = (Upstream::start(), Echo::start().await);
    let proxy = Cloakroom::with(&upstream, &routes(&echo, "")).await;
    let opened = socket(proxy.public(), "/ws", &[]).await.unwrap();
    let (mut sink, mut stream) = opened.0.split();
    let began = Instant::now();
    let sends = tokio::spawn(async move {
        for index in 0..MESSAGES {
            sink.send(message(index)).await.unwrap();
        }
        sink
    });
    let (mut same, mut bytes) = (0, 0);
    for index in 0..MESSAGES {
        let Some(Ok(came)) = stream.next().await else { break };
        bytes += came.len();
        same += usize::from(came == message(index));
    }
    let took = began.elapsed();
    drop(sends.await.unwrap());
    Measurement {
        text: format!(
            "{same} of {MESSAGES} unchanged, {} MiB in each direction in {:.1} s",
            bytes >> 20,
            took.as_secs_f64()
        ),
        passed: same == MESSAGES,
    }
}

async fn revoked() -> Measurement {
    let redis = RedisServer::start(&[]);
    let (upstream, echo) = (Upstream::start(), Echo::start().await);
    let store = format!("[store]\nurl = \"{}\"\n", redis.url());
    let proxy = Cloakroom::with(&upstream, &routes(&echo, &store)).await;
    let other = Cloakroom::with(&upstream, &routes(&echo, &store)).await;
    let (mut closed, mut longest) = (0, Duration::ZERO);
    for _ in 0..REVOKED {
        let browser = Browser::new(&proxy);
        let page = browser.navigate("/", &Script::new().call("PUT", "/values/a", "1")).await;
        let id = page.json()["id"].as_str().unwrap().to_owned();
        let cookie = format!("{COOKIE}={}", browser.cookie().unwrap());
        let mut opened = socket(proxy.public(), "/ws", &[("cookie", &cookie)]).await.unwrap();
        assert!(opened.echoes("there").await);
        let began = Instant::now();
        assert_eq!(other.service("DELETE", &format!("/{id}"), "").await.status, 204);
        closed += usize::from(opened.closed_with().await == Some(1008));
        longest = longest.max(began.elapsed());
    }
    Measurement {
        text: format!("{closed} closed with 1008, after at most {} ms", longest.as_millis()),
        passed: closed == REVOKED && longest <= DEADLINE,
    }
}
