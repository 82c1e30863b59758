//! Rotation, login and destruction of sessions over HTTP, with a manual clock.

use std::time::Duration;

use cloakroom::metrics::Event;
use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const HOUR: Duration = Duration::from_hours(1);

struct World {
    upstream: Upstream,
    cloakroom: Cloakroom,
    browser: Browser,
}

impl World {
    /// Returns a browser that has a session.
    async fn new(toml: &str) -> Self {
        let upstream = Upstream::start();
        let cloakroom = Cloakroom::with(&upstream, toml).await;
        let browser = Browser::new(&cloakroom);
        browser.navigate("/", &Script::new().call("PUT", "/values/cart", "[1]")).await;
        Self { upstream, cloakroom, browser }
    }

    fn advance(&self, duration: Duration) {
        self.cloakroom.advance(duration);
    }
}

fn read() -> Script {
    Script::new().get("")
}

fn write() -> Script {
    Script::new().call("PUT", "/values/x", "1")
}

fn log_in(name: &str) -> Script {
    Script::new().patch(&json!({"principal": name}))
}

#[track_caller]
fn refused(page: &Page, code: &str) {
    assert_eq!((page.last().status, page.last().code().as_str()), (409, code));
    assert_eq!(page.set_cookies(), [""; 0]);
}

#[track_caller]
fn anonymous(page: &Page, error: Option<&str>) {
    assert_eq!(page.json()["id"], Value::Null);
    assert_eq!(page.saw("x-session-error").as_deref(), error);
    assert_eq!(page.saw("x-session-id"), None);
}

#[tokio::test]
async fn periodic_rotation_keeps_the_session() {
    let world = World::new("").await;
    world.advance(HOUR);
    let one = world.browser.send_without_keeping("GET", "/", &[], &read()).await;
    let other = world.browser.send_without_keeping("GET", "/", &[], &read()).await;
    assert_eq!(one.set_cookies(), other.set_cookies());
    assert_eq!(one.set_cookies().len(), 1);
    let old = world.browser.copy();
    world.browser.keep(&one);
    // The new token has arrived: the previous one is accepted during the grace period, without renewal.
    assert_eq!(world.browser.navigate("/", &read()).await.json()["values"], json!({"cart": [1]}));
    let page = old.navigate("/", &write()).await;
    assert_eq!((page.last().status, page.set_cookies()), (200, vec![]));
    world.advance(Duration::from_secs(181));
    anonymous(&old.fetch("/", &read()).await, None);
    assert_eq!(
        world.browser.navigate("/", &read()).await.json()["values"],
        json!({"cart": [1], "x": 1})
    );
}

#[tokio::test]
async fn a_304_does_not_renew_the_cookie() {
    let world = World::new("").await;
    world.advance(HOUR);
    assert_eq!(world.browser.navigate("/", &read().status(304)).await.set_cookies(), [""; 0]);
    assert_eq!(world.browser.navigate("/", &read()).await.set_cookies().len(), 1);
}

#[tokio::test]
async fn login_invalidates_earlier_tokens() {
    let world = World::new("").await;
    world.advance(HOUR);
    let pending = world.browser.send_without_keeping("GET", "/", &[], &read()).await;
    let old = world.browser.copy();
    let with_pending = world.browser.copy();
    with_pending.keep(&pending);
    let page = world.browser.navigate("/", &log_in("ada")).await;
    assert_eq!(
        (page.set_cookies().len(), page.json()["values"].clone()),
        (1, json!({"cart": [1]}))
    );
    for stale in [&old, &with_pending] {
        let page = stale.navigate("/", &read()).await;
        anonymous(&page, Some("session_rotated"));
        assert_eq!(page.set_cookies(), [""; 0]);
        refused(&stale.navigate("/", &write()).await, "session_rotated");
        refused(
            &stale.navigate("/", &Script::new().call("DELETE", "", "")).await,
            "session_rotated",
        );
    }
    assert_eq!(world.browser.navigate("/", &read()).await.json()["principal"], json!("ada"));
    // After the grace period it is not a parallel request but an old cookie: it identifies no session,
    // and a new one may be created.
    world.advance(Duration::from_secs(181));
    let page = old.fetch("/", &read()).await;
    anonymous(&page, None);
    assert_eq!(page.set_cookies(), [""; 0]);
    assert_eq!(old.navigate("/", &read()).await.set_cookies().len(), 1);
    assert_eq!(old.cookie(), None);
}

