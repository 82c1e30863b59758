//! The program itself, as several instances on one Redis, with latency to it.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::{
    API, Browser, Fault, FaultProxy, KEY, Page, Program, RedisServer, Script, Serving, Upstream,
};

/// A running instance, and the relay by which it reaches Redis.
struct Instance {
    program: Program,
    serving: Serving,
    directory: TempDir,
    _relay: FaultProxy,
}

/// From 1 to 5 ms, each way.
const LATENCY: Fault =
    Fault::Delay { fixed: Duration::from_millis(1), jitter: Duration::from_millis(4) };

impl Instance {
    /// Starts one with these lines in `[session]` and `[store]`.
    async fn start(upstream: &Upstream, server: &RedisServer, session: &str, store: &str) -> Self {
        let relay = FaultProxy::before(server.address());
        relay.set(LATENCY);
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[session]\n{session}\n\
             [store]\nurl = \"redis://{}/\"\ntimeout = \"20s\"\n{store}\n\
             [[route]]\nupstream = \"{}\"\n",
            relay.address(),
            upstream.url()
        );
        let file = directory.path().join("cloakroom.toml");
        std::fs::write(&file, text).unwrap();
        let program = Program::start(&file);
        let serving = program.serving().await;
        Self { program, serving, directory, _relay: relay }
    }

    /// A page that the visitor opens here, and whose upstream calls the API here.
    async fn page(&self, browser: &Browser, script: &Script) -> Page {
        let api = format!("http://{}/_session", self.serving.api);
        let headers = [(API, &*api), ("sec-fetch-dest", "document"), ("sec-fetch-site", "none")];
        browser.at(self.serving.public).send("GET", "/", &headers, script).await
    }
}

/// Logs in at one instance and opens the next page at the other, whose cache holds the session as
/// it was before; then the same the other way, with a rotation.
async fn visit(here: &Instance, there: &Instance, round: usize) {
    let browser = Browser::to(here.serving.public);
    here.page(&browser, &Script::new().call("PUT", "/values/n", "1")).await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let rotate = Script::new().call("POST", "/rotate", "");
    for (changes, serves, script) in [(here, there, log_in), (there, here, rotate)] {
        serves.page(&browser, &Script::new()).await;
        let changed = changes.page(&browser, &script).await;
        assert_eq!((changed.last().status, changed.set_cookies().len()), (200, 1));
        let good = browser.cookie();
        let next = serves.page(&browser, &Script::new().get("/values")).await;
        let told = next.saw("x-session-error");
        assert_eq!((browser.cookie(), told), (good, None), "round {round}: the cookie stays");
        assert_eq!(next.saw("x-session-principal").as_deref(), Some("ada"), "round {round}");
        assert_eq!(next.json(), json!({"n": 1}), "round {round}");
    }
}

#[tokio::test]
async fn log_in_at_one_instance_opens_at_the_other() {
    let upstream = std::sync::Arc::new(Upstream::start());
    let server = RedisServer::start(&[]);
    let keys = format!("keys = [\"{KEY}\"]");
    let cache = "cache = { max_bytes = \"4MiB\" }";
    let a = std::sync::Arc::new(Instance::start(&upstream, &server, &keys, cache).await);
    let b = std::sync::Arc::new(Instance::start(&upstream, &server, &keys, cache).await);
    let mut visitors = JoinSet::new();
    for _ in 0..8 {
        let (a, b) = (std::sync::Arc::clone(&a), std::sync::Arc::clone(&b));
        visitors.spawn(async move {
            for round in 0..25 {
                visit(&a, &b, round).await;
            }
        });
    }
    visitors.join_all().await;
}
