//! Response framing: ambiguous responses. Each becomes a 502 or is forwarded unambiguously, its connection is not reused,
//! and the next client gets the response to its own request.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::raw::{RawUpstream, read_all};
use crate::support::{Cloakroom, Program};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const NEXT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe-next";

/// The response that the client receives.
enum Expected {
    /// An error page of the proxy.
    BadGateway,
    /// This body, complete.
    Body(&'static str),
    /// The head, and a body that clients recognise as incomplete.
    Truncated,
}

use Expected::{BadGateway, Body, Truncated};

struct Setup {
    upstream: RawUpstream,
    cloakroom: Cloakroom,
}

impl Setup {
    async fn start() -> Self {
        let upstream = RawUpstream::start().await;
        let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
        Self { upstream, cloakroom }
    }

    /// Responds to a client's request with `bytes`, and closes the connection if `ends`.
    async fn answer(&self, method: &str, bytes: &[u8], ends: bool) -> (String, TcpStream) {
        let mut client = TcpStream::connect(self.cloakroom.public()).await.unwrap();
        client.write_all(GET.replacen("GET", method, 1).as_bytes()).await.unwrap();
        let (mut connection, _) = self.upstream.head().await;
        // The proxy may close the connection before it has read everything.
        let _ = connection.write_all(bytes).await;
        if ends {
            let _ = connection.shutdown().await;
        }
        (read_all(&mut client).await, connection)
    }

    async fn check(&self, method: &str, bytes: &[u8], expected: &Expected) {
        let context = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let ends = !matches!(expected, Body(_));
        let (answer, connection) = self.answer(method, bytes, ends).await;
        match expected {
            BadGateway => assert!(answer.starts_with("HTTP/1.1 502"), "{context}: {answer}"),
            Truncated => {
                assert!(answer.starts_with("HTTP/1.1 200"), "{context}: {answer}");
                assert!(!is_whole(&answer), "{context}: {answer}");
            }
            Body(body) => {
                assert!(
                    answer.starts_with("HTTP/1.1 2") || answer.starts_with("HTTP/1.1 304"),
                    "{context}: {answer}"
                );
                let (head, got) = answer.split_once("\r\n\r\n").unwrap();
                let got = if head.contains("transfer-encoding: chunked") {
                    unchunked(got)
                } else {
                    got.to_owned()
                };
                assert_eq!(got, *body, "{context}: {answer}");
                assert!(!answer.contains("smuggled"), "{context}: {answer}");
            }
        }
        drop(connection);
        // On another connection: excess bytes on the first are not delivered.
        let (next, _) = self.answer("GET", NEXT.as_bytes(), false).await;
        assert!(next.ends_with("\r\n\r\nthe-next"), "after {context}: {next}");
    }
}

/// Returns whether a client would consider this response complete.
fn is_whole(answer: &str) -> bool {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with("0\r\n\r\n"),
    }
}

fn unchunked(body: &str) -> String {
    let mut rest = body;
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole += after.get(..size).unwrap();
        rest = after.get(size + 2..).unwrap();
    }
    whole
}

#[tokio::test]
async fn malformed_responses_are_bad_gateways() {
    let setup = Setup::start().await;
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes();
    let huge = format!("X-A: {}\r\nContent-Length: 2\r\n\r\nok", "x".repeat(2 << 20));
    for (bytes, expected) in [
        (ok("Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk"), BadGateway),
        (ok("Content-Length: 2, 3\r\n\r\nokk"), BadGateway),
        (ok("Content-Length: +2\r\n\r\nok"), BadGateway),
        (ok("Content-Length: 0x2\r\n\r\nok"), BadGateway),
        (ok("Content-Length: 18446744073709551618\r\n\r\nok"), BadGateway),
        (ok("X-A\r\nContent-Length: 2\r\n\r\nok"), BadGateway),
        (ok("X-A: a\u{0}b\r\nContent-Length: 2\r\n\r\nok"), BadGateway),
        (ok("X-A: a\r\n b\r\nContent-Length: 2\r\n\r\nok"), BadGateway),
        (ok(": x\r\nContent-Length: 2\r\n\r\nok"), BadGateway),
        (ok(&huge), BadGateway),
        (b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), BadGateway),
        (b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), BadGateway),
        (b"HTTP/1.1 099 Low\r\nContent-Length: 2\r\n\r\nok".to_vec(), BadGateway),
        (b"<html>of HTTP/0.9</html>".to_vec(), BadGateway),
        (b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(), BadGateway),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
                .to_vec(),
            BadGateway,
        ),
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec(),
            BadGateway,
        ),
        (b"".to_vec(), BadGateway),
    ] {
        setup.check("GET", &bytes, &expected).await;
    }
}

