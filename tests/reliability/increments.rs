//! Many increments at once, none of them lost.

use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Counted, Report};
use crate::stores::{ALL, Ground, Kind};
use crate::support::{Browser, Script};

const PARALLEL: i64 = 50;
const ROUNDS: i64 = 200;

pub async fn run(report: &mut Report) {
    for kind in ALL {
        let done = format!("{PARALLEL} increments of one value at once, {}", kind.name());
        let times = format!("{ROUNDS} rounds");
        report.row(done, times, "all are there", increments(kind)).await;
    }
}

async fn increments(kind: Kind) -> Counted {
    let ground = Ground::new(kind, "").await;
    let browser = Browser::new(&ground.cloakroom);
    browser.navigate("/", &Script::new().patch(&json!({"values": {"n": 0}}))).await;
    let mut acknowledged = 0;
    for _ in 0..ROUNDS {
        let mut pages = JoinSet::new();
        for _ in 0..PARALLEL {
            let browser = browser.clone();
            let increment = Script::new().call("POST", "/values/n/increment", "");
            pages.spawn(async move { browser.fetch("/", &increment).await });
        }
        for page in pages.join_all().await {
            acknowledged += i64::from(page.last().status == 200);
        }
    }
    let found = browser.fetch("/", &Script::new().get("/values/n")).await.json().as_i64().unwrap();
    Counted {
        text: format!("{acknowledged} answered 200, {found} found"),
        held: acknowledged == PARALLEL * ROUNDS && found == acknowledged,
    }
}
