//! `one_at_a_time = "head"`: requests of one session wait for each other.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use cloakroom::metrics::Event;
use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::raw::{RawUpstream, read_until};
use crate::support::{
    API, Browser, COOKIE, Cloakroom, Direction, Echo, Fault, FaultProxy, Page, RedisServer, Script,
    Upstream, needs, socket, until,
};

const ON: &str = "[[route]]\nupstream = \"UPSTREAM\"\none_at_a_time = \"head\"\n";

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

/// Starts a proxy and a browser that has a session.
async fn start(upstream: &Upstream, toml: &str) -> (Cloakroom, Browser) {
    let cloakroom = Cloakroom::with(upstream, toml).await;
    let browser = Browser::new(&cloakroom);
    browser.navigate("/", &count()).await;
    upstream.take_seen();
    (cloakroom, browser)
}

fn fetch(browser: &Browser, path: &str, script: Script) -> JoinHandle<Page> {
    let (browser, path) = (browser.clone(), path.to_owned());
    tokio::spawn(async move { browser.fetch(&path, &script).await })
}

/// Sends a request that keeps its turn until the gate of this name is opened.
async fn hold(upstream: &Upstream, browser: &Browser, gate: &str) -> JoinHandle<Page> {
    let page = fetch(browser, &format!("/{gate}"), Script::new().wait(gate));
    upstream.arrived(gate, 1).await;
    page
}

async fn until_metric(cloakroom: &Cloakroom, name: &str, value: usize) {
    let line = format!("cloakroom_{name} {value}");
    until(&line, || cloakroom.metrics().text().lines().any(|found| found == line)).await;
}

async fn until_waiting(cloakroom: &Cloakroom, count: usize) {
    until_metric(cloakroom, "requests_waiting", count).await;
}

fn targets(upstream: &Upstream) -> Vec<String> {
    upstream.seen().into_iter().map(|seen| seen.target).collect()
}

#[tokio::test]
async fn requests_go_in_order_of_arrival() {
    let upstream = Upstream::start();
    let (cloakroom, browser) = start(&upstream, ON).await;
    let first = hold(&upstream, &browser, "first").await;
    let mut pages = Vec::new();
    for number in 1..=20 {
        pages.push(fetch(&browser, &format!("/{number}"), count()));
        until_waiting(&cloakroom, number).await;
    }
    assert_eq!(targets(&upstream), ["/first"]);
    upstream.open("first");
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    for (page, n) in pages.into_iter().zip(2..) {
        assert_eq!(page.await.unwrap().json(), json!(n));
    }
    let numbers = (1..=20).map(|number| format!("/{number}"));
    assert_eq!(targets(&upstream)[1..], numbers.collect::<Vec<_>>());
    until_waiting(&cloakroom, 0).await;
}

#[tokio::test]
async fn session_is_read_after_the_wait() {
    let upstream = Upstream::start();
    let toml = format!("{ON}header_exchange = true\n");
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let loads = || cloakroom.metrics().store_calls("load");
    let before = loads();
    let patch = json!({"values": {"n": 7}});
    let first = Script::new().wait("gate").header("x-session-patch", patch);
    let first = fetch(&browser, "/", first);
    upstream.arrived("gate", 1).await;
    assert_eq!(loads() - before, 1, "who does not wait pays nothing more");
    let second = fetch(&browser, "/", Script::new());
    until_waiting(&cloakroom, 1).await;
    upstream.open("gate");
    assert_eq!(second.await.unwrap().saw("x-session-data").as_deref(), Some("{\"n\":7}"));
    assert_eq!(first.await.unwrap().header("x-session-patch"), None);
    assert_eq!(loads() - before, 3, "one more for the one that has waited");
}

#[tokio::test]
async fn verdict_is_that_after_the_wait() {
    for (patch, error) in [
        (json!({"principal": "ada"}), "session_rotated"),
        (json!({"destroy": true}), "session_ended"),
    ] {
        let upstream = Upstream::start();
        let (cloakroom, browser) = start(&upstream, ON).await;
        let first = fetch(&browser, "/", Script::new().wait_before("gate").patch(&patch));
        upstream.arrived("gate", 1).await;
        let others: Vec<_> =
            (0..3).map(|_| fetch(&browser, "/", Script::new().wait("others"))).collect();
        until_waiting(&cloakroom, 3).await;
        upstream.open("gate");
        assert_eq!(first.await.unwrap().last().status / 100, 2);
        // They have no session, so they wait for each other no more.
        upstream.arrived("others", 3).await;
        upstream.open("others");
        for other in others {
            assert_eq!(other.await.unwrap().saw("x-session-error").as_deref(), Some(error));
        }
    }
}

