//! The limit on sessions per principal, in every store.

use cloakroom::metrics::Event;
use cloakroom::session::id::Id;
use serde_json::json;

use crate::support::{Browser, Cloakroom, Page, RedisServer, Script, Upstream, needs};

async fn log_in(browser: &Browser, name: &str) -> Page {
    browser.navigate("/", &Script::new().patch(&json!({"principal": name}))).await
}

async fn principal_of(browser: &Browser) -> Option<String> {
    browser.navigate("/", &Script::new()).await.saw("x-session-principal")
}

/// Five browsers, of which the first three log in as ada in order; the limit is two.
struct World {
    _upstream: Upstream,
    proxy: Cloakroom,
    browsers: Vec<Browser>,
}

impl World {
    async fn new(store: &str, at_max: &str) -> Self {
        Self::apart(store, at_max, at_max).await
    }

    async fn apart(store: &str, at_max: &str, prefix: &str) -> Self {
        let upstream = Upstream::start();
        let toml = format!(
            "[session]\nmax_per_principal = 3\nat_max_per_principal = \"{at_max}\"\n\
             [store]\nurl = \"{store}\"\nkey_prefix = \"{prefix}:\"\ntimeout = \"20s\"\n"
        );
        let proxy = Cloakroom::with(&upstream, &toml).await;
        let browsers: Vec<Browser> = (0..5).map(|_| Browser::new(&proxy)).collect();
        for browser in &browsers[..3] {
            assert_eq!(log_in(browser, "ada").await.last().status, 200);
            proxy.clock.advance(std::time::Duration::from_secs(1));
        }
        Self { _upstream: upstream, proxy, browsers }
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
async fn newest_logins_evict_the_oldest() {
    needs!("redis-server");
    for store in stores() {
        let world = World::new(&store, "evict_oldest").await;
        assert_eq!(log_in(&world.browsers[3], "ada").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
        // Another login of the same session: no session is added, and none is evicted.
        assert_eq!(log_in(&world.browsers[1], "ada").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
        assert_eq!(log_in(&world.browsers[4], "bob").await.last().status, 200);
        assert_eq!(world.logged_in().await, [false, true, true, true, false], "{store}");
    }
}

#[tokio::test]
async fn excess_logins_are_rejected_without_changes() {
    needs!("redis-server");
    for store in stores() {
        let world = World::new(&store, "reject").await;
        let script = Script::new().call("PUT", "/values/cart", "1");
        world.browsers[3].navigate("/", &script).await;
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

/// HTTP strips whitespace around a field value, so the site would receive another name.
#[tokio::test]
async fn principals_with_outer_space_are_rejected() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let proxy = Cloakroom::with(&upstream, &format!("[store]\nurl = \"{}\"\n", server.url())).await;
    for name in ["admin ", " admin", "\tadmin", "admin\u{a0}", "\u{2003}admin", " "] {
        let browser = Browser::new(&proxy);
        let page = log_in(&browser, name).await;
        assert_eq!((page.last().status, &*page.last().code()), (422, "invalid_principal"));
        assert_eq!((principal_of(&browser).await, browser.cookie()), (None, None), "{name:?}");
    }
    for method in ["GET", "DELETE"] {
        for name in ["admin+", "%20admin", "%C2%A0admin"] {
            let called = proxy.service(method, &format!("?principal={name}"), "").await;
            assert_eq!((called.status, &*called.code()), (422, "invalid_principal"), "{name}");
        }
    }
    // Records of older releases are still read, and can be destroyed.
    let browser = Browser::new(&proxy);
    let id = log_in(&browser, "admin of old").await.json()["id"].as_str().unwrap().to_owned();
    server.command(&["HSET", &format!("cloakroom:s:{{{id}}}"), "p", "admin "]).done();
    let page = browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.json()["principal"], "admin ");
    let listed = proxy.service("GET", "", "").await.json();
    assert_eq!(listed["sessions"][0]["principal"], "admin ");
    assert_eq!(proxy.service("DELETE", &format!("/{id}"), "").await.status, 204);
    assert_eq!(principal_of(&browser).await, None);
}

/// Corrupts the record of a session.
fn spoil(store: &str, world: &World, id: &str) {
    let directory = world.proxy.directory();
    if store.starts_with("sqlite:") {
        let database = rusqlite::Connection::open(directory.join("cap.db")).unwrap();
        let id = Id::parse(id).unwrap();
        let sql = "UPDATE sessions SET expiry = 'soon' WHERE id = ?1";
        assert_eq!(database.execute(sql, [id.as_bytes()]).unwrap(), 1);
    } else if store.starts_with("file:") {
        std::fs::write(directory.join("cap").join(id), "spoilt").unwrap();
    } else {
        let key = format!("spoilt:s:{{{id}}}");
        RedisServer::shared().command(&["SET", &key, "spoilt"]);
    }
}

#[tokio::test]
async fn corrupt_records_do_not_break_principals() {
    needs!("redis-server");
    let stores = ["sqlite:cap.db".to_owned(), "file:cap".to_owned(), RedisServer::shared().url()];
    for store in stores {
        let world = World::apart(&store, "reject", "spoilt").await;
        let [first, second, _, fourth, _] = &world.browsers[..] else { panic!("five") };
        let id = first.navigate("/", &Script::new().get("")).await.json()["id"].clone();
        spoil(&store, &world, id.as_str().unwrap());
        let listed = world.proxy.service("GET", "?principal=ada", "").await;
        assert_eq!(listed.status, 200, "{store}: {}", listed.body);
        assert_eq!(listed.json()["sessions"].as_array().unwrap().len(), 2, "{store}");
        let (_, metrics) = world.proxy.admin_get("/metrics").await;
        assert!(metrics.contains("session_events_total{event=\"unreadable\"} 1"), "{metrics}");
        // It does not count for the limit, so another login succeeds.
        assert_eq!(log_in(fourth, "ada").await.last().status, 200, "{store}");
        let everywhere = Script::new().call("DELETE", "?everywhere=true", "");
        assert_eq!(second.navigate("/", &everywhere).await.last().status, 204, "{store}");
        assert_eq!(world.logged_in().await, [false; 5], "{store}");
        // The corrupt record is removed too: its id is unknown.
        let count = world.proxy.metrics().event_count(Event::Unreadable);
        let gone = world.proxy.service("GET", &format!("/{}", id.as_str().unwrap()), "").await;
        assert_eq!(gone.status, 404, "{store}");
        assert_eq!(world.proxy.metrics().event_count(Event::Unreadable), count, "{store}");
        assert_eq!(log_in(first, "ada").await.last().status, 200, "{store}");
    }
}

#[tokio::test]
async fn non_ascii_principals_reach_the_site() {
    let toml = "[[route]]\nupstream = \"UPSTREAM\"\nprincipal_header = \"X-Remote-User\"\n\
        [[route]]\npath = \"/raw\"\nupstream = \"UPSTREAM\"\n\
        principal_header = { name = \"X-Raw-User\", encoding = \"utf-8\" }\n";
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, toml).await;
    for (name, header) in [
        ("ada@example.org", "ada@example.org"),
        ("DOMAIN\\ada", "DOMAIN\\ada"),
        ("Zo\u{eb} 100%", "Zo%C3%AB%20100%25"),
        ("\u{738b}", "%E7%8E%8B"),
    ] {
        let browser = Browser::new(&proxy);
        log_in(&browser, name).await;
        let page = browser.navigate("/", &Script::new()).await;
        assert_eq!(page.saw("x-session-principal").as_deref(), Some(header));
        assert_eq!(page.saw("x-remote-user").as_deref(), Some(header));
        let page = browser.navigate("/raw", &Script::new()).await;
        assert_eq!(page.saw("x-session-principal").as_deref(), Some(header));
        assert_eq!(page.saw("x-raw-user").as_deref(), Some(name));
    }
}
