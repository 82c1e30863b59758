//! Sealed sessions: encrypted in the cookies of the clients, without a store.

use std::time::Duration;

use cloakroom::session::sealed::Sealed;
use cloakroom::time::Clock;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::raw::RawUpstream;
use crate::support::{API, ApiResponse, Browser, COOKIE, Cloakroom, KEY, Page, Script, Upstream};

const COOKIES: &str = "[store]\nurl = \"cookie:\"\naccept_no_revocation = true\n";
const OTHER_KEY: &str = "YW5vdGhlciBrZXkgZm9yIHRoZSBzYW1lIHRlc3RzLi4";

struct World {
    upstream: Upstream,
    proxy: Cloakroom,
    browser: Browser,
}

impl World {
    /// Returns a browser whose cookie carries a session.
    async fn new() -> Self {
        let world = Self::without_session("").await;
        let page = world.browser.navigate("/", &set("cart", "[1]")).await;
        assert_eq!((page.last().status, page.set_cookies().len()), (200, 1));
        world
    }

    async fn without_session(toml: &str) -> Self {
        let upstream = Upstream::start();
        let proxy = Cloakroom::with(&upstream, &format!("{COOKIES}{toml}")).await;
        let browser = Browser::new(&proxy);
        Self { upstream, proxy, browser }
    }

    /// Returns another instance, whose clock is ahead by this duration.
    async fn another(&self, toml: &str, ahead: Duration) -> Cloakroom {
        let clock = Clock::manual(self.proxy.now() + ahead);
        let directory = tempfile::tempdir().unwrap();
        Cloakroom::at(&self.upstream, &format!("{COOKIES}{toml}"), clock, directory).await
    }

    async fn values(&self) -> Value {
        self.browser.navigate("/", &read()).await.json()["values"].clone()
    }
}

fn read() -> Script {
    Script::new().get("")
}

fn set(key: &str, value: &str) -> Script {
    Script::new().call("PUT", &format!("/values/{key}"), value)
}

fn log_in(name: &str) -> Script {
    Script::new().patch(&json!({"principal": name}))
}

#[track_caller]
fn is_anonymous(page: &Page) {
    assert_eq!((page.json()["id"].clone(), page.saw("x-session-error")), (Value::Null, None));
}

#[track_caller]
fn is_refused(called: &ApiResponse, status: u16, code: &str) {
    assert_eq!((called.status, &*called.code()), (status, code), "{called:?}");
}

#[tokio::test]
async fn cookie_carries_the_session() {
    let world = World::new().await;
    let page = world.browser.navigate("/", &read()).await;
    assert_eq!((page.json()["values"].clone(), page.set_cookies()), (json!({"cart": [1]}), vec![]));
    assert_eq!(page.json()["id"], page.saw("x-session-id").unwrap());
    let cookie = world.browser.cookie().unwrap();
    assert!(!cookie.contains(&page.saw("x-session-id").unwrap()));
    // Another process opens the cookie.
    let restarted = world.another("", Duration::ZERO).await;
    let script = Script::new()
        .call("POST", "/values/cart/append", "2")
        .call("POST", "/values/n/increment", "")
        .call("DELETE", "/values/none?default=0", "")
        .get("");
    let page = world.browser.at(restarted.public()).navigate("/", &script).await;
    assert_eq!(page.json()["values"], json!({"cart": [1, 2], "n": 1}));
    assert_eq!(page.set_cookies().len(), 1);
    assert_eq!(world.values().await, json!({"cart": [1, 2], "n": 1}));
}

#[tokio::test]
async fn foreign_cookies_are_ignored_and_kept() {
    let world = World::new().await;
    let good = world.browser.cookie().unwrap();
    let other = format!("[session]\nkeys = [\"{OTHER_KEY}\"]");
    let other = world.another(&other, Duration::ZERO).await;
    let page = world.browser.at(other.public()).navigate("/", &read()).await;
    is_anonymous(&page);
    assert_eq!(page.set_cookies(), [""; 0]);
    let mut tampered = good.clone();
    tampered.replace_range(60..61, if good.as_bytes()[60] == b'A' { "B" } else { "A" });
    let mut cut = good.clone();
    cut.pop();
    for bad in ["", "x", &cut, &tampered, &"A".repeat(5000)] {
        world.browser.set_cookie(Some(bad));
        let page = world.browser.navigate("/", &read()).await;
        is_anonymous(&page);
        assert_eq!(page.set_cookies(), [""; 0], "{bad}");
    }
}