#[tokio::test]
async fn only_requests_of_the_session_wait() {
    let upstream = Upstream::start();
    let toml = format!(
        "{ON}[[route]]\npath = \"/poll\"\nupstream = \"UPSTREAM\"\nsession = \"no-touch\"\n\
         [[route]]\npath = \"/free\"\nupstream = \"UPSTREAM\"\n"
    );
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let stale = browser.copy();
    browser.navigate("/", &Script::new().patch(&json!({"principal": "ada"}))).await;
    let other = Browser::new(&cloakroom);
    other.navigate("/", &count()).await;
    let first = hold(&upstream, &browser, "first").await;
    for destination in ["image", "style", "script", "font", "audio", "video", "track", "manifest"] {
        let headers = [("sec-fetch-dest", destination)];
        let page = browser.send("GET", "/asset", &headers, &Script::new()).await;
        assert!(page.saw("x-session-id").is_some(), "{destination}");
    }
    for path in ["/poll", "/free"] {
        assert!(browser.fetch(path, &Script::new()).await.saw("x-session-id").is_some(), "{path}");
    }
    for (visitor, error) in
        [(other, None), (stale, Some("session_rotated")), (Browser::new(&cloakroom), None)]
    {
        let page = visitor.fetch("/", &Script::new()).await;
        assert_eq!((page.status, page.saw("x-session-error").as_deref()), (StatusCode::OK, error));
    }
    // What is not a GET changes something, whatever its destination.
    let post = tokio::spawn({
        let browser = browser.clone();
        async move {
            browser.send("POST", "/post", &[("sec-fetch-dest", "image")], &Script::new()).await
        }
    });
    until_waiting(&cloakroom, 1).await;
    upstream.open("first");
    assert_eq!(post.await.unwrap().status, StatusCode::OK);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
}

/// A browser may have the cookie of another session that has ended, e.g. with another path.
#[tokio::test]
async fn cookie_of_an_ended_session_does_not_let_others_in() {
    let upstream = Upstream::start();
    let (cloakroom, browser) = start(&upstream, ON).await;
    let ended = Browser::new(&cloakroom);
    ended.navigate("/", &count()).await;
    let token = ended.cookie().unwrap();
    let id = ended.navigate("/", &Script::new().get("")).await.json()["id"].clone();
    cloakroom.service("DELETE", &format!("/{}", id.as_str().unwrap()), "").await;
    let first = hold(&upstream, &browser, "first").await;
    let both = format!("{COOKIE}={token}; {COOKIE}={}", browser.cookie().unwrap());
    let second = tokio::spawn({
        let visitor = Browser::new(&cloakroom);
        async move { visitor.send("GET", "/second", &[("cookie", &both)], &Script::new()).await }
    });
    until_waiting(&cloakroom, 1).await;
    upstream.open("first");
    assert!(second.await.unwrap().saw("x-session-id").is_some());
    first.await.unwrap();
}

#[tokio::test]
async fn page_that_requests_itself_gets_session_busy() {
    let upstream = Upstream::start();
    let toml = format!("{ON}one_at_a_time_wait = \"300ms\"\n");
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let cookie = format!("{COOKIE}={}", browser.cookie().unwrap());
    let fields = [("cookie", cookie.as_str()), ("accept", "application/json")];
    let inner = Script::new().call_with("GET", "", &fields, "");
    let url = format!("http://{}/inner", cloakroom.public());
    let began = std::time::Instant::now();
    let page = browser.send("GET", "/outer", &[(API, &url)], &inner).await;
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
    let inner = page.last();
    assert_eq!((inner.status, inner.code().as_str()), (503, "session_busy"), "{inner:?}");
    assert_eq!(inner.header("retry-after"), Some("1"));
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(targets(&upstream), ["/outer"]);
    assert_eq!(cloakroom.metrics().event_count(Event::SessionBusy), 1);
    // The turn of the outer page has ended.
    assert_eq!(browser.fetch("/", &count()).await.json(), json!(2));
}

