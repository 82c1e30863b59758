//! Streams that are silent in one direction or in both.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::duplex::{Connection, Site, Version};
use crate::support::frames::{END_STREAM, Frames, HEADERS, RST_STREAM, SETTINGS};
use crate::support::raw::{RawUpstream, read_until};
use crate::support::{Browser, Cloakroom, Program, Script, Upstream, until};

/// A client's and a site's protocol.
const PAIRS: [(Version, Version); 4] = [
    (Version::Http1, Version::Http1),
    (Version::Http2, Version::Http1),
    (Version::Http1, Version::Http2),
    (Version::Http2, Version::Http2),
];

/// Timeout of uploads and slow readers in these tests, and a silence that is longer.
const LIMITS: &str = "[limits]\nbody_idle_timeout = \"200ms\"\n";
const LONG: Duration = Duration::from_millis(700);

async fn proxy_before(site: &Site, version: Version, lines: &str) -> Cloakroom {
    with_pages(&Upstream::start(), site, version, lines).await
}

async fn with_pages(pages: &Upstream, site: &Site, version: Version, lines: &str) -> Cloakroom {
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let toml = format!("{listen}{LIMITS}{}{lines}", site.route(version));
    Cloakroom::with(pages, &toml).await
}

async fn ended_for(proxy: &Cloakroom, reason: &str, count: usize) {
    let line = format!("cloakroom_responses_total{{end=\"{reason}\"}} {count}");
    until(&line, || proxy.metrics().text().lines().any(|found| found == line)).await;
}

#[tokio::test]
async fn quiet_streams_outlive_the_upload_limit() {
    for (client, version) in PAIRS {
        let mut site = Site::start(version).await;
        let proxy = proxy_before(&site, version, "").await;
        let mut connection = Connection::open(proxy.public(), client).await;
        let (upload, mut answer) = connection.ask("/events", None).await;
        let mut call = site.call().await;
        call.answer.send("data: 1\n\n").await;
        assert_eq!(answer.piece().await, "data: 1\n\n");
        assert!(answer.is_silent(LONG).await, "{client:?} {version:?}");
        call.answer.send("data: 2\n\n").await;
        assert_eq!(answer.piece().await, "data: 2\n\n", "{client:?} {version:?}");
        upload.send("late").await;
        assert_eq!(call.upload.piece().await, "late", "{client:?} {version:?}");
        drop(upload);
        assert!(call.upload.next().await.is_none(), "{client:?} {version:?}");
        drop(call);
        let end = answer.next().await;
        assert!(end.is_none(), "{client:?} {version:?}: {end:?}");
        ended_for(&proxy, "complete", 1).await;
    }
}

/// The request's body is silent and the response flows; then the other way round.
#[tokio::test]
async fn traffic_in_either_direction_keeps_streams_open() {
    for (client, version) in PAIRS {
        let mut site = Site::start(version).await;
        let proxy = proxy_before(&site, version, "stream_idle_timeout = \"600ms\"\n").await;
        let mut connection = Connection::open(proxy.public(), client).await;
        let (upload, mut answer) = connection.ask("/svc/Method", None).await;
        let mut call = site.call().await;
        for _ in 0..6 {
            assert!(answer.is_silent(Duration::from_millis(200)).await);
            call.answer.send("down").await;
            assert_eq!(answer.piece().await, "down", "{client:?} {version:?}");
        }
        for _ in 0..6 {
            assert!(answer.is_silent(Duration::from_millis(200)).await, "{client:?} {version:?}");
            upload.send("up").await;
            assert_eq!(call.upload.piece().await, "up", "{client:?} {version:?}");
        }
        drop(upload);
        assert!(call.upload.next().await.is_none(), "{client:?} {version:?}");
        drop(call);
        assert!(answer.next().await.is_none(), "{client:?} {version:?}");
    }
}

#[tokio::test]
async fn silence_in_both_directions_ends_streams() {
    for (client, version) in PAIRS {
        let mut site = Site::start(version).await;
        let proxy = proxy_before(&site, version, "stream_idle_timeout = \"300ms\"\n").await;
        let mut connection = Connection::open(proxy.public(), client).await;
        let (_upload, mut answer) = connection.ask("/", None).await;
        let mut call = site.call().await;
        assert!(answer.is_aborted().await, "{client:?} {version:?}");
        call.upload.is_aborted().await;
        call.answer.wait_until_dropped().await;
        ended_for(&proxy, "idle", 1).await;
    }
}

