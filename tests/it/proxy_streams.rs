//! Streamed bodies, and upstreams that fail.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{RawUpstream, exchange, read_all, read_until};
use crate::support::{Browser, Cloakroom, Script, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn bodies_are_streamed() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    client
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        )
        .await
        .unwrap();
    let (mut connection, _) = upstream.head().await;
    read_until(&mut connection, "first").await;
    client.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut connection, "0\r\n\r\n").await;
    connection
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await
        .unwrap();
    read_until(&mut client, "hello\r\n").await;
    connection.write_all(b"5\r\nworld\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut client, "world\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn slow_reader_slows_the_upstream() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    let chunk = vec![b'x'; 64 * 1024];
    let mut written = 0;
    // Only the socket buffers hold data; the proxy adds none of its own.
    while let Ok(wrote) =
        tokio::time::timeout(Duration::from_millis(500), connection.write(&chunk)).await
    {
        written += wrote.unwrap();
        assert!(written < 64 << 20, "the proxy holds {written} bytes");
    }
    let mut read = vec![0; 1 << 20];
    assert!(client.read(&mut read).await.unwrap() > 0);
}

#[tokio::test]
async fn truncated_body_never_ends_cleanly() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
    for head in
        ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
        client.write_all(GET.as_bytes()).await.unwrap();
        let (mut connection, _) = upstream.head().await;
        connection.write_all(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes()).await.unwrap();
        drop(connection);
        let answer = read_all(&mut client).await;
        assert!(answer.contains("half") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn client_disconnect_ends_the_upstream_request() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    drop(client);
    assert_eq!(read_all(&mut connection).await, "");
}

#[tokio::test]
async fn patch_is_applied_after_client_disconnect() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "header_exchange = true\n", "").await;
    let browser = Browser::new(&cloakroom);
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Session-Patch: {\"values\": {\"a\": 1}}\r\n\r\n";
    connection.write_all(answer.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    drop(client);
    let cookie = head.split("__Host-id=").nth(1).unwrap().split(';').next().unwrap();
    browser.set_cookie(Some(cookie));
    let id = cloakroom.service("GET", "", "").await.json()["sessions"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        cloakroom.service("GET", &format!("/{id}/values"), "").await.json(),
        json!({"a": 1})
    );
}

#[tokio::test]
async fn failed_upstreams_give_error_pages() {
    let upstream = RawUpstream::start().await;
    let cloakroom =
        Cloakroom::for_site(upstream.address, "response_timeout = \"200ms\"\n", "").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = Cloakroom::for_site(nobody, "", "").await;
    let malformed = async |bytes: &str| {
        let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nConnection: close\r\n\r\n").await.unwrap();
        let (mut connection, _) = upstream.head().await;
        connection.write_all(bytes.as_bytes()).await.unwrap();
        let answer = read_all(&mut client).await;
        drop(connection);
        answer
    };
    for (answer, status) in [
        (malformed("").await, "504"),
        (malformed("nonsense\r\n\r\n").await, "502"),
        (malformed("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx").await, "502"),
        (exchange(down.public(), "GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nConnection: close\r\n\r\n").await, "502"),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        for expected in ["application/problem+json", "cache-control: no-store", "x-content-type-options: nosniff"] {
            assert!(answer.contains(expected), "{expected}: {answer}");
        }
        assert!(!answer.contains("127.0.0.1") && !answer.to_lowercase().contains("cloakroom"), "{answer}");
    }
    let page =
        Browser::new(&down).send("GET", "/", &[("accept", "text/html")], &Script::new()).await;
    assert_eq!(
        (page.status.as_u16(), page.header("content-type")),
        (502, Some("text/html; charset=utf-8"))
    );
}

#[tokio::test]
async fn responses_without_body_stay_empty() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&cloakroom);
    for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
        let page = browser.send(method, "/", &[], &Script::new().status(status)).await;
        assert_eq!((page.status.as_u16(), page.body.as_str()), (status, ""), "{method} {status}");
    }
    let heads = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {}\r\n\r\n", "x".repeat(40_000));
    assert!(exchange(cloakroom.public(), &heads).await.starts_with("HTTP/1.1 431"));
}