#[tokio::test]
async fn older_keys_open_and_are_replaced() {
    let world = World::new().await;
    let both = format!("[session]\nkeys = [\"{OTHER_KEY}\", \"{KEY}\"]");
    let both = world.another(&both, Duration::ZERO).await;
    let browser = world.browser.at(both.public());
    let page = browser.navigate("/", &read()).await;
    assert_eq!((page.json()["values"].clone(), page.set_cookies()), (json!({"cart": [1]}), vec![]));
    both.advance(Duration::from_mins(1));
    assert_eq!(browser.navigate("/", &read()).await.set_cookies().len(), 1);
    is_anonymous(&world.browser.navigate("/", &read()).await);
    let only = format!("[session]\nkeys = [\"{OTHER_KEY}\"]");
    let only = world.another(&only, Duration::from_mins(1)).await;
    let page = world.browser.at(only.public()).navigate("/", &read()).await;
    assert_eq!(page.json()["values"], json!({"cart": [1]}));
}

#[tokio::test]
async fn lifetime_slides_with_use() {
    let world = World::new().await;
    world.proxy.advance(Duration::from_secs(59));
    assert_eq!(world.browser.navigate("/", &read()).await.set_cookies(), [""; 0]);
    world.proxy.advance(Duration::from_secs(1));
    let unchanged = world.browser.navigate("/", &read().status(304)).await;
    assert_eq!(unchanged.set_cookies(), [""; 0]);
    let page = world.browser.navigate("/", &read()).await;
    assert!(page.set_cookies()[0].ends_with("; Max-Age=1209600"), "{:?}", page.set_cookies());
    let kept = world.browser.copy();
    world.proxy.advance(Duration::from_hours(14 * 24));
    let page = world.browser.navigate("/", &read()).await;
    assert_eq!(
        (page.json()["values"].clone(), page.set_cookies().len()),
        (json!({"cart": [1]}), 1)
    );
    // The session of the older cookie has expired. A navigation deletes the cookie, a fetch does not.
    world.proxy.advance(Duration::from_mins(1));
    let page = kept.fetch("/", &read()).await;
    is_anonymous(&page);
    assert_eq!(page.set_cookies(), [""; 0]);
    is_anonymous(&kept.navigate("/", &read()).await);
    assert_eq!(kept.cookie(), None);
}

#[tokio::test]
async fn tolerates_a_minute_of_clock_skew() {
    let world = World::new().await;
    let ahead = world.another("", Duration::from_secs(61)).await;
    let browser = world.browser.at(ahead.public());
    assert_eq!(browser.navigate("/", &set("n", "1")).await.set_cookies().len(), 1);
    let kept = world.browser.copy();
    is_anonymous(&world.browser.fetch("/", &read()).await);
    world.proxy.advance(Duration::from_secs(1));
    assert_eq!(kept.navigate("/", &read()).await.json()["values"], json!({"cart": [1], "n": 1}));
}

#[tokio::test]
async fn oversized_cookies_are_rejected_without_changes() {
    let world = World::new().await;
    let text = |length: usize| format!("\"{}\"", "x".repeat(length));
    let mut largest = 0;
    for length in (2000..4000).step_by(50) {
        let page = world.browser.navigate("/", &set("text", &text(length))).await;
        if page.last().status == 200 {
            largest = length;
            let cookie = world.browser.cookie().unwrap();
            assert!(COOKIE.len() + cookie.len() <= Sealed::MAX_COOKIE);
            continue;
        }
        is_refused(&page.last(), 413, "session_too_large");
        assert_eq!(page.set_cookies(), [""; 0]);
    }
    assert!(largest > 2700, "{largest}");
    assert_eq!(world.values().await, json!({"cart": [1], "text": "x".repeat(largest)}));
    let other = Browser::new(&world.proxy);
    let page = other.navigate("/", &set("text", &text(4000))).await;
    is_refused(&page.last(), 413, "session_too_large");
    assert_eq!(other.cookie(), None);
}