#[tokio::test]
async fn access_log_has_the_stream_end() {
    let upstream = RawUpstream::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n[[route]]\n\
         upstream = \"http://{}\"\nstream_idle_timeout = \"200ms\"\n",
        upstream.address
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    let mut client = TcpStream::connect(serving.public).await.unwrap();
    client.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut site, _) = upstream.head().await;
    site.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").await.unwrap();
    read_until(&mut client, "data: 1").await;
    program.wait_for_log("end=\"idle\"").await;
}

/// A client that is slow to send is limited until the response's head has arrived, one that is slow to read always.
#[tokio::test]
async fn slow_readers_are_still_limited() {
    let upstream = RawUpstream::start().await;
    let listen = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let proxy = Cloakroom::for_site(upstream.address, "", &format!("{listen}{LIMITS}")).await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
    let flood = async |site: &mut TcpStream| {
        let chunk = vec![b'x'; 64 * 1024];
        while site.write_all(&chunk).await.is_ok() {}
    };

    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut site, _) = upstream.head().await;
    site.write_all(head).await.unwrap();
    flood(&mut site).await;
    ended_for(&proxy, "stalled", 1).await;
    let mut taken = Vec::new();
    let _ = client.read_to_end(&mut taken).await;
    assert!(taken.len() < 100_000_000);

    let mut client = Frames::connect(proxy.public()).await;
    // The client answers pings but opens no window.
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    client.open(1, &get, END_STREAM).await;
    let (mut site, _) = upstream.head().await;
    site.write_all(head).await.unwrap();
    flood(&mut site).await;
    let mut kinds = Vec::new();
    while kinds.last() != Some(&RST_STREAM) {
        let frame = client.next().await.expect("the connection lives on");
        kinds.extend((frame.stream == 1).then_some(frame.kind));
    }
    assert_eq!(kinds, [HEADERS, RST_STREAM]);
    ended_for(&proxy, "stalled", 2).await;
}

/// No connection has a quarter of the stalled streams that are allowed, and alone each would have half a minute.
#[tokio::test]
async fn stalled_streams_are_bounded_over_all_connections() {
    let upstream = Upstream::start();
    let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n[limits]\nconnections = 20\n";
    let proxy = Cloakroom::with(&upstream, toml).await;
    let metric = |name: &str| -> usize {
        let text = proxy.metrics().text();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
    };
    let stalled = || metric("cloakroom_stalled_streams ");
    assert_eq!(stalled(), 0);
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Frames::connect(proxy.public()).await;
        client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
        client.open(1, &get, END_STREAM).await;
        clients.push(client);
    }
    until("one of each connection is counted", || stalled() == 8).await;
    for client in &mut clients {
        for stream in [3, 5, 7] {
            client.open(stream, &get, END_STREAM).await;
        }
    }
    // A body of one piece is complete for the proxy once the piece waits for the client.
    let answered = || metric("cloakroom_responses_total{end=\"complete\"} ");
    until("half of all streams have ended", || answered() == 32 && stalled() <= 16).await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    drop(clients);
    until("none is left", || stalled() == 0).await;
}

#[tokio::test]
async fn logout_ends_event_streams() {
    for (client, version) in PAIRS {
        let mut site = Site::start(version).await;
        let lines = format!(
            "path = \"/bound\"\n{}path = \"/free\"\ntunnels = \"free\"\n\
             [[route]]\nupstream = \"UPSTREAM\"\n",
            site.route(version)
        );
        let pages = Upstream::start();
        let proxy = with_pages(&pages, &site, version, &lines).await;
        let browser = Browser::new(&proxy);
        let page = browser.navigate("/", &Script::new().call("PUT", "/values/cart", "[1]")).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let cookie = format!("__Host-id={}", browser.cookie().unwrap());
        let mut bound = Connection::open(proxy.public(), client).await;
        let mut free = Connection::open(proxy.public(), client).await;
        let mut stranger = Connection::open(proxy.public(), client).await;
        let (_up, mut bound) = bound.ask("/bound", Some(&cookie)).await;
        let mut bound_call = site.call().await;
        let (_up, mut free) = free.ask("/free", Some(&cookie)).await;
        let free_call = site.call().await;
        let (_up, mut stranger) = stranger.ask("/bound", None).await;
        let stranger_call = site.call().await;
        browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
        assert!(bound.is_aborted().await, "{client:?} {version:?}");
        bound_call.upload.is_aborted().await;
        bound_call.answer.wait_until_dropped().await;
        ended_for(&proxy, "session_ended", 1).await;
        for (call, answer) in [(free_call, &mut free), (stranger_call, &mut stranger)] {
            call.answer.send("data: 1\n\n").await;
            assert_eq!(answer.piece().await, "data: 1\n\n");
        }
    }
}
