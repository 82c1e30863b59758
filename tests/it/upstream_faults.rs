//! Upstreams that are unreachable, slow or unusual.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::raw::{RawUpstream, exchange, read_all, read_until};
use crate::support::{Browser, Cloakroom, Script, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn dropped_packets_cost_the_connect_timeout() {
    // With a full backlog, the kernel drops the packets of new connections.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(connection)) =
        timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        held.push(connection);
    }
    let proxy = Cloakroom::for_site(address, "connect_timeout = \"300ms\"\n", "").await;
    let began = Instant::now();
    let answer = exchange(proxy.public(), GET).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn dripping_head_times_out() {
    let upstream = RawUpstream::start().await;
    let proxy = Cloakroom::for_site(upstream.address, "response_timeout = \"400ms\"\n", "").await;
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    let drip = async {
        for byte in "HTTP/1.1 200 OK\r\nX-Long: ".bytes().chain(std::iter::repeat(b'x')) {
            if connection.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (answer, ()) = tokio::join!(read_all(&mut client), drip);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
}

#[tokio::test]
async fn stalled_body_ends_but_dripping_body_does_not() {
    let upstream = RawUpstream::start().await;
    let route = "stream_idle_timeout = \"400ms\"\n";
    let proxy = Cloakroom::for_site(upstream.address, route, "").await;
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n").await.unwrap();
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        connection.write_all(b"x").await.unwrap();
    }
    let answer = read_all(&mut client).await;
    assert!(answer.ends_with("\r\n\r\nxxxxxxxxxx"), "ten of twenty, and the end: {answer}");
    assert_eq!(read_all(&mut connection).await, "", "the upstream hears of it");
}

/// The upstream responds before the upload is complete, and reads no more.
#[tokio::test]
async fn early_response_with_half_close_is_forwarded() {
    let upstream = RawUpstream::start().await;
    let proxy = Cloakroom::for_site(upstream.address, "", "").await;
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nfirst")
        .await
        .unwrap();
    let (mut connection, _) = upstream.head().await;
    connection
        .write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nno!")
        .await
        .unwrap();
    connection.shutdown().await.unwrap();
    let answer = read_until(&mut client, "no!").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // The rest of the upload is discarded; the next request uses another connection.
    let mut another = TcpStream::connect(proxy.public()).await.unwrap();
    another.write_all(GET.as_bytes()).await.unwrap();
    let (mut fresh, _) = upstream.head().await;
    fresh.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert!(read_all(&mut another).await.ends_with("ok"));
}

#[tokio::test]
async fn ten_thousand_cookies_are_a_bad_gateway() {
    let upstream = RawUpstream::start().await;
    let proxy = Cloakroom::for_site(upstream.address, "", "").await;
    for (cookies, status) in [(50, "200"), (10_000, "502")] {
        let mut client = TcpStream::connect(proxy.public()).await.unwrap();
        client.write_all(GET.as_bytes()).await.unwrap();
        let (mut connection, _) = upstream.head().await;
        let lines: String = (0..cookies).map(|n| format!("Set-Cookie: c{n}=v\r\n")).collect();
        let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
        let _ = connection.write_all(head.as_bytes()).await;
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{cookies}: {answer}");
        assert_eq!(answer.matches("set-cookie: c").count(), if cookies == 50 { 50 } else { 0 });
    }
}

/// Many concurrent calls of one request, and calls after its response has ended.
#[tokio::test]
async fn concurrent_api_calls_are_all_served() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, "[api]\nrequest_token_linger = \"1s\"\n").await;
    let browser = Browser::new(&proxy);
    let page = {
        let browser = browser.clone();
        let begins = Script::new().call("PUT", "/values/n", "0").wait("held");
        tokio::spawn(async move { browser.navigate("/", &begins).await })
    };
    upstream.arrived("held", 1).await;
    let token = upstream.seen()[0]
        .headers
        .iter()
        .find_map(|(name, value)| (name == "x-session-token").then(|| value.clone()))
        .unwrap();
    let mut calls = tokio::task::JoinSet::new();
    let url = format!("http://{}/_session", proxy.api());
    for _ in 0..100 {
        let (url, token, tasks) = (url.clone(), token.clone(), proxy.tasks.clone());
        calls.spawn(async move {
            let call = crate::support::Call {
                method: "POST".to_owned(),
                path: "/values/n/increment".to_owned(),
                headers: Vec::new(),
                body: String::new(),
            };
            for _ in 0..20 {
                let called = crate::support::call(&url, &token, &call, &tasks).await;
                assert_eq!(called.status, 200, "{called:?}");
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    assert_eq!(proxy.call(&token, ("GET", "/values/n", "")).await.json(), json!(2000));
    upstream.open("held");
    assert_eq!(page.await.unwrap().status.as_u16(), 200);
    // Calls are accepted for a while after the response; then the token is unknown.
    assert_eq!(proxy.call(&token, ("GET", "", "")).await.status, 200);
    proxy.advance(Duration::from_secs(2));
    assert_eq!(proxy.call(&token, ("GET", "", "")).await.status, 410);
}

/// A log that is not read, or whose reader has exited, delays no request.
#[tokio::test]
async fn blocked_log_delays_no_request() {
    let upstream = Upstream::start();
    for keeps_reader in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (public, admin) = (free(), free());
        let text = format!(
            "[[listen]]\naddress = \"{public}\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"{admin}\"\n[store]\nurl = \"memory:\"\n[log]\nlevel = \"trace\"\n\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        std::fs::write(&file, text).unwrap();
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_cloakroom"))
            .args(["run", "--config", file.to_str().unwrap()])
            .env("STATE_DIRECTORY", directory.path())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let log = program.stderr.take().unwrap();
        let _reader = keeps_reader.then_some(log);
        crate::support::until("it listens", || std::net::TcpStream::connect(public).is_ok()).await;
        let mut client = TcpStream::connect(public).await.unwrap();
        let path = "x".repeat(20_000);
        for _ in 0..50 {
            let request = format!(
                "GET /{path} HTTP/1.1\r\nHost: a\r\nX-Script: {{\"calls\":[],\"headers\":[],\"body\":\"ok\"}}\r\n\r\n"
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = read_until(&mut client, "\r\n\r\nok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let metrics = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert!(exchange(admin, metrics).await.contains("cloakroom_log_lines_dropped_total"));
        program.kill().unwrap();
        program.wait().unwrap();
    }
}
