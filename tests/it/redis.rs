//! The proxy with Redis, from outside: replicas, the cache, and refused changes.

use std::time::Duration;

use cloakroom::time::Clock;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Browser, Cloakroom, Instance, RedisServer, Script, Upstream, needs};

async fn instance(upstream: &Upstream, server: &RedisServer, store: &str) -> Cloakroom {
    let toml = format!(
        "[api]\naddress = \"127.0.0.1:0\"\n[session]\ntouch = \"write\"\n[store]\nurl = \"{}\"\n\
         timeout = \"2s\"\n{store}",
        server.url()
    );
    let directory = tempfile::tempdir().expect("a directory");
    Cloakroom::at(upstream, &toml, Clock::System, directory).await
}

/// Returns the number of commands that the server has run to read or change sessions.
fn commands(server: &RedisServer) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).text();
    let wanted = ["cmdstat_hgetall:", "cmdstat_hmget:", "cmdstat_evalsha:"];
    let lines = stats.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    let count = |line: &str| {
        let (_, rest) = line.split_once("calls=").expect("calls");
        rest.split(',').next().expect("a number").parse::<u64>().expect("a number")
    };
    lines.map(count).sum()
}

#[tokio::test]
async fn destroy_reports_whether_a_replica_has_it() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let replica = RedisServer::replica_of(&primary);
    let upstream = Upstream::start();
    let proxy = instance(&upstream, &primary, "").await;
    let prefer = [("prefer", "return=representation")];
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let check = async |replicated: bool| {
        let browser = Browser::new(&proxy);
        browser.send("GET", "/", &[], &log_in).await;
        let destroy = Script::new().call_with("DELETE", "", &prefer, "");
        let page = browser.send("GET", "/", &[], &destroy).await;
        assert_eq!(page.json(), json!({"destroyed": 1, "replicated": replicated}));
        browser.send("GET", "/", &[], &log_in).await;
        let destroy = Script::new().patch(&json!({"destroy": true}));
        let page = browser.send("GET", "/", &[], &destroy).await;
        assert_eq!(page.json()["replicated"], json!(replicated));
        let (one, other) = (Browser::new(&proxy), Browser::new(&proxy));
        one.send("GET", "/", &[], &log_in).await;
        other.send("GET", "/", &[], &log_in).await;
        let others = Script::new().call("DELETE", "/principal/sessions", "");
        let page = one.send("GET", "/", &[], &others).await;
        assert_eq!(page.json(), json!({"destroyed": 1, "replicated": replicated}));
        let everywhere = Script::new().call_with("DELETE", "?everywhere=true", &prefer, "");
        let page = one.send("GET", "/", &[], &everywhere).await;
        assert_eq!(page.json(), json!({"destroyed": 1, "replicated": replicated}));
    };
    check(true).await;
    replica.stop();
    check(false).await;
    replica.cont();
    let alone = RedisServer::start(&[]);
    let proxy = instance(&upstream, &alone, "").await;
    let browser = Browser::new(&proxy);
    browser.send("GET", "/", &[], &log_in).await;
    let destroy = Script::new().call_with("DELETE", "", &prefer, "");
    let page = browser.send("GET", "/", &[], &destroy).await;
    assert_eq!(page.json(), json!({"destroyed": 1, "replicated": null}));
}

#[tokio::test]
async fn cache_saves_commands_and_sees_remote_log_outs() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let cache = "cache = { max_bytes = \"4MiB\" }\n";
    let a = instance(&upstream, &server, cache).await;
    let b = instance(&upstream, &server, cache).await;
    let browser = Browser::new(&a);
    browser.send("GET", "/", &[], &Script::new().call("PUT", "/values/x", "1")).await;
    let read = Script::new().get("/values/x");
    // Fails until the cache's connection is open, and while a heartbeat is late.
    eventually(async || {
        browser.send("GET", "/", &[], &read).await;
        let before = commands(&server);
        for _ in 0..20 {
            assert_eq!(browser.send("GET", "/", &[], &read).await.json(), json!(1));
        }
        commands(&server) == before
    })
    .await;
    let kept = browser.copy();
    let destroy = Script::new().call("DELETE", "", "");
    browser.at(b.public()).send("GET", "/", &[], &destroy).await;
    eventually(async || {
        let page = kept.at(a.public()).send("GET", "/", &[], &Script::new().get("")).await;
        page.saw("x-session-error").as_deref() == Some("session_ended")
    })
    .await;
}

