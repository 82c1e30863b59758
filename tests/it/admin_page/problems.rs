//! Known problems: each is shown while its fault lasts.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::listeners::configuration;
use super::{Operator, visit};
use crate::support::{
    Authority, Browser, Cloakroom, Flaw, Instance, PATIENCE, Program, RedisServer, Script,
    Upstream, needs,
};

/// Another key than that of the kit.
const OTHER_KEY: &str = "bmV3IGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ";

const KEY_FINGERPRINT: &str = "6e615dab19860092";
const OTHER_FINGERPRINT: &str = "c5f0b8b99e0612aa";

/// Returns the problem with a code, if it is shown.
pub(super) async fn find(operator: &Operator, code: &str) -> Option<Value> {
    let now = operator.json("/").await;
    let problems = now["problems"].as_array().unwrap();
    problems.iter().find(|problem| problem["problem"] == code).cloned()
}

/// Waits until a problem is shown, and returns its detail and the time since which it lasts.
pub(super) async fn shown(operator: &Operator, code: &str) -> (String, Option<String>) {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if let Some(problem) = find(operator, code).await {
            let page = operator.get("/").await;
            let problems = page.body.split("id=problems").nth(1).unwrap();
            let problems = problems.split("</section>").next().unwrap();
            // While a fault begins, reads may fail at one moment and succeed at the next.
            if !problems.contains(&code.replace('_', " ")) {
                continue;
            }
            let text = |name: &str| problem[name].as_str().map(str::to_owned);
            return (text("detail").unwrap(), text("since"));
        }
    }
    panic!("{code} is not shown: {}", operator.json("/").await["problems"]);
}

/// Waits until a problem is shown with this in its detail, which it returns.
pub(super) async fn shown_with(operator: &Operator, code: &str, words: &str) -> String {
    let since = Instant::now();
    loop {
        let (detail, _) = shown(operator, code).await;
        if detail.contains(words) {
            return detail;
        }
        assert!(since.elapsed() < PATIENCE, "{words} is not in {detail}");
    }
}

/// Waits until a problem is not shown any more.
async fn gone(operator: &Operator, code: &str) {
    let since = Instant::now();
    while find(operator, code).await.is_some() {
        assert!(since.elapsed() < PATIENCE, "{code} is still shown");
    }
}

fn store(server: &RedisServer) -> String {
    format!("[store]\nurl = \"{}\"\ntimeout = \"200ms\"\n", server.url())
}

#[tokio::test]
async fn redis_that_does_not_reply_is_shown() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &store(&server)).await;
    let operator = Operator::to(cloakroom.admin());
    let (browser, _) = visit(&cloakroom, None).await;
    assert_eq!(find(&operator, "store_unreadable").await, None);
    server.stop();
    browser.navigate("/", &Script::new()).await;
    let (detail, since) = shown(&operator, "store_unreadable").await;
    let silent = format!("Redis server {} did not reply within ", server.address());
    // It may have been connecting at that moment.
    let address = server.address().to_string();
    assert!(detail.contains(&address) && detail.contains(" within 200 ms; "), "{detail}");
    assert!(since.is_some());
    assert_eq!(operator.json("/").await["store"]["read"], false);
    // The connections that were open before are replaced by then, in vain.
    shown_with(&operator, "store_unreadable", &format!("{silent}1000 ms")).await;
    // One problem for one cause, whichever limit was exceeded last; it began with the first failure.
    let both = "the session store (Redis) can be neither read nor written";
    shown_with(&operator, "store_unreadable", both).await;
    gone(&operator, "store_refuses_writes").await;
    assert!(shown(&operator, "store_unreadable").await.1 <= since);
    server.cont();
    gone(&operator, "store_unreadable").await;
    gone(&operator, "store_refuses_writes").await;
}

/// Without a request since then.
#[tokio::test]
async fn redis_that_is_down_is_shown_without_requests() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &store(&server)).await;
    server.kill();
    let refused = format!("Redis is unreachable ({}): Connection refused", server.address());
    shown_with(&Operator::to(cloakroom.admin()), "store_unreadable", &refused).await;
}

