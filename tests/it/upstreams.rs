//! Several upstreams for one route.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::support::raw::RawUpstream;
use crate::support::{Browser, Cloakroom, Script, Upstream};

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