#[tokio::test]
async fn full_queue_is_session_busy() {
    let upstream = Upstream::start();
    let (cloakroom, browser) = start(&upstream, ON).await;
    let first = hold(&upstream, &browser, "first").await;
    let waiting: Vec<_> = (0..128).map(|_| fetch(&browser, "/", count())).collect();
    until_waiting(&cloakroom, 128).await;
    let page = browser.navigate("/", &count()).await;
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(page.header("retry-after"), Some("1"));
    assert!(page.body.contains("still working on your other requests"), "{}", page.body);
    assert_eq!(cloakroom.metrics().event_count(Event::SessionBusy), 1);
    upstream.open("first");
    for page in waiting {
        assert_eq!(page.await.unwrap().last().status, 200);
    }
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert_eq!(browser.fetch("/", &count()).await.json(), json!(130));
}

/// Sends a GET with the browser's cookie on a connection of its own.
async fn raw_get(
    cloakroom: &Cloakroom,
    browser: &Browser,
    path: &str,
    script: &Script,
) -> TcpStream {
    let mut connection = TcpStream::connect(cloakroom.public()).await.unwrap();
    let (cookie, script) = (browser.cookie().unwrap(), script.to_header());
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nCookie: {COOKIE}={cookie}\r\nX-Script: {script}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection
}

#[tokio::test]
async fn client_that_hangs_up_frees_its_place() {
    let upstream = Upstream::start();
    let (cloakroom, browser) = start(&upstream, ON).await;
    let holder = raw_get(&cloakroom, &browser, "/holder", &Script::new().wait("never")).await;
    upstream.arrived("never", 1).await;
    let impatient = raw_get(&cloakroom, &browser, "/impatient", &Script::new()).await;
    until_waiting(&cloakroom, 1).await;
    let patient = fetch(&browser, "/patient", count());
    until_waiting(&cloakroom, 2).await;
    drop(impatient);
    until_waiting(&cloakroom, 1).await;
    // The site still works on this page; its visitor does not wait for it any more.
    drop(holder);
    assert_eq!(patient.await.unwrap().json(), json!(2));
    assert_eq!(targets(&upstream), ["/holder", "/patient"]);
    upstream.open("never");
}

/// Its change is made by a task of its own, for which the next request has to wait.
#[tokio::test]
async fn commit_of_a_disconnected_client_keeps_the_turn() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let relay = FaultProxy::to(server.address());
    let store = format!("[store]\nurl = \"redis://{}/0\"\ntimeout = \"20s\"\n", relay.address());
    let toml = format!("{store}{ON}header_exchange = true\n");
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let responded =
        format!("upstream_requests_total{{upstream=\"{}\",outcome=\"responded\"}}", upstream.url());
    let patch = json!({"values": {"n": 7}});
    let script = Script::new().wait("gate").header("x-session-patch", patch);
    let holder = raw_get(&cloakroom, &browser, "/", &script).await;
    upstream.arrived("gate", 1).await;
    let second = fetch(&browser, "/", Script::new());
    until_waiting(&cloakroom, 1).await;
    relay.set(Fault::Stall(Direction::Requests));
    upstream.open("gate");
    until_metric(&cloakroom, &responded, 2).await;
    drop(holder);
    until_metric(&cloakroom, "requests_in_flight", 0).await;
    until_waiting(&cloakroom, 1).await;
    relay.set(Fault::None);
    assert_eq!(second.await.unwrap().saw("x-session-data").as_deref(), Some("{\"n\":7}"));
}

#[tokio::test]
async fn websockets_neither_wait_nor_hold() {
    let (upstream, echo) = (Upstream::start(), Echo::start().await);
    let toml = format!(
        "{ON}[[route]]\npath = \"/socket\"\nupstream = \"http://{}\"\none_at_a_time = \"head\"\n",
        echo.address
    );
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let cookie = format!("{COOKIE}={}", browser.cookie().unwrap());
    let first = hold(&upstream, &browser, "first").await;
    let opened = socket(cloakroom.public(), "/socket", &[("cookie", &cookie)]).await;
    let mut opened = opened.unwrap();
    assert!(opened.echoes("hello").await);
    upstream.open("first");
    first.await.unwrap();
    assert_eq!(browser.fetch("/", &count()).await.json(), json!(2));
    assert!(opened.echoes("still there").await);
}

