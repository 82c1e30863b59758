//! Two instances with a shared store: changes are visible at once, and session API calls succeed at
//! either instance.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cloakroom::time::Clock;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::support::raw::RawUpstream;
use crate::support::{
    API, ApiResponse, Browser, Call, Cloakroom, Page, RedisServer, Script, Upstream, needs,
};

/// Two instances in front of one upstream, and a browser that uses both.
struct World {
    upstream: Upstream,
    prefix: String,
    a: Cloakroom,
    b: Cloakroom,
    browser: Browser,
}

impl World {
    async fn new() -> Self {
        Self::with("", "").await
    }

    /// Starts with additional configuration of `a`: for its API, and other.
    async fn with(api: &str, other: &str) -> Self {
        static WORLDS: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("two:{}:", WORLDS.fetch_add(1, Ordering::Relaxed));
        let upstream = Upstream::start();
        let clock = Clock::manual(Clock::System.now());
        let a = instance(&upstream, &prefix, &clock, api, other).await;
        let b = instance(&upstream, &prefix, &clock, "", other).await;
        let browser = Browser::new(&a);
        Self { upstream, prefix, a, b, browser }
    }

    async fn another(&self, api: &str) -> Cloakroom {
        instance(&self.upstream, &self.prefix, &self.a.clock, api, "").await
    }

    /// Requests a page from `a`, whose upstream calls `b`.
    async fn across(&self, script: &Script) -> Page {
        self.page(&self.a, &self.b, script).await
    }

    async fn page(&self, forwards: &Cloakroom, serves: &Cloakroom, script: &Script) -> Page {
        let headers = [(API, &*url(serves.api()))];
        self.browser.at(forwards.public()).send("GET", "/", &headers, script).await
    }

    /// Returns the values of the browser's next page at `b`.
    async fn values(&self) -> Value {
        let page = self.page(&self.b, &self.b, &Script::new().get("/values")).await;
        page.json()
    }

    /// Returns the request token of a page whose upstream has not responded yet.
    async fn held(&self, gate: &'static str) -> (String, tokio::task::JoinHandle<Option<Page>>) {
        self.upstream.take_seen();
        let (browser, script) = (self.browser.clone(), Script::new().wait(gate));
        let page =
            tokio::spawn(async move { browser.try_send("GET", "/", &[], &script).await.ok() });
        self.upstream.arrived(gate, 1).await;
        let headers = self.upstream.seen().pop().unwrap().headers;
        let token = headers
            .into_iter()
            .find_map(|(name, value)| (name == "x-session-token").then_some(value));
        (token.unwrap(), page)
    }
}

async fn instance(
    upstream: &Upstream,
    prefix: &str,
    clock: &Clock,
    api: &str,
    other: &str,
) -> Cloakroom {
    let address = if api.contains("address") { "" } else { "address = \"127.0.0.1:0\"\n" };
    let toml = format!(
        "[api]\n{address}{api}\n[store]\nurl = \"{}\"\nkey_prefix = \"{prefix}\"\n\
         timeout = \"20s\"\n{other}",
        RedisServer::shared().url()
    );
    Cloakroom::at(upstream, &toml, clock.clone(), tempfile::tempdir().unwrap()).await
}

fn url(api: SocketAddr) -> String {
    format!("http://{api}/_session")
}

