//! Several upstreams for one route.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::raw::{RawUpstream, exchange, read_until};
use crate::support::{Browser, Cloakroom, PATIENCE, Program, Script, Upstream};

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

/// Starts a proxy with these upstreams, and a browser.
async fn before(upstreams: &[String]) -> (Cloakroom, Browser) {
    let all: Vec<String> = upstreams.iter().map(|url| format!("\"{url}\"")).collect();
    let toml = format!("[[route]]\nupstream = [{}]\n", all.join(", "));
    let proxy = Cloakroom::with(&Upstream::start(), &toml).await;
    let browser = Browser::new(&proxy);
    (proxy, browser)
}

/// Returns the URL of a port on which nothing listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn upstreams_share_a_session() {
    let upstreams = [Upstream::start(), Upstream::start(), Upstream::start()];
    let (_proxy, browser) = before(&upstreams.each_ref().map(Upstream::url)).await;
    for expected in 1..=60 {
        assert_eq!(browser.navigate("/", &count()).await.json(), json!(expected));
    }
    let served = upstreams.each_ref().map(|upstream| upstream.seen().len());
    assert_eq!(served.iter().sum::<usize>(), 60);
    assert!(served.iter().all(|times| *times > 5), "{served:?}");
}

#[tokio::test]
async fn unreachable_upstream_causes_no_error() {
    let upstream = Upstream::start();
    let (_proxy, browser) = before(&[nobody().await, upstream.url(), nobody().await]).await;
    for expected in 1..=20 {
        // Nothing was sent to the unreachable upstream, so a POST is sent to another one too.
        let page = browser.send("POST", "/", &[], &count()).await;
        assert_eq!(page.json(), json!(expected));
    }
    assert_eq!(upstream.seen().len(), 20);
}

#[tokio::test]
async fn all_upstreams_down_is_an_error() {
    let (_proxy, browser) = before(&[nobody().await, nobody().await]).await;
    for _ in 0..5 {
        assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
    }
}

/// An upstream that closes each connection without a response, with the number of requests so far.
async fn mute() -> (String, Arc<AtomicUsize>) {
    let raw = RawUpstream::start().await;
    let (url, taken) = (format!("http://{}", raw.address), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (connection, _head) = raw.head().await;
            count.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    (url, taken)
}

#[tokio::test]
async fn only_repeatable_requests_are_retried_once() {
    let upstream = Upstream::start();
    for (method, repeats) in [("GET", true), ("DELETE", true), ("POST", false), ("PATCH", false)] {
        let (silent, taken) = mute().await;
        let (_proxy, browser) = before(&[silent, upstream.url()]).await;
        let mut refused = 0;
        for _ in 0..20 {
            let page = browser.send(method, "/", &[], &Script::new()).await;
            refused += usize::from(page.status == 502);
        }
        let taken = taken.load(Ordering::Relaxed);
        assert!((1..20).contains(&taken), "{method}: {taken}");
        assert_eq!(refused, if repeats { 0 } else { taken }, "{method}");
    }
    let (two, of_them) = (mute().await, mute().await);
    let (_proxy, browser) = before(&[two.0, of_them.0]).await;
    assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
    assert_eq!(two.1.load(Ordering::Relaxed) + of_them.1.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn partial_response_is_not_retried() {
    let (raw, upstream) = (RawUpstream::start().await, Upstream::start());
    let (_proxy, browser) = before(&[format!("http://{}", raw.address), upstream.url()]).await;
    let broken = tokio::spawn(async move {
        let (mut connection, _) = raw.head().await;
        connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-").await.unwrap();
    });
    let mut statuses = Vec::new();
    while !broken.is_finished() {
        statuses.push(browser.navigate("/", &Script::new()).await.status.as_u16());
    }
    broken.await.unwrap();
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 1, "{statuses:?}");
}

#[tokio::test]
async fn concurrent_upstream_requests_are_limited() {
    let upstream = Upstream::start();
    let route = "[[route]]\nupstream = \"UPSTREAM\"\nupstream_requests = 2\nconnect_timeout = \"";
    let patient = Cloakroom::with(&upstream, &format!("{route}20s\"\n")).await;
    let waiting = |gate: &str| {
        let (browser, script) = (Browser::new(&patient), Script::new().wait(gate));
        tokio::spawn(async move { browser.navigate("/", &script).await.status })
    };
    let first = [waiting("first"), waiting("first")];
    upstream.arrived("first", 2).await;
    let second = [waiting("second"), waiting("second")];
    upstream.open("first");
    for page in first {
        assert_eq!(page.await.unwrap(), 200);
    }
    upstream.arrived("second", 2).await;
    upstream.open("second");
    for page in second {
        assert_eq!(page.await.unwrap(), 200);
    }
    let hasty = Cloakroom::with(&upstream, &format!("{route}50ms\"\n")).await;
    let held = [0, 1].map(|_| {
        let (browser, script) = (Browser::new(&hasty), Script::new().wait("held"));
        tokio::spawn(async move { browser.navigate("/", &script).await.status })
    });
    upstream.arrived("held", 2).await;
    let refused = Browser::new(&hasty).navigate("/", &Script::new()).await;
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (503, Some("1")));
    upstream.open("held");
    for page in held {
        assert_eq!(page.await.unwrap(), 200);
    }
    assert_eq!(Browser::new(&hasty).navigate("/", &Script::new()).await.status, 200);
}

#[tokio::test]
async fn unhealthy_upstream_gets_no_requests() {
    let (well, ill) = (Upstream::start(), RawUpstream::start().await);
    let status = Arc::new(std::sync::Mutex::new("503 Service Unavailable"));
    let (ill_url, pages) = (format!("http://{}", ill.address), Arc::new(AtomicUsize::new(0)));
    let (said, count) = (Arc::clone(&status), Arc::clone(&pages));
    tokio::spawn(async move {
        loop {
            let (mut connection, head) = ill.head().await;
            let status = if head.starts_with("GET /healthz?deep HTTP/1.1\r\n") {
                *said.lock().unwrap()
            } else {
                count.fetch_add(1, Ordering::Relaxed);
                "200 OK"
            };
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    });
    let toml = format!(
        "[[route]]\nupstream = [\"{}\", \"{ill_url}\"]\nhealth_path = \"/healthz?deep\"\nhealth_interval = \"50ms\"\n",
        well.url()
    );
    let proxy = Cloakroom::with(&well, &toml).await;
    let browser = Browser::new(&proxy);
    let state = |well: u8| {
        let line = format!("cloakroom_upstream_healthy{{upstream=\"{ill_url}\"}} {well}\n");
        proxy.metrics().text().contains(&line)
    };
    browser.navigate("/", &Script::new()).await;
    crate::support::until("it is known to be ill", || state(0)).await;
    let served = async || {
        let before = pages.load(Ordering::Relaxed);
        for _ in 0..20 {
            Browser::new(&proxy).navigate("/", &Script::new()).await;
        }
        pages.load(Ordering::Relaxed) - before
    };
    assert_eq!(served().await, 0, "what one worker has found holds for all");
    *status.lock().unwrap() = "204 No Content";
    crate::support::until("it is known to be well", || state(1)).await;
    assert!(served().await > 0);
}

const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A site that keeps its connections open, and whose listener closes once one of them has a second request. That request
/// gets its response when the test says so.
struct Closing {
    address: SocketAddr,
    held: Arc<Notify>,
    release: Arc<Notify>,
}

impl Closing {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = Self { address, held: Arc::default(), release: Arc::default() };
        let (held, release) = (Arc::clone(&site.held), Arc::clone(&site.release));
        let (second, mut seconds) = tokio::sync::mpsc::channel::<TcpStream>(1);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut kept = loop {
                tokio::select! {
                    kept = seconds.recv() => break kept.unwrap(),
                    accepted = listener.accept() => {
                        let (mut connection, _) = accepted.unwrap();
                        let second = second.clone();
                        connections.spawn(async move {
                            read_until(&mut connection, "\r\n\r\n").await;
                            connection.write_all(EMPTY).await.unwrap();
                            let mut first = [0];
                            // Closed by the proxy, or the next request.
                            if connection.peek(&mut first).await.unwrap_or(0) > 0 {
                                read_until(&mut connection, "\r\n\r\n").await;
                                let _ = second.try_send(connection);
                            }
                        });
                    }
                }
            };
            drop((listener, connections));
            held.notify_one();
            release.notified().await;
            kept.write_all(EMPTY).await.unwrap();
            // It stays open.
            let _ = kept.read_to_end(&mut Vec::new()).await;
        });
        site
    }
}