#[tokio::test]
async fn finished_requests_have_no_session() {
    let world = World::new().await;
    for script in [read(), set("n", "1"), Script::new()] {
        let page = world.browser.navigate("/", &script).await;
        let token = page.saw("x-session-token").unwrap();
        for called in [
            ("GET", "", ""),
            ("GET", "/values/cart", ""),
            ("PUT", "/values/late", "1"),
            ("POST", "/rotate", ""),
            ("DELETE", "", ""),
        ] {
            is_refused(&world.proxy.call(&token, called).await, 409, "response_committed");
        }
        world.proxy.advance(Duration::from_secs(62));
        is_refused(&world.proxy.call(&token, ("GET", "", "")).await, 410, "request_gone");
    }
    assert_eq!(world.values().await, json!({"cart": [1], "n": 1}));
}

#[tokio::test]
async fn writes_fail_after_the_response_head() {
    let raw = RawUpstream::start().await;
    let upstream = Upstream::start();
    let toml = format!("{COOKIES}[[route]]\nupstream = \"http://{}\"\n", raw.address);
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let browser = Browser::new(&proxy);
    let page = tokio::spawn({
        let browser = browser.clone();
        async move { browser.try_send("GET", "/", &[], &Script::new()).await.unwrap() }
    });
    let (mut connection, head) = raw.head().await;
    let token = head.lines().find_map(|line| line.strip_prefix("x-session-token: ")).unwrap();
    assert_eq!(proxy.call(token, ("PUT", "/values/n", "1")).await.status, 200);
    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{").await.unwrap();
    // Calls are accepted until the response head is sent.
    let late = loop {
        let called = proxy.call(token, ("PUT", "/values/n", "2")).await;
        if called.status != 200 {
            break called;
        }
    };
    is_refused(&late, 409, "response_committed");
    assert_eq!(proxy.call(token, ("DELETE", "", "")).await.code(), "response_committed");
    assert_eq!(proxy.call(token, ("GET", "/values/n", "")).await.status, 200);
    connection.write_all(b"}").await.unwrap();
    assert_eq!(page.await.unwrap().set_cookies().len(), 1);
    is_refused(&proxy.call(token, ("GET", "", "")).await, 409, "response_committed");
}

#[tokio::test]
async fn login_rotate_flush_and_logout() {
    let world = World::new().await;
    let before = world.browser.navigate("/", &read()).await.json();
    let copied = world.browser.copy();
    let page = world.browser.navigate("/", &log_in("ada")).await;
    assert_eq!(page.json()["id"], before["id"]);
    assert_eq!(page.set_cookies().len(), 1);
    let page = world.browser.navigate("/", &Script::new().call("POST", "/rotate", "")).await;
    assert_eq!(page.saw("x-session-principal").as_deref(), Some("ada"));
    assert_eq!(page.set_cookies().len(), 1);
    // A copy of the earlier cookie still opens its session: the price of having no store.
    assert_eq!(copied.navigate("/", &read()).await.json()["principal"], Value::Null);
    let flushed = Script::new().patch(&json!({"destroy": true, "values": {"x": 1}})).get("");
    let page = world.browser.navigate("/", &flushed).await;
    assert_ne!(page.json()["id"], before["id"]);
    assert_eq!((page.json()["values"].clone(), page.set_cookies().len()), (json!({"x": 1}), 1));
    let twice = Script::new().call("DELETE", "", "").call("PUT", "/values/y", "1").get("");
    let page = world.browser.navigate("/", &twice).await;
    assert_eq!(page.json()["values"], json!({"y": 1}));
    assert_eq!(world.values().await, json!({"y": 1}));
    let page = world.browser.navigate("/", &Script::new().call("DELETE", "", "").get("")).await;
    assert_eq!((page.calls()[0].status, page.json()["id"].clone()), (204, Value::Null));
    assert!(page.set_cookies()[0].ends_with("Max-Age=0"));
    assert_eq!(world.browser.cookie(), None);
}

#[tokio::test]
async fn lifetimes_and_versions_work_as_usual() {
    let world = World::new().await;
    let close = Script::new().call("PUT", "/expiry", "{\"browser_close\": true}");
    let page = world.browser.navigate("/", &close).await;
    assert!(!page.set_cookies()[0].contains("Max-Age"), "{:?}", page.set_cookies());
    let now = world.browser.navigate("/", &read()).await.json();
    assert_eq!(now["expires_at_browser_close"], json!(true));
    let version = now["version"].as_u64().unwrap();
    let moved = json!({"if_version": version + 1, "values": {"cart": null}});
    let page = world.browser.navigate("/", &Script::new().patch(&moved)).await;
    is_refused(&page.last(), 412, "version_moved");
    assert_eq!(page.set_cookies(), [""; 0]);
    let past = Script::new().call("PUT", "/expiry", "{\"at\": 1}");
    let page = world.browser.navigate("/", &past).await;
    assert_eq!((page.last().status, world.browser.cookie()), (200, None));
}

#[tokio::test]
async fn latest_cookie_of_one_session_wins() {
    let world = World::new().await;
    let first = world.browser.cookie().unwrap();
    world.browser.navigate("/", &set("n", "2")).await;
    let later = world.browser.cookie().unwrap();
    for both in [format!("{first}; {COOKIE}={later}"), format!("{later}; {COOKIE}={first}")] {
        world.browser.set_cookie(Some(&both));
        assert_eq!(world.values().await, json!({"cart": [1], "n": 2}));
    }
    let other = Browser::new(&world.proxy);
    other.navigate("/", &set("cart", "[2]")).await;
    world.browser.set_cookie(Some(&format!("{first}; {COOKIE}={}", other.cookie().unwrap())));
    let page = world.browser.navigate("/", &set("n", "3")).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("ambiguous_cookie"));
    is_refused(&page.last(), 409, "ambiguous_cookie");
    assert_eq!(page.set_cookies(), [""; 0]);
}

