//! Limits on clients.

use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::raw::{exchange, read_until};
use crate::support::{Browser, Cloakroom, Program, Script, Upstream, until};

#[tokio::test]
async fn connections_per_address_are_limited() {
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
    // The reset may arrive before the connection is established for the client.
    if let Ok(mut refused) = TcpStream::connect(proxy.public()).await {
        assert!(refused.read(&mut [0; 1]).await.is_err());
    }
    // The API has a limit of its own.
    let answer = exchange(
        proxy.api(),
        "GET /_session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.await.starts_with("HTTP/1.1 401"));
    drop(served.pop());
    let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    loop {
        // Once the server has noticed the other's close.
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
async fn body_size_is_limited_by_route() {
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
    // A body that announces too large a size is not requested at all.
    let expects = "Content-Length: 11\r\nExpect: 100-continue";
    let answer = ask("/", expects, "").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let bodies: Vec<String> = upstream.seen().into_iter().map(|seen| seen.body).collect();
    // The site does not receive a truncated body as a complete one.
    assert_eq!(bodies, ["0123456789", "0123456789a", "0123456789", ""]);
}

/// The state kept for late calls expires by itself, without further requests.
#[tokio::test]
async fn finished_requests_expire() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::start(&upstream).await;
    let lingering = |count: usize| {
        let metrics = proxy.metrics().clone();
        let line = format!("cloakroom_finished_requests {count}\n");
        async move { until(&line, || metrics.text().contains(&line)).await }
    };
    let write = Script::new().call("PUT", "/values/x", "1");
    for _ in 0..20 {
        Browser::new(&proxy).navigate("/", &write).await;
    }
    lingering(20).await;
    let seen = upstream.take_seen().pop().unwrap();
    let token = seen.headers.into_iter().find(|(name, _)| name == "x-session-token").unwrap().1;
    proxy.advance(Duration::from_secs(59));
    let late = proxy.call(&token, ("GET", "/values", "")).await;
    assert_eq!((late.status, late.json()), (200, serde_json::json!({"x": 1})));
    lingering(20).await;
    proxy.advance(Duration::from_secs(2));
    let late = proxy.call(&token, ("GET", "/values", "")).await;
    assert_eq!((late.status, late.code().as_str()), (410, "request_gone"));
    proxy.advance(Duration::from_secs(1));
    lingering(0).await;
    let late = proxy.call(&token, ("GET", "/values", "")).await;
    assert_eq!((late.status, late.code().as_str()), (410, "request_gone"));
}

/// EMFILE never occurs: new clients wait, while the others, their upstreams, the API and the admin listener are served.
#[tokio::test]
async fn last_descriptors_are_reserved() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"sqlite:s.db\"\n\
         [[route]]\nupstream = \"{}\"\nupstream_idle_timeout = \"0s\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let serving = program.serving().await;
    let limit = ["--nofile=200".to_owned(), format!("--pid={}", program.id())];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    let mut served = TcpStream::connect(serving.public).await.unwrap();
    let ask = async |connection: &mut TcpStream| {
        connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let answer = read_until(connection, "\r\n\r\n").await;
        let length = answer.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        connection.read_exact(&mut body).await.unwrap();
        answer
    };
    ask(&mut served).await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(TcpStream::connect(serving.public).await.unwrap());
    }
    program.wait_for_log("out of file descriptors; accepting no connections").await;
    let metrics = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let metrics = exchange(serving.admin, metrics).await;
    let paused = format!("cloakroom_accept_paused{{listener=\"{}\"}} ", serving.public);
    let workers: u32 =
        metrics.split(&paused).nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    assert!(workers > 0, "{metrics}");
    let now = "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    let now = exchange(serving.admin, now).await;
    assert!(now.contains(" are open, clients may use 100 of 200; "), "{now}");
    for _ in 0..20 {
        assert!(ask(&mut served).await.starts_with("HTTP/1.1 200"));
        let ready = "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert!(exchange(serving.admin, ready).await.starts_with("HTTP/1.1 200"));
        let call = "GET /_session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert!(exchange(serving.api, call).await.starts_with("HTTP/1.1 401"));
    }
    let mut late = TcpStream::connect(serving.public).await.unwrap();
    late.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let waited = timeout(Duration::from_millis(300), late.read(&mut [0; 1])).await;
    assert!(waited.is_err(), "it waits its turn");
    drop(crowd);
    assert!(read_until(&mut late, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

/// Connections that are refused before there is a request are counted too.
#[tokio::test]
async fn aborted_connections_are_counted_by_reason() {
    let upstream = Upstream::start();
    let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n\
                [limits]\nheader_timeout = \"200ms\"\n";
    let proxy = Cloakroom::with(&upstream, toml).await;
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "x".repeat(50_000));
    for (request, status) in [("nonsense\r\n\r\n", "400"), (big.as_str(), "431"), ("GET / HT", "")]
    {
        let answer = exchange(proxy.public(), request).await;
        assert!(answer.is_empty() == status.is_empty() && answer.contains(status), "{answer}");
    }
    let window = crate::support::frames::WINDOW_UPDATE;
    let mut broken = crate::support::frames::Frames::connect(proxy.public()).await;
    broken.send(window, 0, 0, &[0; 4]).await;
    assert!(!broken.is_alive().await);
    let get = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    exchange(proxy.public(), get).await;
    let mut open = TcpStream::connect(proxy.public()).await.unwrap();
    open.write_all(get.replace("close", "keep-alive").as_bytes()).await.unwrap();
    read_until(&mut open, "\r\n\r\n").await;
    let listener = format!("listener=\"{}\"", proxy.public());
    let upstream_label = format!("upstream=\"{}\"", upstream.url());
    for line in [
        format!("connections_aborted_total{{{listener},reason=\"malformed\"}} 1"),
        format!("connections_aborted_total{{{listener},reason=\"too_large\"}} 1"),
        format!("connections_aborted_total{{{listener},reason=\"header_timeout\"}} 1"),
        format!("connections_aborted_total{{{listener},reason=\"http2\"}} 1"),
        format!("connections_total{{{listener}}} 6"),
        format!("connections_open{{{listener}}} 1"),
        format!("upstream_requests_total{{{upstream_label},outcome=\"responded\"}} 2"),
        format!("upstream_connections_total{{{upstream_label}}} "),
        format!("upstream_requests_in_flight{{{upstream_label}}} 0"),
    ] {
        let line = format!("cloakroom_{line}");
        until(&line, || proxy.metrics().text().contains(&line)).await;
    }
}

/// A byte now and then is not enough if there is a minimum rate.
#[tokio::test]
async fn upload_rate_has_a_minimum() {
    let upstream = Upstream::start();
    let toml = "[limits]\nbody_idle_timeout = \"400ms\"\n\
                [[route]]\nupstream = \"UPSTREAM\"\n\
                [[route]]\npath = \"/any\"\nupstream = \"UPSTREAM\"\nmin_body_rate = \"0B\"\n\
                [[route]]\npath = \"/rated\"\nupstream = \"UPSTREAM\"\nmin_body_rate = \"100B\"\n";
    let proxy = Cloakroom::with(&upstream, toml).await;
    // Every 50 ms so many bytes: of each second's hundred, a fifth, or twice as many; by default 500 are asked for.
    for (path, bytes, status) in [
        ("/any", 1, "200"),
        ("/rated", 1, "400"),
        ("/rated", 10, "200"),
        ("/", 10, "400"),
        ("/", 50, "200"),
    ] {
        let mut client = TcpStream::connect(proxy.public()).await.unwrap();
        let length = 20 * bytes;
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = client.write_all(&vec![b'x'; bytes]).await;
        }
        let answer = read_until(&mut client, "\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {bytes}: {answer}");
    }
}
