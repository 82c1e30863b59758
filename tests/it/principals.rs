//! How many sessions a principal may have, in every store.

use serde_json::json;

use crate::support::{Browser, Cloakroom, Page, RedisServer, Script, Upstream};

async fn log_in(browser: &Browser, name: &str) -> Page {
    browser.navigate("/", &Script::new().patch(&json!({"principal": name}))).await
}

async fn principal_of(browser: &Browser) -> Option<String> {
    browser.navigate("/", &Script::new()).await.saw("x-session-principal")
}

/// Five browsers, the first three of which are logged in as ada, one after the other; two may be.
struct World {
    _upstream: Upstream,
    _proxy: Cloakroom,
    browsers: Vec<Browser>,
}

impl World {
    async fn new(store: &str, at_max: &str) -> Self {
        let upstream = Upstream::start();
        let toml = format!(
            "[session]\nmax_per_principal = 3\nat_max_per_principal = \"{at_max}\"\n\
             [store]\nurl = \"{store}\"\nkey_prefix = \"{at_max}:\"\ntimeout = \"20s\"\n"
        );
        let proxy = Cloakroom::with(&upstream, &toml).await;
        let browsers: Vec<Browser> = (0..5).map(|_| Browser::new(&proxy)).collect();
        for browser in &browsers[..3] {
            assert_eq!(log_in(browser, "ada").await.last().status, 200);
            proxy.clock.advance(std::time::Duration::from_secs(1));
        }
        Self { _upstream: upstream, _proxy: proxy, browsers }
    }

    async fn logged_in(&self) -> Vec<bool> {
        let mut found = Vec::new();
        for browser in &self.browsers {
            found.push(principal_of(browser).await.as_deref() == Some("ada"));
        }
        found
    }
}

fn stores() -> Vec<String> {
    vec!["memory:".to_owned(), "sqlite:cap.db".to_owned(), RedisServer::shared().url()]
}

#[tokio::test]
async fn the_oldest_log_ins_give_way_to_the_newest() {
    for store in stores() {
        let world = World::new(&store, "evict_oldest").await;
        assert_eq!(log_in(&world.browsers[3], "ada").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
        // Again by one that is logged in: no session more, and nobody gives way.
        assert_eq!(log_in(&world.browsers[1], "ada").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
        assert_eq!(log_in(&world.browsers[4], "bob").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
    }
}

#[tokio::test]
async fn a_log_in_too_many_is_refused_and_changes_nothing() {
    for store in stores() {
        let world = World::new(&store, "reject").await;
        let begun = Script::new().call("PUT", "/values/cart", "1");
        world.browsers[3].navigate("/", &begun).await;
        let refused = log_in(&world.browsers[3], "ada").await;
        assert_eq!(refused.last().status, 409, "{store}");
        assert_eq!(refused.last().code(), "too_many_sessions");
        let cart = world.browsers[3].navigate("/", &Script::new().get("/values/cart")).await;
        assert_eq!(cart.json(), json!(1));
        assert_eq!(world.logged_in().await, [true, true, true, false, false], "{store}");
        assert_eq!(log_in(&world.browsers[1], "ada").await.last().status, 200);
        world.browsers[0].navigate("/", &Script::new().call("DELETE", "", "")).await;
        assert_eq!(log_in(&world.browsers[3], "ada").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
    }
}