#[tokio::test]
async fn unambiguous_responses_are_forwarded() {
    let setup = Setup::start().await;
    let after = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    let chunks = "2\r\nok\r\n0\r\n\r\n";
    for (method, bytes, body) in [
        (
            "GET",
            format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok{after}"),
            "ok",
        ),
        (
            "GET",
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{after}"),
            "ok",
        ),
        (
            "GET",
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{after}"
            ),
            "ok",
        ),
        (
            "GET",
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n{chunks}{after}"
            ),
            "ok",
        ),
        ("HEAD", format!("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{after}"), ""),
        (
            "HEAD",
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{after}"),
            "",
        ),
        ("GET", format!("HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n{after}"), ""),
        (
            "GET",
            format!("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{after}"),
            "",
        ),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n{after}"), ""),
        (
            "GET",
            format!(
                "{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{after}",
                "HTTP/1.1 100 Continue\r\n\r\n".repeat(50)
            ),
            "ok",
        ),
        (
            "GET",
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{after}"
            ),
            "ok",
        ),
    ] {
        setup.check(method, bytes.as_bytes(), &Body(body)).await;
    }
}

/// RFC 9112, section 8: a body shorter than announced is incomplete.
#[tokio::test]
async fn truncated_responses_stay_truncated() {
    let setup = Setup::start().await;
    for head in [
        "Content-Length: 100\r\n\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZ\r\n",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nhalfX0\r\n\r\n",
    ] {
        setup.check("GET", format!("HTTP/1.1 200 OK\r\n{head}").as_bytes(), &Truncated).await;
    }
}