#[tokio::test]
async fn login_with_a_stale_token() {
    let world = World::new("").await;
    let (double_click, other) = (world.browser.copy(), world.browser.copy());
    let id = world.browser.navigate("/", &log_in("ada")).await.json()["id"].clone();
    let cookie = world.browser.cookie();
    // The same principal, a moment ago: it joins the session, and both get the same cookie.
    let page = double_click.navigate("/", &log_in("ada")).await;
    assert_eq!((page.json()["id"].clone(), double_click.cookie()), (id.clone(), cookie.clone()));
    // Another principal: it gets a session of its own.
    let page = other.navigate("/", &log_in("bob")).await;
    assert_ne!(page.json()["id"], id);
    assert_eq!(page.json()["values"], json!({}));
    // The same principal longer ago, with a token that another request has replaced: it rotates.
    world.advance(Duration::from_secs(200));
    let planted = world.browser.copy();
    world.browser.navigate("/", &Script::new().call("POST", "/rotate", "")).await;
    let page = planted.navigate("/", &log_in("ada")).await;
    assert_eq!(page.json()["id"], id);
    anonymous(&world.browser.navigate("/", &read()).await, Some("session_rotated"));
}

#[tokio::test]
async fn another_principal_gets_an_empty_session() {
    let world = World::new("").await;
    world.browser.navigate("/", &log_in("ada")).await;
    let page = world
        .browser
        .navigate("/", &Script::new().patch(&json!({"principal": "bob", "values": {"mine": 1}})))
        .await;
    assert_eq!(page.json()["values"], json!({"mine": 1}));
}

#[tokio::test]
async fn requests_in_flight_keep_their_generation() {
    let world = World::new("").await;
    let held = world.browser.copy();
    let in_flight =
        tokio::spawn(async move { held.navigate("/", &Script::new().wait("gate")).await });
    world.upstream.arrived("gate", 1).await;
    let token = world.upstream.seen().pop().unwrap();
    let header =
        |name: &str| token.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let (url, token) = (header("x-session-url"), header("x-session-token"));
    let call = async |method: &str, path: &str, body: &str| {
        let call = crate::support::Call {
            method: method.into(),
            path: path.into(),
            headers: vec![],
            body: body.into(),
        };
        crate::support::call(&url, &token, &call, &world.cloakroom.tasks).await
    };
    assert_eq!(call("GET", "", "").await.status, 200);
    world.browser.navigate("/", &log_in("ada")).await;
    for (method, path, body) in [("GET", "", ""), ("PUT", "/values/x", "1"), ("DELETE", "", "")] {
        assert_eq!(call(method, path, body).await.code(), "session_rotated", "{method}");
    }
    world.browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
    assert_eq!(call("PUT", "/values/x", "1").await.code(), "session_gone");
    assert_eq!(call("GET", "", "").await.code(), "session_gone");
    // Destroying a missing session changes nothing; a write after it creates a new one.
    assert_eq!(call("DELETE", "", "").await.status, 204);
    assert_eq!(call("PUT", "/values/x", "1").await.json()["new"], json!(true));
    world.upstream.open("gate");
    assert_eq!(in_flight.await.unwrap().set_cookies().len(), 1);
}

#[tokio::test]
async fn logout_leaves_a_marker_for_parallel_requests() {
    let world = World::new("").await;
    let parallel = world.browser.copy();
    let page = world.browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
    assert_eq!((page.last().status, world.browser.cookie()), (204, None));
    let page = parallel.navigate("/", &read()).await;
    anonymous(&page, Some("session_ended"));
    assert_eq!(page.set_cookies(), [""; 0]);
    refused(&parallel.navigate("/", &write()).await, "session_gone");
    let logged_in = parallel.copy();
    assert_eq!(logged_in.navigate("/", &log_in("ada")).await.json()["new"], json!(true));
    world.advance(Duration::from_secs(121));
    anonymous(&parallel.fetch("/", &read()).await, None);
    assert_eq!(parallel.navigate("/", &write()).await.last().status, 200);
}

#[tokio::test]
async fn destroyed_session_can_be_replaced_at_once() {
    let world = World::new("").await;
    let id = world.browser.navigate("/", &read()).await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(world.cloakroom.service("DELETE", &format!("/{id}"), "").await.status, 204);
    let page = world.browser.fetch("/", &read()).await;
    anonymous(&page, None);
    assert_eq!(page.set_cookies(), [""; 0]);
    let page = world.browser.navigate("/", &write()).await;
    assert_ne!(page.json()["id"], json!(id));
}

