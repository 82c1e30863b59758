//! What a client may take.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::raw::{exchange, read_until};
use crate::support::{Cloakroom, Upstream};

#[tokio::test]
async fn an_address_has_so_many_connections_and_no_more() {
    let upstream = Upstream::start();
    let toml = "[limits]\nconnections_per_address = 3\n";
    let proxy = Cloakroom::with(&upstream, toml).await;
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(proxy.public()).await.unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut connection, "\r\n\r\n").await;
        served.push(connection);
    }
    // The reset may come before the connection is seen to be there.
    if let Ok(mut refused) = TcpStream::connect(proxy.public()).await {
        assert!(refused.read(&mut [0; 1]).await.is_err());
    }
    // The API is a place of its own.
    let answer =
        exchange(proxy.api(), "GET /_session HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.await.starts_with("HTTP/1.1 401"));
    drop(served.pop());
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    loop {
        // As soon as the other's end is seen.
        let Ok(mut connection) = TcpStream::connect(proxy.public()).await else { continue };
        let _ = connection.write_all(ask.as_bytes()).await;
        let mut answer = Vec::new();
        if connection.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 200")
        {
            break;
        }
    }
}

#[tokio::test]
async fn a_body_is_as_large_as_its_route_takes() {
    let upstream = Upstream::start();
    let routes = "[[route]]\nupstream = \"UPSTREAM\"\nmax_body = \"10B\"\n\
                  [[route]]\npath = \"/any\"\nupstream = \"UPSTREAM\"\n";
    let proxy = Cloakroom::with(&upstream, routes).await;
    let ask = |path: &str, framing: &str, body: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n");
        let request = format!("{head}Connection: close\r\n{framing}\r\n\r\n{body}");
        let address = proxy.public();
        async move { exchange(address, &request).await }
    };
    for (path, framing, body, status) in [
        ("/", "Content-Length: 10", "0123456789", "200"),
        ("/", "Content-Length: 11", "0123456789a", "413"),
        ("/any", "Content-Length: 11", "0123456789a", "200"),
        ("/", "Transfer-Encoding: chunked", "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n", "200"),
        ("/", "Transfer-Encoding: chunked", "5\r\n01234\r\n6\r\n56789a\r\n0\r\n\r\n", "413"),
    ] {
        let answer = ask(path, framing, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{framing} {body}: {answer}");
        assert_eq!(answer.contains("\"body_too_large\""), status == "413", "{answer}");
    }
    // What says that it is too large is not asked for at all.
    let expects = "Content-Length: 11\r\nExpect: 100-continue";
    let answer = ask("/", expects, "").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let bodies: Vec<String> = upstream.seen().into_iter().map(|seen| seen.body).collect();
    // What was cut is no body to the site.
    assert_eq!(bodies, ["0123456789", "0123456789a", "0123456789", ""]);
}