#[tokio::test]
async fn event_stream_releases_at_its_head() {
    let site = RawUpstream::start().await;
    let upstream = Upstream::start();
    let toml = format!(
        "{ON}[[route]]\npath = \"/events\"\nupstream = \"http://{}\"\none_at_a_time = \"head\"\n",
        site.address
    );
    let (cloakroom, browser) = start(&upstream, &toml).await;
    let mut client = raw_get(&cloakroom, &browser, "/events", &Script::new()).await;
    let (mut events, _head) = site.head().await;
    let page = fetch(&browser, "/", count());
    until_waiting(&cloakroom, 1).await;
    events
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n")
        .await
        .unwrap();
    assert_eq!(page.await.unwrap().json(), json!(2));
    read_until(&mut client, "data: one").await;
    events.write_all(b"data: two\n\n").await.unwrap();
    read_until(&mut client, "data: two").await;
}

#[tokio::test]
async fn reload_keeps_the_queue() {
    let upstream = Upstream::start();
    let (mut cloakroom, browser) = start(&upstream, ON).await;
    let first = hold(&upstream, &browser, "first").await;
    let second = fetch(&browser, "/second", count());
    until_waiting(&cloakroom, 1).await;
    let free = format!("{ON}[[route]]\npath = \"/free\"\nupstream = \"UPSTREAM\"\n");
    assert_eq!(cloakroom.reload(&upstream, &free).unwrap(), [""; 0]);
    let third = fetch(&browser, "/third", count());
    until_waiting(&cloakroom, 2).await;
    browser.fetch("/free", &Script::new()).await;
    assert_eq!(targets(&upstream), ["/first", "/free"]);
    upstream.open("first");
    first.await.unwrap();
    assert_eq!(second.await.unwrap().json(), json!(2));
    assert_eq!(third.await.unwrap().json(), json!(3));
}

#[tokio::test]
async fn drain_lets_those_who_wait_go_on() {
    let upstream = Upstream::start();
    let (cloakroom, browser) = start(&upstream, ON).await;
    let first = hold(&upstream, &browser, "first").await;
    let waiting: Vec<_> = (0..10).map(|_| fetch(&browser, "/", count())).collect();
    until_waiting(&cloakroom, 10).await;
    let public = cloakroom.public();
    let stopped = tokio::spawn(cloakroom.stop());
    until("the listener is closed", || std::net::TcpStream::connect(public).is_err()).await;
    upstream.open("first");
    assert!(stopped.await.unwrap());
    for page in waiting {
        assert_eq!(page.await.unwrap().last().status, 200);
    }
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
}

/// PHP's own server, with several workers. Dropping it ends them all.
struct Php(Child);

impl Php {
    async fn start(page: &str) -> (Self, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("php")
            .args(["-n", "-S", &address.to_string(), page])
            .env("PHP_CLI_SERVER_WORKERS", "8")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        until("PHP listens", || std::net::TcpStream::connect(address).is_ok()).await;
        (Self(child), address)
    }
}

impl Drop for Php {
    fn drop(&mut self) {
        // It does not end its workers itself, but they are of its process group.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

const PARALLEL: usize = 50;

/// Returns how many of 50 parallel requests the page counts, which reads a value and writes it back.
async fn counted(address: SocketAddr, route: &str, store: &str) -> usize {
    let tables = format!("[store]\nurl = \"{store}\"\ntimeout = \"20s\"\n");
    let cloakroom = Cloakroom::for_site(address, route, &tables).await;
    let browser = Browser::new(&cloakroom);
    assert_eq!(browser.navigate("/", &Script::new()).await.body, "1");
    let pages: Vec<_> = (0..PARALLEL).map(|_| fetch(&browser, "/", Script::new())).collect();
    let mut most = 0;
    for page in pages {
        let page = page.await.unwrap();
        assert_eq!(page.status, StatusCode::OK, "{}", page.body);
        most = most.max(page.body.parse().unwrap());
    }
    most - 1
}

#[tokio::test]
async fn php_page_that_reads_and_writes_back_counts_all() {
    needs!("php");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/read_and_write.php");
    let (_site, address) = Php::start(page).await;
    for store in ["memory:", "sqlite:sessions.db"] {
        let with = counted(address, "one_at_a_time = \"head\"\n", store).await;
        println!("{store} one at a time: {with} of {PARALLEL}");
        assert_eq!(with, PARALLEL);
        let without = counted(address, "", store).await;
        println!("{store} at the same time: {without} of {PARALLEL}");
    }
}
