//! The drain: requests in flight at a shutdown are completed. The cases are those of linkerd2-proxy's `shutdown.rs`;
//! those of tunnels are with the tunnels.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::client::{self, Target};
use cloakroom::server::Tasks;
use http::Response;
use http::uri::PathAndQuery;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::frames::{ACK, END_STREAM, Frames, GOAWAY, PING, StreamEnd};
use crate::support::raw::{read_all, read_until};
use crate::support::{Browser, Cloakroom, PATIENCE, Program, Script, Upstream, until};

#[tokio::test]
async fn draining_requests_still_reach_the_api() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    let visit = Script::new().call("POST", "/values/visits/increment", "");
    browser.navigate("/", &visit).await;
    let slow = visit.wait_before("calls");
    let page = async {
        let page = browser.navigate("/", &slow).await;
        assert_eq!(page.last().json(), json!(2), "{:?}", page.last());
    };
    let (public, admin) = (cloakroom.public(), cloakroom.admin());
    let drain = async {
        upstream.arrived("calls", 1).await;
        let stopped = cloakroom.stop();
        let open = async {
            // The drain has begun once connections are refused.
            while TcpStream::connect(public).await.is_ok() {
                tokio::task::yield_now().await;
            }
            let ready = get(admin, "/ready").await;
            assert_eq!(ready.status(), 503);
            assert_eq!(ready.body().as_ref(), b"draining\n");
            upstream.open("calls");
        };
        let (drained, ()) = tokio::join!(stopped, open);
        assert!(drained);
    };
    tokio::join!(page, drain);
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

async fn begun(address: SocketAddr) {
    until("the listener is closed", || std::net::TcpStream::connect(address).is_err()).await;
}

#[tokio::test]
async fn drain_closes_http1_connections() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let public = cloakroom.public();
    let request = |script: &Script| {
        let script = serde_json::to_string(script).unwrap();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Script: {script}\r\n\r\n")
    };
    let mut idle = TcpStream::connect(public).await.unwrap();
    let page = Script { body: Some("over".to_owned()), ..Script::new() };
    idle.write_all(request(&page).as_bytes()).await.unwrap();
    read_until(&mut idle, "over").await;
    let mut busy = TcpStream::connect(public).await.unwrap();
    busy.write_all(request(&page.wait("page")).as_bytes()).await.unwrap();
    upstream.arrived("page", 1).await;
    let rest = async {
        begun(public).await;
        assert_eq!(read_all(&mut idle).await, "");
        upstream.open("page");
        let answer = read_all(&mut busy).await;
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nover"), "{answer}");
    };
    let (drained, ()) = tokio::join!(cloakroom.stop(), rest);
    assert!(drained);
}

#[tokio::test]
async fn drain_finishes_http2_streams() {
    let upstream = Upstream::start();
    let h2c = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let cloakroom = Cloakroom::with(&upstream, h2c).await;
    let public = cloakroom.public();
    let script = serde_json::to_string(&Script::new().wait("stream")).unwrap();
    let mut client = Frames::connect(public).await;
    client.open(1, &[&GET[..], &[("x-script", &script)]].concat(), END_STREAM).await;
    upstream.arrived("stream", 1).await;
    let rest = async {
        begun(public).await;
        let (mut went_away, mut whole) = (false, false);
        while let Some(frame) = client.next().await {
            match frame.kind {
                GOAWAY if !went_away => {
                    went_away = true;
                    upstream.open("stream");
                }
                // The connection closes after the client had time to receive the GOAWAY.
                PING if frame.flags & ACK == 0 => {
                    client.send(PING, ACK, 0, &frame.payload).await;
                }
                _ if frame.stream == 1 => {
                    assert!(went_away, "it waits at the gate");
                    whole |= frame.flags & END_STREAM != 0;
                }
                _ => {}
            }
        }
        assert!(went_away && whole);
    };
    let (drained, ()) = tokio::join!(cloakroom.stop(), rest);
    assert!(drained);
}

#[tokio::test]
async fn vanished_http2_client_does_not_delay_drain() {
    let upstream = Upstream::start();
    let h2c =
        "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n[limits]\ndrain_timeout = \"1h\"\n";
    let cloakroom = Cloakroom::with(&upstream, h2c).await;
    let mut client = Frames::connect(cloakroom.public()).await;
    client.open(1, &GET, END_STREAM).await;
    assert_eq!(client.ended(1).await, StreamEnd::Status(Some(200)));
    // It does not answer pings.
    let stopped = tokio::time::timeout(PATIENCE, cloakroom.stop()).await;
    assert_eq!(stopped, Ok(true), "and that is no cut");
}

#[tokio::test]
async fn drain_timeout_aborts_requests() {
    let upstream = Upstream::start();
    let soon = "[limits]\ndrain_timeout = \"200ms\"\n";
    let cloakroom = Cloakroom::with(&upstream, soon).await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    let script = serde_json::to_string(&Script::new().wait("never")).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Script: {script}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived("never", 1).await;
    assert!(!cloakroom.stop().await);
    assert_eq!(read_all(&mut client).await, "");
    upstream.open("never");
}

/// Waits until the admin listener of a process that shuts down exposes a series.
async fn exposes(admin: SocketAddr, series: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = get(admin, "/metrics").await;
        let text = std::str::from_utf8(page.body()).unwrap();
        if text.lines().any(|line| line == series) {
            return;
        }
        assert!(Instant::now() < deadline, "{series} is not in\n{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn metrics_show_the_drain() {
    let upstream = Upstream::start();
    let start = |predrain: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[limits]\npredrain = \"{predrain}\"\n\
             drain_timeout = \"1d\"\n[store]\nurl = \"memory:\"\n[[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        std::fs::write(&file, text).unwrap();
        (Program::start(&file), directory)
    };
    // During predrain, with the public listener open.
    let (mut program, _directory) = start("1d");
    let serving = program.serving().await;
    exposes(serving.admin, "cloakroom_draining 0").await;
    program.signal("-TERM");
    exposes(serving.admin, "cloakroom_draining 1").await;
    TcpStream::connect(serving.public).await.unwrap();
    program.signal("-TERM");
    assert!(!program.ended().await.success());
    // While requests are finished, with the public listener closed.
    let (mut program, _directory) = start("0s");
    let serving = program.serving().await;
    let mut client = TcpStream::connect(serving.public).await.unwrap();
    let script = serde_json::to_string(&Script::new().wait("page")).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Script: {script}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived("page", 1).await;
    program.signal("-TERM");
    begun(serving.public).await;
    exposes(serving.admin, "cloakroom_draining 1").await;
    upstream.open("page");
    assert!(read_all(&mut client).await.starts_with("HTTP/1.1 200 "));
    assert!(program.ended().await.success());
}

async fn get(address: SocketAddr, path: &'static str) -> Response<Bytes> {
    let target: Target = format!("http://{address}").parse().unwrap();
    let path = PathAndQuery::from_static(path);
    client::get(&target, path, &Tasks::new(), 1 << 20, PATIENCE).await.unwrap()
}