#[tokio::test]
async fn flush_then_set_creates_a_new_session() {
    let world = World::new("").await;
    let before = world.browser.navigate("/", &read()).await.json()["id"].clone();
    let script = Script::new()
        .call("DELETE", "", "")
        .call("PUT", "/values/a", "1")
        .call("PUT", "/values/b", "2")
        .get("");
    let page = world.browser.navigate("/", &script).await;
    assert_eq!(
        (page.set_cookies().len(), page.json()["values"].clone()),
        (1, json!({"a": 1, "b": 2}))
    );
    assert_ne!(page.json()["id"], before);
    assert_eq!(
        world.browser.navigate("/", &read()).await.json()["values"],
        json!({"a": 1, "b": 2})
    );
    // The same in one patch. If its condition fails, the old session is kept and no new one remains.
    let page = world
        .browser
        .navigate(
            "/",
            &Script::new().patch(&json!({"destroy": true, "if_version": 1, "values": {"c": 3}})),
        )
        .await;
    assert_eq!((page.last().code().as_str(), page.set_cookies().len()), ("version_moved", 0));
    let page = world
        .browser
        .navigate("/", &Script::new().patch(&json!({"destroy": true, "values": {"c": 3}})))
        .await;
    assert_eq!((page.set_cookies().len(), page.json()["values"].clone()), (1, json!({"c": 3})));
    assert_eq!(
        world.cloakroom.service("GET", "", "").await.json()["sessions"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn replay_can_destroy_the_session() {
    let world = World::new("[session]\non_replay = \"revoke\"\n").await;
    let stolen = world.browser.copy();
    world.advance(HOUR);
    assert_eq!(world.browser.navigate("/", &read()).await.set_cookies().len(), 1);
    world.browser.navigate("/", &read()).await;
    // The clock of the instance that rotated may be up to a minute behind.
    for late in [121, 59] {
        world.advance(Duration::from_secs(late));
        anonymous(&stolen.fetch("/", &read()).await, Some("session_rotated"));
        assert!(world.browser.fetch("/", &read()).await.json()["id"].is_string());
    }
    world.advance(Duration::from_secs(1));
    anonymous(&stolen.fetch("/", &read()).await, None);
    anonymous(&world.browser.fetch("/", &read()).await, None);
}

#[tokio::test]
async fn tokens_before_login_destroy_nothing() {
    let world = World::new("[session]\non_replay = \"revoke\"\n").await;
    for script in [log_in("ada"), Script::new().call("POST", "/rotate", "")] {
        let planted = world.browser.copy();
        world.browser.navigate("/", &script).await;
        world.advance(Duration::from_secs(181));
        for _ in 0..2 {
            anonymous(&planted.fetch("/", &read()).await, None);
            let page = world.browser.fetch("/", &read()).await;
            assert_eq!(page.json()["principal"], "ada");
        }
    }
    assert_eq!(world.cloakroom.metrics().event_count(Event::Replayed), 0);
}

#[tokio::test]
async fn key_rotation_keeps_sessions() {
    let upstream = Upstream::start();
    let keys = |keys: &str| format!("[session]\nkeys = [{keys}]\n[store]\nurl = \"sqlite:s.db\"\n");
    let (old, new) = (
        "\"b2xkIGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ\"",
        "\"bmV3IGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ\"",
    );
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_owned();
    let first = Cloakroom::with(
        &upstream,
        &keys(old).replace("s.db", state.join("s.db").to_str().unwrap()),
    )
    .await;
    let browser = Browser::new(&first);
    browser.navigate("/", &write()).await;
    let (clock, cookie) = (first.clock.clone(), browser.cookie());
    assert!(first.stop().await);
    let toml = keys(&format!("{new}, {old}")).replace("s.db", state.join("s.db").to_str().unwrap());
    let second = Cloakroom::at(&upstream, &toml, clock, tempfile::tempdir().unwrap()).await;
    let browser = Browser::new(&second);
    browser.set_cookie(cookie.as_deref());
    let page = browser.navigate("/", &read()).await;
    assert_eq!((page.json()["values"].clone(), page.set_cookies().len()), (json!({"x": 1}), 0));
    second.advance(Duration::from_secs(61));
    assert_eq!(browser.navigate("/", &read()).await.set_cookies().len(), 1);
    assert_ne!(browser.cookie(), cookie);
    assert_eq!(browser.navigate("/", &read()).await.json()["values"], json!({"x": 1}));
}
