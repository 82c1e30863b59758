//! The admin listener, and the program as operators run it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloakroom::server::Tasks;

use crate::support::raw::exchange;
use crate::support::{
    Browser, Cloakroom, KEY, PATIENCE, Program, RedisServer, Script, Upstream, curl, needs, until,
};

#[tokio::test]
async fn admin_reports_liveness_readiness_and_metrics() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let mut server = Some(RedisServer::start(&[]));
    let toml =
        format!("[store]\nurl = \"redis://127.0.0.1:{}/0\"\n", server.as_ref().unwrap().port());
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    assert_eq!(cloakroom.admin_get("/live").await.0, 200);
    assert_eq!(cloakroom.admin_get("/ready").await.0, 200);
    assert_eq!(cloakroom.admin_get("/nothing").await.0, 404);
    let browser = Browser::new(&cloakroom);
    browser
        .navigate("/", &Script::new().call("PUT", "/values/a", "1").call("POST", "/rotate", ""))
        .await;
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    for line in [
        "cloakroom_requests_total{outcome=\"forwarded\"} 1",
        "cloakroom_session_events_total{event=\"created\"} 1",
        "cloakroom_session_events_total{event=\"rotated\"} 1",
        "cloakroom_requests_in_flight 0",
        "cloakroom_store_duration_seconds_count{operation=\"create\"} 1",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in\n{metrics}");
    }
    // Without Redis it is alive, and as ready as any other instance. A request with a session fails and keeps its cookie.
    server.take();
    assert_eq!(cloakroom.admin_get("/live").await.0, 200);
    assert_eq!(cloakroom.admin_get("/ready").await.0, 200);
    until_status(&cloakroom, "/ready?store", 503).await;
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    for line in ["store_up{operation=\"read\"} 0", "store_up{operation=\"write\"} 0"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let page = browser.navigate("/", &Script::new()).await;
    assert_eq!(
        (page.status.as_u16(), page.header("retry-after"), page.set_cookies().len()),
        (503, Some("1"), 0)
    );
    let newcomer =
        Browser::new(&cloakroom).navigate("/", &Script::new().call("PUT", "/values/a", "1")).await;
    assert_eq!(
        (newcomer.last().status, newcomer.last().code().as_str()),
        (503, "store_unavailable")
    );
    assert_eq!(newcomer.last().header("retry-after"), Some("1"));
}

#[tokio::test]
async fn anonymous_on_error_serves_without_a_session() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    let toml = format!(
        "[store]\nurl = \"redis://127.0.0.1:{}/0\"\non_error = \"anonymous\"\n",
        server.port()
    );
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let browser = Browser::new(&cloakroom);
    browser.navigate("/", &Script::new().call("PUT", "/values/a", "1")).await;
    drop(server);
    let page = browser.navigate("/", &Script::new().get("").call("PUT", "/values/a", "2")).await;
    assert_eq!(
        (page.status.as_u16(), page.saw("x-session-error").as_deref()),
        (200, Some("store_unavailable"))
    );
    assert!(page.calls().iter().all(|called| called.code() == "store_unavailable"));
    assert_eq!(page.set_cookies(), [""; 0]);
}