#[tokio::test]
async fn refused_changes_are_logged_once() {
    needs!("redis-server");
    let server = RedisServer::start(&["--appendonly", "yes"]);
    let upstream = Upstream::start();
    let store = format!("url = \"{}\"\n", server.url());
    let instance = Instance::start(&upstream, &store).await;
    let count = Script::new().call("POST", "/values/n/increment", "");
    // One connection per request, so that every worker gets some.
    let statuses = async || {
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(instance.browser().navigate("/", &count).await.last().status);
        }
        statuses
    };
    let logged = |line: &str| instance.program.log().matches(line).count();
    assert_eq!(statuses().await, [200; 20]);
    let full = [("maxmemory", "1"), ("min-replicas-to-write", "1")];
    for (round, (setting, value)) in (1..).zip(full) {
        server.command(&["CONFIG", "SET", setting, value]).done();
        assert_eq!(statuses().await, [503; 20], "{setting}");
        assert_eq!(logged("Redis refuses changes"), round);
        let named = format!("Redis refuses changes server=\"{}\" cause=", server.address());
        assert_eq!(logged(&named), round, "{}", instance.program.log());
        server.command(&["CONFIG", "SET", setting, "0"]).done();
        eventually(async || {
            assert_eq!(statuses().await, [200; 20], "{setting}");
            logged("Redis takes changes again") == round
        })
        .await;
    }
    server.kill();
    eventually(async || {
        assert_eq!(statuses().await, [503; 20]);
        logged("Redis unreachable") > 0
    })
    .await;
    server.restart();
    eventually(async || statuses().await == [200; 20]).await;
    eventually(async || logged("Redis reconnected") > 0).await;
    let lines = ["Redis unreachable", "Redis reconnected", "Redis refuses", "Redis takes"];
    assert_eq!(lines.map(logged), [1, 1, 2, 2], "{}", instance.program.log());
}

#[tokio::test]
async fn demoted_server_is_logged_with_its_primary() {
    needs!("redis-server");
    let (primary, server) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &format!("url = \"{}\"\n", server.url())).await;
    let count = Script::new().call("POST", "/values/n/increment", "");
    let status = async || instance.browser().navigate("/", &count).await.last().status;
    assert_eq!(status().await, 200);
    server.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]).done();
    let line = format!(
        "Redis server is a read-only replica server=\"{}\" primary=\"{}\"",
        server.address(),
        primary.address()
    );
    let logged = |line: &str| instance.program.log().matches(line).count();
    // Long enough for several attempts of each worker.
    let since = std::time::Instant::now();
    eventually(async || {
        assert_eq!(status().await, 503);
        logged(&line) > 0 && since.elapsed() > Duration::from_secs(2)
    })
    .await;
    server.command(&["REPLICAOF", "NO", "ONE"]).done();
    // Until each worker has reconnected.
    let served = std::cell::Cell::new(0);
    eventually(async || {
        served.set(if status().await == 200 { served.get() + 1 } else { 0 });
        served.get() >= 40
    })
    .await;
    let lines = ["is a read-only replica", "Redis unreachable", "Redis reconnected"];
    assert_eq!(lines.map(logged), [1, 0, 1], "{}", instance.program.log());
}

#[tokio::test]
async fn replica_at_the_start_is_named() {
    needs!("redis-server");
    let primary = RedisServer::start(&[]);
    let server = RedisServer::replica_of(&primary);
    let upstream = Upstream::start();
    let instance = Instance::start(&upstream, &format!("url = \"{}\"\n", server.url())).await;
    let log = instance.program.log();
    let line = log.lines().find(|line| line.contains("Redis cannot be used at startup"));
    let replica = format!(
        "Redis server {} is a read-only replica of {}",
        server.address(),
        primary.address()
    );
    assert!(line.is_some_and(|line| line.contains(&replica)), "{log}");
    assert!(!log.contains("unreachable"), "{log}");
}

/// While a server is down, the pauses between attempts to connect grow, each worker's for itself.
#[tokio::test]
async fn workers_reconnect_with_the_first() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let instance = Instance::start(&upstream, &format!("url = \"{}\"\n", server.url())).await;
    let visitor = instance.browser();
    let change = Script::new().patch(&json!({"set": {"n": 1}}));
    assert_eq!(visitor.navigate("/", &change).await.status, 200);
    // At the same time, so that each worker has some of them.
    let check = async || {
        let visit = |browser: Browser| async move {
            browser.navigate("/", &Script::new().get("/values/n")).await.status
        };
        let visits: JoinSet<_> = (0..32).map(|_| visit(visitor.copy())).collect();
        assert_eq!(visits.join_all().await, [200; 32], "{}", instance.program.log());
    };
    check().await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.restart();
    instance.program.wait_for_log("Redis reconnected").await;
    check().await;
}

/// Polls until `holds` returns true.
async fn eventually(holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("it holds before the time-out");
}