/// A connection that was open before does not show that the site accepts new ones.
#[tokio::test]
async fn kept_connection_does_not_end_an_ejection() {
    let (closing, other) = (Closing::start().await, Upstream::start());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n[[route]]\n\
         upstream = [\"http://{}\", \"{}\"]\nupstream_idle_timeout = \"10m\"\n",
        closing.address,
        other.url()
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let visit = async || exchange(serving.public, request).await;
    let is_healthy = async || {
        let metrics = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = exchange(serving.admin, metrics).await;
        let series =
            format!("cloakroom_upstream_healthy{{upstream=\"http://{}\"}} ", closing.address);
        text.split(&series).nth(1).unwrap().starts_with('1')
    };
    let deadline = Instant::now() + PATIENCE;
    let mut visits = JoinSet::new();
    let held = closing.held.notified();
    tokio::pin!(held);
    while timeout(Duration::from_millis(10), &mut held).await.is_err() {
        assert!(Instant::now() < deadline, "a connection is used again");
        visits.spawn(exchange(serving.public, request));
    }
    // Several at a time, since a busy upstream gets fewer requests. None fails: the other upstream gets it.
    while is_healthy().await {
        assert!(Instant::now() < deadline, "it is ejected");
        let batch: Vec<_> = (0..8).map(|_| visit()).collect();
        for page in join_all(batch).await {
            assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
        }
    }
    closing.release.notify_one();
    while let Some(page) = visits.join_next().await {
        assert!(page.unwrap().starts_with("HTTP/1.1 200 "));
    }
    assert!(!is_healthy().await, "the response came on a kept connection");
    assert!(!program.log().contains("upstream recovered"), "{}", program.log());
    // A listener at the same place, while the kept connection stays open.
    let listener = TcpListener::bind(closing.address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_until(&mut connection, "\r\n\r\n").await;
                connection.write_all(EMPTY).await.unwrap();
            });
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while !is_healthy().await {
        assert!(Instant::now() < deadline, "it recovers by a new connection");
        visit().await;
    }
    program.wait_for_log("upstream recovered").await;
}