/// Waits until a path of the admin listener has this status: the result of a probe may be a second old.
async fn until_status(cloakroom: &Cloakroom, path: &str, status: u16) {
    let deadline = Instant::now() + PATIENCE;
    while cloakroom.admin_get(path).await.0 != status {
        assert!(Instant::now() < deadline, "{path} is not {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn on_redis(server: &RedisServer, more: &str) -> String {
    format!("[store]\nurl = \"redis://127.0.0.1:{}/0\"\n{more}\n", server.port())
}

#[tokio::test]
async fn wrong_password_is_never_ready() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    server.command(&["CONFIG", "SET", "requirepass", "right"]);
    let cloakroom = Cloakroom::with(&upstream, &on_redis(&server, "password = \"wrong\"")).await;
    for path in ["/ready", "/ready?store"] {
        assert_eq!(cloakroom.admin_get(path).await.0, 503, "{path}");
    }
    assert_eq!(cloakroom.admin_get("/live").await.0, 200);
    server.command_as("default", "right", &["CONFIG", "SET", "requirepass", "wrong"]);
    until_status(&cloakroom, "/ready", 200).await;
    until_status(&cloakroom, "/ready?store", 200).await;
}

#[tokio::test]
async fn full_redis_keeps_instance_ready() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    let cloakroom = Cloakroom::with(&upstream, &on_redis(&server, "")).await;
    assert_eq!(cloakroom.admin_get("/ready").await.0, 200);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    until_status(&cloakroom, "/ready?store", 503).await;
    assert_eq!(cloakroom.admin_get("/ready").await.0, 200);
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    for line in ["store_up{operation=\"read\"} 1", "store_up{operation=\"write\"} 0"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    until_status(&cloakroom, "/ready?store", 200).await;
}

#[tokio::test]
async fn anonymous_routes_need_no_store() {
    let upstream = Upstream::start();
    let [unreachable, _] = free();
    let route = |path: &str, more: &str| {
        format!("[[route]]\npath = \"{path}\"\nupstream = \"UPSTREAM\"\n{more}\n")
    };
    let store = format!("[store]\nurl = \"redis://{unreachable}/0\"\n");
    let anonymous = route("/", "on_error = \"anonymous\"");
    let fails = route("/a", "on_error = \"fail\"");
    let off = route("/b", "session = \"off\"");
    let mut cloakroom =
        Cloakroom::with(&upstream, &format!("{store}{anonymous}{fails}{off}")).await;
    assert_eq!(cloakroom.admin_get("/ready").await.0, 503);
    cloakroom.reload(&upstream, &format!("{store}{anonymous}{off}")).unwrap();
    assert_eq!(cloakroom.admin_get("/ready").await.0, 200);
    assert_eq!(cloakroom.admin_get("/ready?store").await.0, 503);
}

#[tokio::test]
async fn many_pollers_make_few_probes() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    let cloakroom = Arc::new(Cloakroom::with(&upstream, &on_redis(&server, "")).await);
    let start = Instant::now();
    let polls = (0..50).map(|_| {
        let cloakroom = Arc::clone(&cloakroom);
        tokio::spawn(async move { cloakroom.admin_get("/ready?store").await.0 })
    });
    for poll in polls.collect::<Vec<_>>() {
        assert_eq!(poll.await.unwrap(), 200);
    }
    let probes = cloakroom.metrics().store_calls("probe");
    assert!((1..=2 + start.elapsed().as_secs()).contains(&probes), "{probes}");
}

/// Returns free ports.
fn free() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

fn health(file: &Path) -> i32 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    let health = command.args(["health", "--config", file.to_str().unwrap()]);
    let health = health.env("STATE_DIRECTORY", file.parent().unwrap());
    health.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code().unwrap()
}