/// Returns the number of session API calls that an instance has handled.
async fn calls_of(instance: &Cloakroom) -> usize {
    let (_, metrics) = instance.admin_get("/metrics").await;
    let counts = metrics.lines().filter(|line| line.starts_with("cloakroom_api_requests_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[track_caller]
fn is(called: &ApiResponse, status: u16, code: &str) {
    assert_eq!((called.status, &*called.code()), (status, code), "{called:?}");
}

fn write(key: &str) -> Script {
    Script::new().call("PUT", &format!("/values/{key}"), "1")
}

/// The calls that concern the cookie.
const COOKIE_CALLS: [(&str, &str, &str); 8] = [
    ("POST", "/rotate", ""),
    ("PATCH", "", r#"{"principal": "alice"}"#),
    ("PATCH", "", r#"{"values": {"x": 2}, "rotate": true}"#),
    ("PUT", "/expiry", r#"{"idle": 3600}"#),
    ("PATCH", "", r#"{"destroy": true, "values": {"x": 2}}"#),
    ("DELETE", "?everywhere=true", ""),
    ("DELETE", "/principal/sessions", ""),
    ("DELETE", "", ""),
];

#[tokio::test]
async fn changes_are_visible_at_once() {
    needs!("redis-server");
    let world = World::new().await;
    let (a, b) = (&world.a, &world.b);
    world.page(a, a, &write("x")).await;
    assert_eq!(world.values().await, json!({"x": 1}));
    world.page(b, b, &write("y")).await;
    let read = Script::new().get("");
    assert_eq!(world.page(a, a, &read).await.json()["values"], json!({"x": 1, "y": 1}));
    let old = world.browser.copy();
    world.page(a, a, &Script::new().call("POST", "/rotate", "")).await;
    let stale = old.at(b.public()).send("GET", "/", &[], &read).await;
    assert_eq!(stale.saw("x-session-error").as_deref(), Some("session_rotated"));
    assert_eq!(world.values().await, json!({"x": 1, "y": 1}));
    let kept = world.browser.copy();
    world.page(b, b, &Script::new().call("DELETE", "", "")).await;
    let ended = kept.at(a.public()).send("GET", "/", &[], &read).await;
    assert_eq!(ended.saw("x-session-error").as_deref(), Some("session_ended"));
}

#[tokio::test]
async fn value_calls_need_no_owner() {
    needs!("redis-server");
    let world = World::with("", "[session]\ntouch = \"write\"\n").await;
    world.page(&world.a, &world.a, &write("x")).await;
    let asked = calls_of(&world.a).await;
    let page = world
        .across(
            &Script::new()
                .get("")
                .call("PUT", "/values/y", "[1]")
                .call("POST", "/values/y/append", "2")
                .call("POST", "/values/n/increment", "")
                .call("DELETE", "/values/x", "")
                .get("/values/y")
                .call("HEAD", "/values/y", "")
                .patch(&json!({"default": {"z": 0}, "increment": {"n": 2}}))
                .call_with("PATCH", "", &[("if-match", "\"1\"")], "{\"values\": {\"z\": 1}}")
                .call_with("PUT", "/values/y", &[("if-none-match", "*")], "1")
                .call_with("PUT", "/values/m", &[("prefer", "return=minimal")], "1")
                .get("/values/none")
                .get("/expiry")
                .call("PUT", "/test-cookie", "")
                .get("/test-cookie")
                .call("PATCH", "", "{\"increment\": {\"y\": 1}}")
                .call("PATCH", "", "{")
                .call("PUT", "/values", "{\"only\": 1}")
                .get("/values"),
        )
        .await;
    let answered: Vec<u16> = page.calls().iter().map(|called| called.status).collect();
    assert_eq!(
        answered,
        [
            200, 200, 200, 200, 200, 200, 200, 200, 412, 412, 204, 404, 200, 204, 200, 422, 400,
            200, 200
        ]
    );
    assert_eq!(page.json(), json!({"only": 1}));
    assert_eq!(page.calls()[0].json()["values"], json!({"x": 1}));
    assert_eq!(page.calls()[5].json(), json!([1, 2]));
    assert_eq!(page.calls()[7].json()["values"], json!({"y": [1, 2], "n": 3, "z": 0}));
    assert_eq!(page.calls()[14].json(), json!({"worked": true}));
    assert_eq!(page.set_cookies(), [""; 0]);
    assert_eq!(calls_of(&world.a).await, asked, "the other instance was not asked");
    // A write through another instance extends the session too.
    let expiry = async |script: Script| world.across(&script.get("/expiry")).await.json();
    let before = expiry(Script::new()).await;
    world.a.advance(Duration::from_hours(1));
    assert_eq!(expiry(Script::new()).await["expires_at"], before["expires_at"]);
    assert_ne!(expiry(write("x")).await["expires_at"], before["expires_at"]);
}

#[tokio::test]
async fn calls_for_cookies_reach_the_owner() {
    needs!("redis-server");
    let world = World::new().await;
    let made = world.across(&Script::new().get("").patch(&json!({"values": {"x": 1}}))).await;
    assert_eq!(made.calls()[0].json()["id"], Value::Null);
    assert_eq!((made.last().status, made.set_cookies().len()), (200, 1), "{:?}", made.last());
    assert!(made.last().header("etag").is_some());
    assert_eq!(made.json()["new"], true);
    assert_eq!(world.values().await, json!({"x": 1}));
    for (method, path, body) in COOKIE_CALLS.into_iter().take(4) {
        let before = world.browser.cookie();
        let script = Script::new().call(method, path, body).get("/values").call(
            "POST",
            "/values/n/increment",
            "",
        );
        let page = world.across(&script).await;
        let answered: Vec<u16> = page.calls().iter().map(|called| called.status).collect();
        assert_eq!(answered, [200, 200, 200], "{method} {path} {body}");
        assert_eq!(page.set_cookies().len(), 1, "{method} {path} {body}");
        assert_eq!(world.browser.cookie() == before, path == "/expiry", "{method} {path} {body}");
    }
    assert_eq!(world.values().await, json!({"x": 2, "n": 4}));
    let list = world.across(&Script::new().get("/principal/sessions")).await.json();
    assert_eq!(list["sessions"][0]["current"], true);
    // Conditions and preferences are forwarded.
    let (other, minimal) = (("if-match", "\"0\""), ("prefer", "return=minimal"));
    let rotate = Script::new().call_with("POST", "/rotate", &[other], "").call_with(
        "POST",
        "/rotate",
        &[minimal],
        "",
    );
    let page = world.across(&rotate).await;
    is(&page.calls()[0], 412, "version_moved");
    assert_eq!(
        (page.last().status, page.last().header("preference-applied")),
        (204, Some("return=minimal"))
    );
    // Flush, then set: in one call, and in two.
    let id = made.json()["id"].clone();
    let flushed = world.across(&Script::new().call("PATCH", "", COOKIE_CALLS[4].2)).await;
    assert_ne!(flushed.json()["id"], id);
    let two = Script::new().call("DELETE", "", "").call("PUT", "/values/y", "1").get("");
    let flushed = world.across(&two).await;
    assert_eq!(
        (flushed.json()["values"].clone(), flushed.set_cookies().len()),
        (json!({"y": 1}), 1)
    );
    assert_eq!(world.values().await, json!({"y": 1}));
    let ended = world.across(&Script::new().call("DELETE", "", "").get("")).await;
    assert_eq!((ended.calls()[0].status, ended.json()["id"].clone()), (204, Value::Null));
    assert_eq!((ended.set_cookies().len(), world.browser.cookie()), (1, None));
}

#[tokio::test]
async fn login_with_a_stale_token_succeeds_anywhere() {
    needs!("redis-server");
    let world = World::new().await;
    world.page(&world.a, &world.a, &write("x")).await;
    let old = world.browser.copy();
    world.page(&world.b, &world.b, &Script::new().call("POST", "/rotate", "")).await;
    let api = url(world.b.api());
    let script = Script::new().patch(&json!({"principal": "alice"})).get("").get("/values");
    let page = old.send("GET", "/", &[(API, &*api)], &script).await;
    assert_eq!(page.saw("x-session-error").as_deref(), Some("session_rotated"));
    assert_eq!(page.calls()[1].json()["principal"], "alice", "{:?}", page.calls());
    assert_eq!((page.json(), page.set_cookies().len()), (json!({}), 1));
}

#[tokio::test]
async fn session_conflicts_are_reported_anywhere() {
    needs!("redis-server");
    let world = World::new().await;
    world.page(&world.a, &world.a, &write("x")).await;
    for (method, path, gate, code) in
        [("POST", "/rotate", "rotated", "session_rotated"), ("DELETE", "", "ended", "session_gone")]
    {
        let (token, page) = world.held(gate).await;
        world.page(&world.b, &world.a, &Script::new().call(method, path, "")).await;
        for instance in [&world.a, &world.b] {
            for called in
                [("GET", "/values", ""), ("GET", "/expiry", ""), ("PUT", "/values/x", "2")]
            {
                is(&instance.call(&token, called).await, 409, code);
            }
        }
        world.upstream.open(gate);
        assert_eq!(page.await.unwrap().unwrap().set_cookies(), [""; 0]);
    }
}

#[tokio::test]
async fn no_increment_is_lost() {
    needs!("redis-server");
    let world = World::new().await;
    world.page(&world.a, &world.a, &Script::new().call("PUT", "/values/n", "0")).await;
    let script = Script::new().call("POST", "/values/n/increment", "").call(
        "POST",
        "/values/n/increment",
        "",
    );
    for _ in 0..10 {
        let pages = (0..50).map(|index| {
            let (forwards, serves) =
                if index % 2 == 0 { (&world.a, &world.b) } else { (&world.b, &world.a) };
            let serves = if index % 3 == 0 { forwards } else { serves };
            let (browser, api) = (world.browser.at(forwards.public()), url(serves.api()));
            let script = script.clone();
            tokio::spawn(async move { browser.send("GET", "/", &[(API, &*api)], &script).await })
        });
        for page in pages.collect::<Vec<_>>() {
            let page = page.await.unwrap();
            assert!(page.calls().iter().all(|called| called.status == 200), "{:?}", page.calls());
        }
    }
    assert_eq!(world.values().await, json!({"n": 1000}));
}

#[tokio::test]
async fn owner_knows_next_id_and_policy() {
    needs!("redis-server");
    let route = "[[route]]\nupstream = \"UPSTREAM\"\nheader_exchange = \"partial\"\n";
    let world = World::with("", route).await;
    let script = Script::new().get("").get("/policy");
    let newcomer = world.across(&script).await;
    let next_id = newcomer.saw("x-session-next-id").unwrap();
    assert_eq!(newcomer.calls()[0].json()["next_id"], json!(next_id));
    assert_eq!(newcomer.json()["header_exchange"], json!("partial"));
    world.across(&write("x")).await;
    let page = world.across(&script).await;
    assert_eq!(page.calls()[0].json()["next_id"], Value::Null);
    assert_eq!(page.json()["header_exchange"], json!("partial"));
}

#[tokio::test]
async fn owner_knows_requests_with_expired_tokens() {
    needs!("redis-server");
    let world = World::new().await;
    world.page(&world.a, &world.a, &write("x")).await;
    let (token, page) = world.held("long").await;
    world.a.advance(Duration::from_mins(10));
    let (a, b) = (&world.a, &world.b);
    assert_eq!(b.call(&token, ("PUT", "/values/y", "1")).await.status, 200);
    assert_eq!(b.call(&token, ("POST", "/rotate", "")).await.status, 200);
    world.upstream.open("long");
    assert_eq!(page.await.unwrap().unwrap().set_cookies().len(), 1);
    for instance in [a, b] {
        assert_eq!(instance.call(&token, ("PUT", "/values/z", "1")).await.status, 200);
        is(&instance.call(&token, ("POST", "/rotate", "")).await, 409, "response_committed");
    }
    world.a.advance(Duration::from_secs(61));
    for instance in [a, b] {
        is(&instance.call(&token, ("GET", "/values", "")).await, 410, "request_gone");
    }
}

#[tokio::test]
async fn value_calls_work_without_the_owner() {
    needs!("redis-server");
    let world = World::with("", "[limits]\ndrain_timeout = \"0s\"\n").await;
    let visitor = world.browser.copy();
    let made =
        world.page(&world.a, &world.a, &Script::new().call("PUT", "/values/x", "1").get("")).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let (token, page) = world.held("gone").await;
    let newcomer = Script::new().wait("gone");
    let visit =
        tokio::spawn(async move { visitor.try_send("GET", "/", &[], &newcomer).await.ok() });
    world.upstream.arrived("gone", 2).await;
    let newcomer = world.upstream.seen().pop().unwrap().headers;
    let newcomer = newcomer.into_iter().find(|(name, _)| name == "x-session-token").unwrap().1;
    let World { upstream, a, b, .. } = world;
    let address = a.api();
    a.stop().await;
    drop((page.await, visit.await));
    assert_eq!(b.call(&token, ("PUT", "/values/late", "1")).await.status, 200);
    let stored = async || b.service("GET", &format!("/{id}"), "").await.json();
    let before = stored().await;
    assert_eq!(before["values"], json!({"x": 1, "late": 1}));
    let all_are_refused = async |instance: &Cloakroom| {
        for cookie_call in COOKIE_CALLS {
            is(&instance.call(&token, cookie_call).await, 410, "request_gone");
            is(&instance.call(&newcomer, cookie_call).await, 410, "request_gone");
        }
        is(&instance.call(&newcomer, ("PUT", "/values/x", "1")).await, 410, "request_gone");
        is(&instance.call(&newcomer, ("GET", "", "")).await, 410, "request_gone");
        assert_eq!(instance.call(&token, ("GET", "/values", "")).await.status, 200);
        assert_eq!(stored().await, before);
    };
    all_are_refused(&b).await;
    assert_eq!(b.service("GET", "", "").await.json()["sessions"].as_array().unwrap().len(), 1);
    // After a restart at the same address, it does not know its earlier requests.
    let api = format!("address = \"{address}\"");
    let restarted = instance(&upstream, &world.prefix, &b.clock, &api, "").await;
    all_are_refused(&b).await;
    all_are_refused(&restarted).await;
    b.advance(Duration::from_secs(62));
    is(&b.call(&token, ("GET", "/values", "")).await, 410, "request_gone");
}

#[tokio::test]
async fn tokens_before_a_restart_serve_values_only() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("sessions.db");
    let toml = format!("[store]\nurl = \"sqlite:{}\"\n", store.display());
    let before = Cloakroom::with(&upstream, &toml).await;
    let page = Browser::new(&before).navigate("/", &write("x")).await;
    let (token, id) = (page.saw("x-session-token").unwrap(), page.json()["id"].clone());
    before.stop().await;
    let restarted = Cloakroom::with(&upstream, &toml).await;
    assert_eq!(restarted.call(&token, ("GET", "", "")).await.status, 410, "the table starts empty");
    let browser = Browser::new(&restarted);
    browser.set_cookie(page.set_cookies()[0].split(['=', ';']).nth(1));
    let token = browser.navigate("/", &Script::new()).await.saw("x-session-token").unwrap();
    restarted.stop().await;
    let restarted = Cloakroom::with(&upstream, &toml).await;
    let read = restarted.call(&token, ("GET", "", "")).await;
    assert_eq!((read.status, read.json()["id"].clone()), (200, id));
    assert_eq!(restarted.call(&token, ("PUT", "/values/y", "1")).await.status, 200);
    for cookie_call in COOKIE_CALLS {
        is(&restarted.call(&token, cookie_call).await, 410, "request_gone");
    }
    restarted.advance(Duration::from_secs(62));
    is(&restarted.call(&token, ("GET", "", "")).await, 410, "request_gone");
}

#[tokio::test]
async fn only_instances_may_forward_calls() {
    needs!("redis-server");
    let world = World::new().await;
    world.page(&world.a, &world.a, &write("x")).await;
    let (token, page) = world.held("forged").await;
    let rotate = ("POST", "/rotate", "");
    for instance in [&world.a, &world.b] {
        for forged in ["", "x", &"A".repeat(32)] {
            let headers = [("x-session-peer", forged)];
            is(&instance.call_with(&token, rotate, &headers).await, 401, "peer_unknown");
        }
        let twice = [("x-session-peer", "a"), ("x-session-peer", "b")];
        is(&instance.call_with(&token, rotate, &twice).await, 401, "peer_unknown");
    }
    world.upstream.open("forged");
    assert_eq!(page.await.unwrap().unwrap().set_cookies(), [""; 0]);
}

#[tokio::test]
async fn calls_are_forwarded_once() {
    needs!("redis-server");
    let world = World::new().await;
    // The address in their tokens is that of the other, as with the address of a load balancer.
    let c = world.another(&format!("instance_url = \"http://{}\"", world.b.api())).await;
    let lost = world.another(&format!("instance_url = \"http://{}\"", c.api())).await;
    let rotate = Script::new().call("POST", "/rotate", "");
    world.page(&world.a, &world.a, &write("x")).await;
    let before = (calls_of(&world.b).await, calls_of(&c).await);
    is(&world.page(&lost, &world.b, &rotate).await.last(), 410, "request_gone");
    assert_eq!((calls_of(&world.b).await, calls_of(&c).await), (before.0 + 1, before.1 + 1));
    is(&world.page(&lost, &c, &rotate).await.last(), 410, "request_gone");
    assert_eq!((calls_of(&world.b).await, calls_of(&c).await), (before.0 + 1, before.1 + 3));
}

#[tokio::test]
async fn only_the_owner_may_respond() {
    needs!("redis-server");
    let raw = RawUpstream::start().await;
    let world = World::with(&format!("instance_url = \"http://{}\"", raw.address), "").await;
    world.page(&world.a, &world.a, &write("x")).await;
    let (token, page) = world.held("owner").await;
    let all = ("GET", "/principal/sessions", "");
    let json = "{\"sessions\": []}";
    let fine = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    let failed = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n".to_owned();
    for (called, answer, expected) in [
        (("POST", "/rotate", ""), "", (504, "outcome_unknown")),
        (all, "", (410, "request_gone")),
        (("POST", "/rotate", ""), &fine, (410, "request_gone")),
        (all, &fine, (410, "request_gone")),
        (("POST", "/rotate", ""), &failed, (504, "outcome_unknown")),
        (all, &failed, (410, "request_gone")),
    ] {
        let answers = async {
            let (mut connection, head) = raw.head().await;
            assert!(head.contains("x-session-peer: "), "{head}");
            connection.write_all(answer.as_bytes()).await.unwrap();
        };
        let (called, ()) = tokio::join!(world.b.call(&token, called), answers);
        is(&called, expected.0, expected.1);
    }
    world.upstream.open("owner");
    assert_eq!(page.await.unwrap().unwrap().set_cookies(), [""; 0]);
}
