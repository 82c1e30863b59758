//! Unproven sessions, whose cookie was never presented: they expire early, are evicted first, and are
//! limited per address.

use std::time::Duration;

use cloakroom::metrics::Event;
use cloakroom::time::Clock;
use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Page, RedisServer, Script, Upstream, needs};

const DAY: Duration = Duration::from_hours(24);

fn write() -> Script {
    Script::new().call("PUT", "/values/x", "1")
}

fn log_in(name: &str) -> Script {
    Script::new().patch(&json!({"principal": name}))
}

fn read() -> Script {
    Script::new().get("")
}

/// Returns a `[store]` section per kind of store. `server` must outlive them.
fn stores(server: &RedisServer, prefix: &str) -> Vec<String> {
    let redis =
        format!("url = \"{}\"\nkey_prefix = \"{prefix}\"\ntimeout = \"20s\"\n", server.url());
    let cached = format!("{redis}cache = {{ max_bytes = \"1MiB\" }}\n").replace(prefix, "cached:");
    let embedded = ["memory:", "sqlite:s.db", "file:sessions"];
    let embedded = embedded.map(|url| format!("url = \"{url}\"\ntimeout = \"20s\"\n"));
    embedded.into_iter().chain([redis, cached]).collect()
}

async fn started(session: &str, store: &str) -> (Upstream, Cloakroom) {
    let upstream = Upstream::start();
    let toml = format!(
        "[session]\n{session}[store]\n{store}\
         [[route]]\nupstream = \"UPSTREAM\"\n\
         [[route]]\npath = \"/poll\"\nupstream = \"UPSTREAM\"\nsession = \"no-touch\"\n\
         [[route]]\npath = \"/exchange\"\nupstream = \"UPSTREAM\"\nheader_exchange = true\n"
    );
    let proxy = Cloakroom::with(&upstream, &toml).await;
    (upstream, proxy)
}

fn uses(proxy: &Cloakroom) -> u64 {
    proxy.metrics().store_calls("use")
}

#[tokio::test]
async fn unproven_session_expires_early() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    for store in stores(&server, "early:") {
        let (_upstream, proxy) = started(
            "unproven_timeout = \"1d\"\ntouch = \"write\"\nrotate_every = \"never\"\n",
            &store,
        )
        .await;
        let new = || Browser::new(&proxy);
        let (gone, used, polled, rotated, logged_in) = (new(), new(), new(), new(), new());
        for browser in [&gone, &used, &polled, &rotated] {
            let page = browser.navigate("/", &write().get("/expiry")).await;
            assert_eq!(page.json()["expires_in"], DAY.as_secs(), "{store}");
            assert!(page.set_cookies()[0].ends_with("Max-Age=1209600"), "{store}");
        }
        logged_in.navigate("/", &log_in("ada")).await;
        proxy.advance(Duration::from_hours(23));
        // The first request with the cookie proves the session, on each kind of route, also as
        // it sets another cookie; no other request writes anything.
        for _ in 0..2 {
            used.navigate("/", &Script::new()).await;
            polled.fetch("/poll", &Script::new()).await;
        }
        rotated.navigate("/", &Script::new().call("POST", "/rotate", "")).await;
        assert_eq!(uses(&proxy), 3, "{store}");
        proxy.advance(Duration::from_hours(2));
        assert_eq!(gone.navigate("/", &read()).await.json()["id"], Value::Null, "{store}");
        // That did not count as a use: each expires fourteen days after its last write.
        for (browser, hours) in [(&used, 25), (&polled, 25), (&rotated, 2)] {
            let page = browser.navigate("/", &read()).await;
            assert_eq!(page.json()["values"], json!({"x": 1}), "{store}");
            let left = Duration::from_hours(24 * 14 - hours);
            assert_eq!(page.json()["expires_in"], left.as_secs(), "{store}");
        }
        assert_eq!(logged_in.navigate("/", &read()).await.json()["principal"], "ada", "{store}");
        assert_eq!(uses(&proxy), 3, "{store}");
    }
}

#[tokio::test]
async fn first_return_and_due_touch_are_one_write() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    for store in stores(&server, "touch:") {
        let (_upstream, proxy) = started("unproven_timeout = \"1h\"\n", &store).await;
        let browser = Browser::new(&proxy);
        browser.navigate("/", &write()).await;
        proxy.advance(Duration::from_mins(30));
        browser.navigate("/", &Script::new()).await;
        assert_eq!(uses(&proxy), 1, "{store}");
        let page = browser.navigate("/", &read()).await;
        assert_eq!(page.json()["expires_in"], (DAY * 14).as_secs(), "{store}");
        assert_eq!(uses(&proxy), 1, "{store}");
    }
}