#[tokio::test]
async fn program_logs_requests_and_drains_on_sigterm() {
    for (format, session) in [("text", "session="), ("json", "\"session\":")] {
        let upstream = Upstream::start();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let [public, admin] = free();
        let toml = format!(
            "[log]\nformat = \"{format}\"\nlevel = \"trace\"\n[[listen]]\naddress = \"{public}\"\n\
             [api]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"{admin}\"\n[session]\nkeys = [\"{KEY}\"]\n\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        std::fs::write(&file, toml).unwrap();
        assert_eq!(health(&file), 1, "nothing listens");
        let mut program = Program::start(&file);
        until("the program is ready", || health(&file) == 0).await;
        let browser = Browser::to(public);
        let page = browser
            .navigate("/page?secret=query", &Script::new().call("PUT", "/values/a", "1"))
            .await;
        let id = page.json()["id"].as_str().unwrap().to_owned();
        // A second program cannot listen at the same address, and its error names it.
        let mut second = Program::start(&file);
        assert_eq!(second.ended().await.code(), Some(1));
        second.wait_for_log(&format!("cannot listen on {public}")).await;
        // The drain finishes requests in flight and accepts no more connections.
        let held = tokio::spawn({
            let browser = browser.clone();
            async move { browser.navigate("/held", &Script::new().wait("gate")).await }
        });
        upstream.arrived("gate", 1).await;
        program.signal("-TERM");
        until("it accepts no more connections", || TcpStream::connect(public).is_err()).await;
        upstream.open("gate");
        assert_eq!(held.await.unwrap().status.as_u16(), 200);
        assert_eq!(program.ended().await.code(), Some(0));
        program.wait_for_log("/held").await;
        let log = program.log();
        let line =
            log.lines().find(|line| line.contains("/page")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains(session) && line.contains(&id), "{line}");
        assert!(
            !log.contains("secret=query") && !log.contains(&browser.cookie().unwrap()),
            "{log}"
        );
    }
}

#[tokio::test]
async fn listeners_can_be_unix_sockets() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let toml = format!("[api]\naddress = \"unix:{}\"\n", path.display());
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let page = Browser::new(&cloakroom).navigate("/", &Script::new()).await;
    let url = page.saw("x-session-url").unwrap();
    assert!(url.starts_with("http+unix://%2F") && url.ends_with("/_session"), "{url}");
    let path = "/_session".parse().unwrap();
    let target = format!("unix:{}", directory.path().join("api.sock").display()).parse().unwrap();
    let answer =
        cloakroom::client::get(&target, path, &Tasks::new(), 1 << 16, PATIENCE).await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    let answer =
        exchange(cloakroom.public(), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await;
    assert!(answer.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn foreign_host_names_are_misdirected() {
    needs!("curl");
    let upstream = Upstream::start();
    let toml = "[api]\nurl = \"http://sessions.internal:8081/_session\"\n\
        instance_url = \"http://one.internal:8081\"\nhosts = [\"cloakroom.svc\"]\n\
        [admin]\nhosts = [\"ops.internal\"]\n";
    let cloakroom = Cloakroom::with(&upstream, toml).await;
    let ask = async |address, path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        exchange(address, &request).await.get(9..12).unwrap_or_default().to_owned()
    };
    for (host, api, admin) in [
        ("Host: 127.0.0.1:8081\r\n", "200", "404"),
        ("Host: [::1]\r\n", "200", "404"),
        ("Host: LocalHost:1\r\n", "200", "404"),
        ("Host: sessions.internal:8081\r\n", "200", "404"),
        ("Host: one.internal\r\n", "200", "404"),
        ("Host: cloakroom.svc.\r\n", "200", "421"),
        ("Host: ops.internal\r\n", "421", "404"),
        ("Host: evil.test\r\n", "421", "421"),
        ("Host: 127.0.0.1.evil.test\r\n", "421", "421"),
        ("Host: localhost\r\nHost: evil.test\r\n", "421", "421"),
        ("", "200", "404"),
    ] {
        let answer = ask(cloakroom.api(), "/_session/openapi.json", host).await;
        assert_eq!(answer, api, "API, {host:?}");
        assert_eq!(ask(cloakroom.admin(), "/other", host).await, admin, "admin, {host:?}");
        for path in ["/live", "/ready", "/metrics"] {
            assert_eq!(ask(cloakroom.admin(), path, host).await, "200", "{path}, {host:?}");
        }
    }
    // With HTTP/2 and with a target in absolute form, the authority takes the place of Host (RFC 9110, section 7.2).
    let port = cloakroom.api().port();
    for (name, status) in [("evil.test", 421), ("cloakroom.svc", 200)] {
        let url = format!("http://{name}:{port}/_session/openapi.json");
        let resolve = format!("{name}:{port}:127.0.0.1");
        let answer = curl(["--http2-prior-knowledge", "--resolve", &resolve, &url]).await;
        assert_eq!((answer.version.as_str(), answer.status), ("2", status), "{name}");
    }
    let absolute = "http://evil.test/_session/openapi.json";
    assert_eq!(ask(cloakroom.api(), absolute, "Host: localhost\r\n").await, "421");
}

#[tokio::test]
async fn foreign_host_name_is_logged_once_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
        [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
        [[route]]\nupstream = \"http://127.0.0.1:9\"\n";
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    for _ in 0..5 {
        for address in [serving.api, serving.admin] {
            let request = "GET /x HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
            let answer = exchange(address, request).await;
            assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
        }
    }
    for key in ["api.hosts", "admin.hosts"] {
        program.wait_for_log(key).await;
        let log = program.log();
        let logged = log.lines().filter(|line| line.contains(key) && line.contains("evil.test"));
        assert_eq!(logged.count(), 1, "{log}");
    }
}
