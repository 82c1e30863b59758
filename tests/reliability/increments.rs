//! Concurrent increments of one value.

use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Measurement, Report};
use crate::stores::{ALL, Kind, TestBed};
use crate::support::{Browser, Script};

const PARALLEL: i64 = 50;
const ROUNDS: i64 = 200;

pub async fn run(report: &mut Report) {
    for kind in ALL {
        let scenario = format!("{PARALLEL} concurrent increments of one value, {}", kind.name());
        let repetitions = format!("{ROUNDS} rounds");
        report.row(scenario, repetitions, "no increment is lost", increments(kind)).await;
    }
}

async fn increments(kind: Kind) -> Measurement {
    let bed = TestBed::new(kind, "").await;
    let browser = Browser::new(&bed.cloakroom);
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
    Measurement {
        text: format!("{acknowledged} acknowledged, {found} found"),
        passed: acknowledged == PARALLEL * ROUNDS && found == acknowledged,
    }
}