/// The log knows of it before the page finds out.
#[tokio::test]
async fn failure_of_the_store_dates_from_the_log() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let instance = Instance::start(&upstream, &format!("url = \"{}\"\n", server.url())).await;
    let change = Script::new().call("PUT", "/values/n", "1");
    assert_eq!(instance.browser().navigate("/", &change).await.status, 200);
    server.kill();
    instance.program.wait_for_log("Redis unreachable").await;
    let operator = Operator::to(instance.serving.admin);
    let logged = operator.json("/").await["at"].as_str().unwrap().to_owned();
    let both = "can be neither read nor written";
    shown_with(&operator, "store_unreadable", both).await;
    let (_, since) = shown(&operator, "store_unreadable").await;
    assert!(since.as_ref().is_some_and(|since| *since <= logged), "{since:?} {logged}");
}

#[tokio::test]
async fn clock_is_shown_if_it_was_compared() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    for (store, row) in [
        (store(&server), " that of Redis ("),
        ("[store]\nurl = \"memory:\"\n".to_owned(), "not compared"),
    ] {
        let cloakroom = Cloakroom::with(&upstream, &store).await;
        let operator = Operator::to(cloakroom.admin());
        let clock = &operator.json("/").await["clock"];
        let is_compared = store.contains("redis://");
        assert_eq!(clock["offset_seconds"].is_number(), is_compared, "{clock}");
        assert_eq!(clock["age_seconds"].is_number(), is_compared, "{clock}");
        let page = operator.get("/").await.body;
        let shown = page.split("<dt>Clock</dt><dd id=clock>").nth(1).unwrap();
        assert!(shown.split("</dd>").next().unwrap().contains(row), "{page}");
    }
}

#[tokio::test]
async fn redis_that_becomes_a_replica_is_named() {
    needs!("redis-server");
    let (primary, server) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &store(&server)).await;
    let operator = Operator::to(cloakroom.admin());
    let (browser, _) = visit(&cloakroom, None).await;
    server.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).done();
    browser.navigate("/", &Script::new().call("PUT", "/values/n", "1")).await;
    let replica = format!(
        "Redis server {} is a read-only replica of {}",
        server.address(),
        primary.address()
    );
    let both = format!("{replica}; the session store (Redis) can be neither read nor written");
    let detail = shown_with(&operator, "store_unreadable", &both).await;
    assert!(!detail.contains("unreachable"), "{detail}");
    gone(&operator, "store_refuses_writes").await;
    server.command(&["REPLICAOF", "NO", "ONE"]).done();
    gone(&operator, "store_unreadable").await;
    gone(&operator, "store_refuses_writes").await;
}

#[tokio::test]
async fn full_redis_is_shown() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &store(&server)).await;
    let operator = Operator::to(cloakroom.admin());
    let (browser, _) = visit(&cloakroom, None).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    browser.navigate("/", &Script::new().call("PUT", "/values/n", "1")).await;
    let (detail, since) = shown(&operator, "store_refuses_writes").await;
    let cause = format!(
        "Redis server {} replied OOM command not allowed when used memory > 'maxmemory'; the session store (Redis) \
         cannot be written",
        server.address()
    );
    assert!(detail == cause && since.is_some(), "{detail} {since:?}");
    assert_eq!(find(&operator, "store_unreadable").await, None);
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    gone(&operator, "store_refuses_writes").await;
}

