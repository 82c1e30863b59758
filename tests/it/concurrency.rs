//! Parallel requests of one session lose no update, in every store.

use serde_json::json;

use crate::support::{Browser, Cloakroom, Page, RedisServer, Script, Upstream, needs};

const PARALLEL: usize = 50;
const ROUNDS: usize = 20;

async fn all_at_once(browser: &Browser, script: impl Fn(usize) -> Script) -> Vec<Page> {
    let requests: Vec<_> = (0..PARALLEL)
        .map(|index| {
            let (browser, script) = (browser.clone(), script(index));
            tokio::spawn(async move { browser.fetch("/", &script).await })
        })
        .collect();
    let mut pages = Vec::new();
    for request in requests {
        pages.push(request.await.unwrap());
    }
    pages
}

async fn check_no_lost_updates(store: &str) {
    let upstream = Upstream::start();
    let toml = format!("[store]\nurl = \"{store}\"\ntimeout = \"20s\"\n");
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let browser = Browser::new(&cloakroom);
    browser.navigate("/", &Script::new().call("PUT", "/values/n", "0")).await;
    for _ in 0..ROUNDS {
        for page in
            all_at_once(&browser, |_| Script::new().call("POST", "/values/n/increment", "")).await
        {
            assert_eq!(page.last().status, 200, "{:?}", page.last());
        }
    }
    let total = PARALLEL * ROUNDS;
    assert_eq!(browser.navigate("/", &Script::new().get("/values/n")).await.json(), json!(total));
    let keys = |index: usize| Script::new().patch(&json!({"values": {format!("k{index}"): index}}));
    for page in all_at_once(&browser, keys).await {
        assert_eq!(page.last().status, 200, "{:?}", page.last());
    }
    let values = browser.navigate("/", &Script::new().get("/values")).await.json();
    for index in 0..PARALLEL {
        assert_eq!(values[format!("k{index}")], json!(index));
    }
}

#[tokio::test]
async fn no_update_is_lost_in_memory() {
    check_no_lost_updates("memory:").await;
}

#[tokio::test]
async fn no_update_is_lost_in_sqlite() {
    check_no_lost_updates("sqlite:sessions.db").await;
}

#[tokio::test]
async fn no_update_is_lost_in_redis() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    check_no_lost_updates(&format!("redis://127.0.0.1:{}/0", server.port())).await;
}