#[tokio::test]
async fn other_instances_forward_calls_to_the_owner() {
    let world = World::new().await;
    let other = world.another("", Duration::ZERO).await;
    let url = format!("http://{}/_session", other.api());
    let script = Script::new().get("/values/cart").call("PUT", "/values/n", "7").get("");
    let page = world.browser.send("GET", "/", &[(API, &*url)], &script).await;
    assert_eq!(page.json()["values"], json!({"cart": [1], "n": 7}));
    assert_eq!(world.values().await, json!({"cart": [1], "n": 7}));
    let token = page.saw("x-session-token").unwrap();
    is_refused(&other.call(&token, ("GET", "", "")).await, 409, "response_committed");
    assert!(world.proxy.stop().await);
    is_refused(&other.call(&token, ("GET", "", "")).await, 410, "request_gone");
}

#[tokio::test]
async fn calls_on_all_sessions_are_rejected() {
    let world = World::new().await;
    world.browser.navigate("/", &log_in("ada")).await;
    let script = Script::new()
        .get("/principal/sessions")
        .call("DELETE", "/principal/sessions", "")
        .call("DELETE", "/principal/sessions/AAAAAAAAAAAAAAAAAAAAAA", "")
        .call("DELETE", "?everywhere=true", "");
    let page = world.browser.navigate("/", &script).await;
    for called in page.calls() {
        is_refused(&called, 501, "not_supported");
    }
    assert_eq!(world.values().await, json!({"cart": [1]}));
    let listed = world.proxy.service("GET", "?principal=ada", "").await;
    assert_eq!(listed.status, 404);
}

#[tokio::test]
async fn header_exchange_works_without_the_api() {
    let route = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = true\n";
    let world = World::without_session(route).await;
    let patch = |patch: Value| Script::new().header("x-session-patch", patch);
    let page = world.browser.navigate("/", &patch(json!({"values": {"a": 1}}))).await;
    assert_eq!((page.status.as_u16(), page.set_cookies().len()), (200, 1));
    let page = world.browser.navigate("/", &patch(json!({"increment": {"a": 1}}))).await;
    assert_eq!(page.saw("x-session-data").as_deref(), Some("{\"a\":1}"));
    let page =
        world.browser.navigate("/", &patch(json!({"values": {"b": "x".repeat(4000)}}))).await;
    assert_eq!((page.status.as_u16(), page.set_cookies()), (502, vec![]));
    assert_eq!(world.values().await, json!({"a": 2}));
}

#[tokio::test]
async fn first_page_can_create_a_sealed_session() {
    let world = World::without_session("[session]\ncreate = \"navigation\"\n").await;
    let page = world.browser.navigate("/", &read()).await;
    assert_eq!(page.set_cookies().len(), 1);
    assert!(world.browser.navigate("/", &read()).await.json()["id"].is_string());
}