#[tokio::test]
async fn returns_are_written_only_if_needed() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    for store in stores(&server, "never:") {
        let (_upstream, proxy) = started("", &store).await;
        let browser = Browser::new(&proxy);
        browser.navigate("/", &write()).await;
        for _ in 0..3 {
            browser.navigate("/", &read()).await;
            browser.fetch("/poll", &read()).await;
        }
        // The memory store records it for the choice of evictions.
        assert_eq!(uses(&proxy), u64::from(store.contains("memory")), "{store}");
    }
    let script = "return redis.call('HKEYS', redis.call('KEYS', 'never:s:*')[1])";
    let fields = format!("{:?}", server.command(&["EVAL", script, "0"]));
    assert!(fields.contains("\"gs\"") && !fields.contains("\"q\""), "{fields}");
}

#[tokio::test]
async fn new_timeout_spares_existing_sessions() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    for store in stores(&server, "before:").into_iter().skip(1) {
        let clock = Clock::manual(Clock::System.now());
        let toml = format!("[store]\n{store}");
        let instance = async |session: &str, directory| {
            let toml = format!("[session]\n{session}{toml}");
            Cloakroom::at(&upstream, &toml, clock.clone(), directory).await
        };
        let place = tempfile::tempdir().unwrap();
        let at_place = || tempfile::TempDir::new_in(place.path()).unwrap();
        let store_is_shared = store.contains("redis");
        let mut before = instance("", at_place()).await;
        let browser = Browser::new(&before);
        browser.navigate("/", &write()).await;
        // By a reload, and for a shared store by another instance.
        let toml = format!("[session]\nunproven_timeout = \"1h\"\n{toml}");
        assert_eq!(before.reload(&upstream, &toml).unwrap(), [""; 0]);
        before.advance(DAY);
        assert_eq!(
            browser.navigate("/", &read()).await.json()["values"],
            json!({"x": 1}),
            "{store}"
        );
        if store_is_shared {
            let after = instance("unproven_timeout = \"1h\"\n", at_place()).await;
            let page = browser.at(after.public()).navigate("/", &read()).await;
            assert_eq!(page.json()["values"], json!({"x": 1}), "{store}");
        }
    }
}

/// Size of a value; few of them fill the store.
const LARGE: usize = 60 * 1024 * 1024;

#[tokio::test]
async fn unproven_sessions_do_not_fill_the_memory_store() {
    let store = "url = \"memory:\"\n";
    let (upstream, proxy) = started("max_bytes = \"64MiB\"\n", store).await;
    let (visitor, member) = (Browser::new(&proxy), Browser::new(&proxy));
    visitor.navigate("/", &write()).await;
    visitor.navigate("/", &Script::new()).await;
    member.navigate("/", &log_in("ada").call("PUT", "/values/x", "2")).await;
    let large = format!("\"{}\"", "x".repeat(LARGE));
    for number in 0..10 {
        let gate = format!("stranger {number}");
        let stranger = Browser::new(&proxy);
        let script = Script::new().wait(&gate);
        let page = tokio::spawn(async move { stranger.navigate("/", &script).await });
        upstream.arrived(&gate, 1).await;
        let seen = upstream.seen().pop().unwrap();
        let token = |name: &(String, String)| name.0 == "x-session-token";
        let token = seen.headers.into_iter().find(token).unwrap().1;
        let called =
            proxy.call_with(&token, ("PUT", "/values/x", &large), &[("prefer", "return=minimal")]);
        assert_eq!(called.await.status, 204, "{number}");
        upstream.open(&gate);
        page.await.unwrap();
    }
    assert!(proxy.metrics().event_count(Event::Evicted) > 0);
    let page = Browser::new(&proxy).navigate("/", &log_in("bob")).await;
    assert_eq!(page.last().status, 200);
    assert_eq!(visitor.navigate("/", &read()).await.json()["values"], json!({"x": 1}));
    assert_eq!(member.navigate("/", &read()).await.json()["values"], json!({"x": 2}));
}