/// HTTP/1.0 has no chunked coding, so a truncated body ends with a reset: a close would mean that it is complete.
#[tokio::test]
async fn truncation_resets_http_1_0_clients() {
    let setup = Setup::start().await;
    let mut client = TcpStream::connect(setup.cloakroom.public()).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let (mut connection, _) = setup.upstream.head().await;
    connection
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        .await
        .unwrap();
    crate::support::raw::read_until(&mut client, "half").await;
    drop(connection);
    let end = tokio::io::AsyncReadExt::read(&mut client, &mut [0; 16]).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// Endless interim responses are a bad gateway, within the response timeout.
#[tokio::test]
async fn interim_responses_are_bounded() {
    let upstream = RawUpstream::start().await;
    let settings = "response_timeout = \"500ms\"\n";
    let cloakroom = Cloakroom::for_site(upstream.address, settings, "").await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    client.write_all(GET.as_bytes()).await.unwrap();
    let (mut connection, _) = upstream.head().await;
    let flood =
        async { while connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {} };
    let (answer, ()) = tokio::join!(read_all(&mut client), flood);
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
}

/// The bound is on bytes: pages with many `Link: preload` or `Set-Cookie` fields are ordinary.
#[tokio::test]
async fn many_response_fields_are_forwarded() {
    let setup = Setup::start().await;
    for count in [101, 1000, 1998] {
        let links: String =
            (0..count).map(|index| format!("Link: </{index}.png>; rel=preload\r\n")).collect();
        let head =
            format!("HTTP/1.1 200 OK\r\n{links}Set-Cookie: last=1\r\nContent-Length: 2\r\n\r\nok");
        let (answer, _) = setup.answer("GET", head.as_bytes(), false).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{count}: {answer}");
        assert_eq!(answer.matches("\r\nlink: </").count(), count);
        assert!(answer.contains("\r\nset-cookie: last=1\r\n") && answer.ends_with("ok"));
    }
    let short =
        format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", "A: b\r\n".repeat(1999));
    let (answer, _) = setup.answer("GET", short.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("\r\na: b").count(), 1999);
}

#[tokio::test]
async fn response_heads_beyond_128_kib_are_refused() {
    let setup = Setup::start().await;
    let head = |bytes: usize| {
        let (start, end) = ("HTTP/1.1 200 OK\r\n", "Content-Length: 2\r\n\r\n");
        let line = format!("Link: </{}>\r\n", "x".repeat(89));
        let mut lines = line.repeat((bytes - start.len() - end.len()) / line.len() - 1);
        let missing = bytes - start.len() - end.len() - lines.len();
        lines += &format!("X: {}\r\n", "x".repeat(missing - 5));
        let head = format!("{start}{lines}{end}");
        assert_eq!(head.len(), bytes);
        format!("{head}ok").into_bytes()
    };
    let limit = 128 * 1024;
    setup.check("GET", &head(limit), &Body("ok")).await;
    setup.check("GET", &head(limit + 1), &BadGateway).await;
}

/// hyper counts fields too, since it reserves memory for as many as it allows.
#[tokio::test]
async fn response_heads_beyond_2000_fields_are_refused() {
    let upstream = RawUpstream::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
         [[route]]\nupstream = \"http://{}\"\n",
        upstream.address
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let public = program.serving().await.public;
    for (fields, status) in [(1999, "200"), (2000, "200"), (2001, "502")] {
        let mut client = TcpStream::connect(public).await.unwrap();
        client.write_all(GET.as_bytes()).await.unwrap();
        let (mut connection, _) = upstream.head().await;
        let lines = "A: b\r\n".repeat(fields - 1);
        let response = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok");
        connection.write_all(response.as_bytes()).await.unwrap();
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{fields}: {answer}");
        let passed = answer.matches("\r\na: b").count();
        assert_eq!(passed, if status == "200" { fields - 1 } else { 0 });
    }
    program.wait_for_log("request failed").await;
    let log = program.log();
    let line = log.lines().find(|line| line.contains("request failed")).unwrap();
    assert!(line.contains(&format!("upstream=http://{}", upstream.address)), "{line}");
    assert!(line.contains("message head is too large"), "{line}");
}

#[tokio::test]
async fn equal_lengths_are_forwarded_once() {
    let setup = Setup::start().await;
    for (method, status, lines, body) in [
        ("GET", "200 OK", "Content-Length: 2, 2\r\n", "ok"),
        ("GET", "200 OK", "Content-Length: 2\r\nContent-Length: 2\r\n", "ok"),
        ("GET", "200 OK", "Content-Length: 2,2\r\nContent-Length: 2\r\n", "ok"),
        ("HEAD", "200 OK", "Content-Length: 2, 2\r\n", ""),
    ] {
        let bytes = format!("HTTP/1.1 {status}\r\n{lines}\r\n{body}");
        let (answer, _) = setup.answer(method, bytes.as_bytes(), false).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {lines}: {answer}");
        let lengths = answer.lines().filter(|line| line.starts_with("content-length"));
        assert_eq!(lengths.collect::<Vec<_>>(), ["content-length: 2"], "{method} {status} {lines}");
    }
    // hyper does not validate the length of a response without a body.
    for (method, status) in [("HEAD", "200 OK"), ("GET", "304 Not Modified")] {
        for value in ["2, 3", "+2", "2\r\nContent-Length: 3"] {
            let bytes = format!("HTTP/1.1 {status}\r\nContent-Length: {value}\r\n\r\n");
            setup.check(method, bytes.as_bytes(), &BadGateway).await;
        }
    }
}

/// RFC 9112, section 5.1: a proxy removes white space between a field name and its colon.
#[tokio::test]
async fn space_before_colon_is_removed() {
    let setup = Setup::start().await;
    let after = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    for framing in [
        "Content-Length : 2\r\n\r\nok",
        "Content-Length\t \t: 2\r\n\r\nok",
        "Transfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\nContent-Length: 7\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\nX-A : b\r\n{framing}{after}");
        setup.check("GET", bytes.as_bytes(), &Body("ok")).await;
        let (answer, _) = setup.answer("GET", bytes.as_bytes(), false).await;
        assert!(answer.contains("\r\nx-a: b\r\n"), "{answer}");
        assert!(!answer.contains(" :") && !answer.contains("\t:"), "{answer}");
    }
    for broken in ["X A: b", "X A : b", " X-A: b", ": b", " : b"] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{broken}\r\nContent-Length: 2\r\n\r\nok");
        setup.check("GET", bytes.as_bytes(), &BadGateway).await;
    }
}