#[tokio::test]
async fn expired_certificate_is_shown() {
    let upstream = Upstream::start();
    let authority = Authority::new();
    let identity = authority.server(Flaw::Expired);
    let path = identity.certificate.display().to_string();
    let listener = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = [{{ certificate = \"{path}\", key = \"{}\" }}]\n",
        identity.key.display()
    );
    let cloakroom = Cloakroom::with(&upstream, &listener).await;
    let (detail, since) = shown(&Operator::to(cloakroom.admin()), "certificate_expired").await;
    let expected = format!("the certificate {path} of the listener {} expired", cloakroom.public());
    assert!(detail.starts_with(&expected), "{detail}");
    assert_eq!(since.as_deref(), Some("2021-01-01T00:00:00.000Z"));
}

#[tokio::test]
async fn ejected_upstream_is_shown() {
    let upstream = Upstream::start();
    let down = "http://127.0.0.1:1";
    let route = format!("[[route]]\nupstream = [\"{down}\", \"UPSTREAM\"]\n");
    let cloakroom = Cloakroom::with(&upstream, &route).await;
    let operator = Operator::to(cloakroom.admin());
    let browser = Browser::new(&cloakroom);
    let since = Instant::now();
    while find(&operator, "upstream_ejected").await.is_none() {
        assert!(since.elapsed() < PATIENCE, "it is ejected");
        browser.navigate("/", &Script::new()).await;
    }
    let (detail, since) = shown(&operator, "upstream_ejected").await;
    assert!(detail.starts_with("the upstream http://127.0.0.1:1 has failed ("), "{detail}");
    assert!(detail.contains("Connection refused") && since.is_some(), "{detail}");
    assert!(detail.ends_with(" and gets no requests from any route"), "{detail}");
    let upstream = &operator.json("/").await["upstreams"][down];
    let failures = upstream["failures"]["total"].as_u64();
    assert!(upstream["state"] == "ejected" && failures > Some(0), "{upstream}");
}

#[tokio::test]
async fn ejected_upstreams_that_still_get_requests_are_shown() {
    let upstream = Upstream::start();
    let route = "[[route]]\nupstream = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\n";
    let cloakroom = Cloakroom::with(&upstream, route).await;
    let operator = Operator::to(cloakroom.admin());
    assert_eq!(Browser::new(&cloakroom).navigate("/", &Script::new()).await.status, 502);
    let (detail, _) = shown(&operator, "upstream_ejected").await;
    let requests = " and still gets requests, because all upstreams of a route have failed";
    assert!(detail.ends_with(requests), "{detail}");
}

/// A single upstream is never ejected.
#[tokio::test]
async fn only_upstream_that_fails_is_shown() {
    let site = "127.0.0.1:1".parse().unwrap();
    let cloakroom = Cloakroom::for_site(site, "", "").await;
    let operator = Operator::to(cloakroom.admin());
    let browser = Browser::new(&cloakroom);
    for _ in 0..3 {
        assert_eq!(find(&operator, "upstream_fails").await, None);
        assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
    }
    let (detail, _) = shown(&operator, "upstream_fails").await;
    assert_eq!(detail, "the upstream http://127.0.0.1:1 failed 3 of the last 3 requests");
}

#[tokio::test]
async fn cookies_of_another_key_are_shown() {
    let upstream = Upstream::start();
    let here = Cloakroom::with(&upstream, "").await;
    let keys = format!("[session]\nkeys = [\"{OTHER_KEY}\"]\n");
    let there = Cloakroom::with(&upstream, &keys).await;
    let (browser, _) = visit(&here, None).await;
    let operator = Operator::to(there.admin());
    for _ in 0..5 {
        assert_eq!(find(&operator, "invalid_cookies").await, None);
        let browser = browser.at(there.public());
        browser.send_without_keeping("GET", "/", &[], &Script::new()).await;
    }
    let (detail, _) = shown(&operator, "invalid_cookies").await;
    assert!(detail.starts_with("5 of 5 ") && detail.contains(OTHER_FINGERPRINT), "{detail}");
    assert_eq!(find(&Operator::to(here.admin()), "invalid_cookies").await, None);
    // The next sample of the metrics has its time.
    let since = Instant::now();
    while shown(&operator, "invalid_cookies").await.1.is_none() {
        assert!(since.elapsed() < PATIENCE, "its time is not known");
    }
}

#[tokio::test]
async fn first_key_that_others_lack_is_shown() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let here = Cloakroom::with(&upstream, &store(&server)).await;
    let others = async |operator: &Operator| {
        operator.json("/").await["session_keys"]["others"].as_array().cloned()
    };
    let operator = Operator::to(here.admin());
    let since = Instant::now();
    while others(&operator).await.is_none() {
        assert!(since.elapsed() < PATIENCE, "the keys are compared");
    }
    let keys = format!("{}[session]\nkeys = [\"{OTHER_KEY}\"]\n", store(&server));
    let there = Cloakroom::with(&upstream, &keys).await;
    let new = Operator::to(there.admin());
    let (detail, since) = shown(&new, "first_key_is_new").await;
    let (learned, _) = shown(&operator, "first_key_is_missing").await;
    assert!(learned.contains(OTHER_FINGERPRINT) && learned.contains(KEY_FINGERPRINT), "{learned}");
    assert!(detail.contains(OTHER_FINGERPRINT) && since.is_some(), "{detail} {since:?}");
    assert_eq!(others(&operator).await, Some(vec![OTHER_FINGERPRINT.into()]));
    assert_eq!(find(&operator, "first_key_is_new").await, None);
    assert_eq!(find(&new, "first_key_is_missing").await, None);
    // Its own record says nothing about the others.
    assert_eq!(others(&new).await, Some(vec![KEY_FINGERPRINT.into()]));
}

#[tokio::test]
async fn clock_that_differs_is_shown() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::with(&upstream, &store(&server)).await;
    let operator = Operator::to(cloakroom.admin());
    assert_eq!(find(&operator, "clock_differs").await, None);
    cloakroom.advance(Duration::from_mins(25));
    let (detail, since) = shown(&operator, "clock_differs").await;
    assert!(since.is_some());
    // The clock of the test stands still in the meantime.
    assert!(detail.contains(" is 14") && detail.contains(" s ahead of that of Redis"), "{detail}");
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    assert!(metrics.contains("\ncloakroom_clock_offset_seconds 14"), "{metrics}");
}