const LIMITED: &str = "[limits]\nnew_sessions_per_address = 3\ntrusted_proxies = [\"127.0.0.1\"]\n\
     [session]\ncreate = \"navigation\"\n\
     [[route]]\nupstream = \"UPSTREAM\"\n\
     [[route]]\npath = \"/exchange\"\nupstream = \"UPSTREAM\"\nheader_exchange = true\n";

/// Sends the first request of a visitor at this address.
async fn first(proxy: &Cloakroom, from: &str, path: &str, script: &Script) -> Page {
    Browser::new(proxy).send("GET", path, &[("x-forwarded-for", from)], script).await
}

#[tokio::test]
async fn new_sessions_are_limited_per_address() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, LIMITED).await;
    for _ in 0..3 {
        assert_eq!(first(&proxy, "203.0.113.7", "/", &write()).await.last().status, 200);
    }
    proxy.advance(Duration::from_millis(9_500));
    let page = first(&proxy, "203.0.113.7", "/", &write().get("")).await;
    let refused = &page.calls()[0];
    assert_eq!((refused.status, refused.code().as_str()), (503, "too_many_new_sessions"));
    assert_eq!(refused.header("retry-after"), Some("51"));
    assert_eq!((page.json()["id"].clone(), page.set_cookies().len()), (Value::Null, 0));
    // Other addresses, log-ins and writes to existing sessions are not limited.
    assert_eq!(first(&proxy, "203.0.113.8", "/", &write()).await.last().status, 200);
    let browser = Browser::new(&proxy);
    let from = [("x-forwarded-for", "203.0.113.7")];
    let page = browser.send("GET", "/", &from, &log_in("ada")).await;
    assert_eq!((page.last().status, page.set_cookies().len()), (200, 1));
    // A session that replaces the client's own does not count.
    for script in [
        write(),
        Script::new().patch(&json!({"destroy": true, "values": {"y": 1}})),
        Script::new().call("DELETE", "", "").call("PUT", "/values/y", "1"),
    ] {
        let page = browser.send("GET", "/", &from, &script).await;
        assert_eq!(page.last().status, 200);
    }
    // The same by header exchange.
    let patch = Script::new().header("X-Session-Patch", "{\"values\": {\"x\": 1}}");
    let page = first(&proxy, "203.0.113.7", "/exchange", &patch).await;
    assert_eq!((page.status.as_u16(), page.header("retry-after")), (503, Some("51")));
    assert!(page.body.contains("too_many_new_sessions"), "{}", page.body);
    // A navigation that would only start a session is answered without one.
    let navigates = [("x-forwarded-for", "203.0.113.7"), ("sec-fetch-dest", "document")];
    let page = Browser::new(&proxy).send("GET", "/", &navigates, &Script::new()).await;
    assert_eq!((page.status.as_u16(), page.set_cookies().len()), (200, 0));
    assert_eq!(proxy.metrics().event_count(Event::TooManyNewSessions), 3);
    proxy.advance(Duration::from_secs(51));
    assert_eq!(first(&proxy, "203.0.113.7", "/", &write()).await.last().status, 200);
}

#[tokio::test]
async fn ipv6_networks_are_one_address_and_unknown_clients_are_exempt() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, LIMITED).await;
    for host in ["1", "2:3", "ffff:1:2:3"] {
        let from = format!(
            "2001:db8:0:1:{}",
            if host.contains("ffff") { host.to_owned() } else { format!(":{host}") }
        );
        assert_eq!(first(&proxy, &from, "/", &write()).await.last().status, 200, "{from}");
    }
    assert_eq!(first(&proxy, "2001:db8:0:1::9", "/", &write()).await.last().status, 503);
    assert_eq!(first(&proxy, "2001:db8:0:2::9", "/", &write()).await.last().status, 200);
    // Requests without a client address may come from many clients.
    for _ in 0..5 {
        let page = Browser::new(&proxy).send("GET", "/", &[], &write()).await;
        assert_eq!(page.last().status, 200);
    }
    // The header of an untrusted peer is ignored.
    let proxy = Cloakroom::with(&upstream, &LIMITED.replace("127.0.0.1", "10.0.0.1")).await;
    for number in 0..3 {
        let from = format!("203.0.113.{number}");
        assert_eq!(first(&proxy, &from, "/", &write()).await.last().status, 200);
    }
    assert_eq!(first(&proxy, "203.0.113.9", "/", &write()).await.last().status, 503);
}