#[tokio::test]
async fn failed_reload_is_shown_until_one_succeeds() {
    let upstream = Upstream::start();
    let admin = "address = \"127.0.0.1:0\"";
    let (_directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", admin);
    let program = Program::start(&file);
    let operator = Operator::to(program.serving().await.admin);
    assert_eq!(find(&operator, "reload_failed").await, None);
    let page = operator.get("/").await;
    assert!(page.body.contains("No known problem"), "{}", page.body);
    let right = std::fs::read_to_string(&file).unwrap();
    // Files with secrets where their errors are.
    let secret = "a-secret-in-a-place-where-it-is-wrong";
    let keys = format!("[session]\nkeys = [\"{secret}\"]\nwrong = 1\n");
    let redis = format!("[store]\nurl = \"redis://user:{secret}@host:wrong/0\"\n");
    let many: String = (0..100).map(|number| format!("wrong{number} = 1\n")).collect();
    let unclosed = format!("[cookie]\nname = \"{secret}\n");
    for (text, cause) in [
        (format!("{keys}{right}"), "cloakroom.toml:2:9: session.keys: invalid session key"),
        (right.replace("[store]\nurl = \"memory:\"\n", &redis), "store.url: has no host"),
        (format!("{unclosed}{right}"), "invalid basic string"),
        (format!("{many}{right}"), "(and 99 more errors)"),
    ] {
        std::fs::write(&file, text).unwrap();
        program.signal("-HUP");
        let since = Instant::now();
        let (detail, failed_at) = loop {
            let found = shown(&operator, "reload_failed").await;
            if found.0.contains(cause) {
                break found;
            }
            assert!(since.elapsed() < PATIENCE, "{cause} is not in {}", found.0);
        };
        assert!(
            detail.starts_with("the last reload failed, and the running configuration was kept: "),
            "{detail}"
        );
        assert!(failed_at.is_some() && detail.len() < 500 && !detail.contains(secret), "{detail}");
    }
    std::fs::write(&file, right).unwrap();
    program.signal("-HUP");
    gone(&operator, "reload_failed").await;
}
