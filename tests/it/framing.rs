//! Request framing: bytes that other proxies have interpreted differently. Each is either refused and
//! its connection closed, or forwarded as one unambiguous request.
//!
//! The cases are those of CVEs, of RFC 9112 and of the HTTP Garden's list of bugs in proxies
//! (github.com/narfindustries/http-garden, TROPHIES.md).

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::raw::{RawUpstream, read_all, read_until};
use crate::support::{Cloakroom, Seen, Upstream};

/// Sent after each request on the same connection.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

enum Expected {
    /// One of these statuses; nothing after it is read.
    Refused(&'static [u16]),
    /// The upstream receives this body once; what follows is a separate request.
    Passes(&'static str),
    /// The same, but the connection is closed after it.
    PassesAndCloses(&'static str),
}

use Expected::{Passes, PassesAndCloses, Refused};

struct Setup {
    upstream: Upstream,
    cloakroom: Cloakroom,
}

impl Setup {
    async fn start() -> Self {
        let upstream = Upstream::start();
        let cloakroom = Cloakroom::start(&upstream).await;
        Self { upstream, cloakroom }
    }

    /// Sends `request` followed by another one. Returns the statuses of the responses, and the requests that the upstream
    /// received.
    async fn send(&self, request: &[u8]) -> (Vec<u16>, Vec<Seen>) {
        let mut connection = TcpStream::connect(self.cloakroom.public()).await.unwrap();
        // The proxy may refuse before it has read everything.
        let _ = connection.write_all(&[request, NEXT.as_bytes()].concat()).await;
        let answer = read_all(&mut connection).await;
        (statuses(&answer), self.upstream.take_seen())
    }

    async fn check(&self, request: &[u8], expected: &Expected) {
        let (statuses, seen) = self.send(request).await;
        let context = format!("{:?}: {statuses:?}, {seen:?}", String::from_utf8_lossy(request));
        let whole: Vec<&Seen> = seen.iter().filter(|seen| seen.whole).collect();
        let (body, next) = match expected {
            Refused(expected) => {
                assert!(
                    matches!(statuses.as_slice(), [one] if expected.contains(one)),
                    "{context}"
                );
                assert!(whole.is_empty(), "{context}");
                return;
            }
            Passes(body) => (body, true),
            PassesAndCloses(body) => (body, false),
        };
        assert_eq!(statuses, vec![200; 1 + usize::from(next)], "{context}");
        assert_eq!(whole.len(), statuses.len(), "{context}");
        assert_eq!(whole[0].body, *body, "{context}");
        assert_eq!(next, whole.iter().any(|seen| seen.target == "/next"), "{context}");
        let framing: Vec<_> = whole[0]
            .headers
            .iter()
            .filter(|(name, _)| name == "content-length" || name == "transfer-encoding")
            .collect();
        assert!(framing.len() <= 1, "{context}");
    }
}

fn statuses(answer: &str) -> Vec<u16> {
    answer
        .split("HTTP/1.")
        .skip(1)
        .filter_map(|response| response.get(2..5)?.parse().ok())
        .filter(|status| *status != 100)
        .collect()
}

fn with_head(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /first HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn content_length_is_one_number() {
    let setup = Setup::start().await;
    for (value, expected) in [
        ("Content-Length: 5", Passes("hello")),
        ("Content-Length:    5  ", Passes("hello")),
        ("Content-Length: 005", Passes("hello")),
        ("Content-Length: 5\r\nContent-Length: 5", Passes("hello")),
        ("Content-Length: +5", Refused(&[400])),
        ("Content-Length: -0", Refused(&[400])),
        ("Content-Length: 0x5", Refused(&[400])),
        ("Content-Length: 5 5", Refused(&[400])),
        ("Content-Length: 5_0", Refused(&[400])),
        ("Content-Length: 5,6", Refused(&[400])),
        ("Content-Length:", Refused(&[400])),
        ("Content-Length: \r\nContent-Length: 5", Refused(&[400])),
        ("Content-Length: 5\r\nContent-Length: 6", Refused(&[400])),
        ("Content-Length: 18446744073709551616", Refused(&[400])),
        ("Content-Length: 18446744073709551621", Refused(&[400])),
        ("Content-Length : 5", Refused(&[400])),
        ("Content\u{0}-Length: 5", Refused(&[400])),
    ] {
        setup.check(&with_head(value, "hello"), &expected).await;
    }
    // RFC 9110, section 8.6 allows to merge a list of equal lengths; both outcomes are safe.
    let (statuses, seen) = setup.send(&with_head("Content-Length: 5,5", "hello")).await;
    assert!(statuses == [200, 200] && seen[0].body == "hello" || statuses == [400], "{statuses:?}");
    // The body of a GET is forwarded like any other.
    let get = b"GET /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    setup.check(get, &Passes("hello")).await;
}

#[tokio::test]
async fn chunked_is_the_only_transfer_coding() {
    let setup = Setup::start().await;
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (fields, expected) in [
        ("Transfer-Encoding: chunked", Passes("hello")),
        ("Transfer-Encoding: CHUNKED", Passes("hello")),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", PassesAndCloses("hello")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", PassesAndCloses("hello")),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Refused(&[400])),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Refused(&[400])),
        ("Transfer-Encoding: chunked, chunked", Refused(&[400])),
        ("Transfer-Encoding: gzip, chunked", Refused(&[501])),
        ("Transfer-Encoding: chunked, gzip", Refused(&[400])),
        ("Transfer-Encoding: identity", Refused(&[400])),
        ("Transfer-Encoding: ,chunked", Refused(&[400])),
        ("Transfer-Encoding: xchunked", Refused(&[400])),
        ("Transfer-Encoding: chunked;q=1", Refused(&[400])),
        ("Transfer-Encoding: \"chunked\"", Refused(&[400])),
        ("Transfer-Encoding:\u{b}chunked", Refused(&[400])),
        ("Transfer-Encoding : chunked", Refused(&[400])),
        ("Transfer-Encoding:\r\n chunked", Refused(&[400])),
        ("Transfer-Encoding: weird\r\nContent-Length: 18", Refused(&[400])),
        ("Transfer_Encoding: chunked\r\nContent-Length: 15", Passes("5\r\nhello\r\n0\r\n\r\n")),
    ] {
        setup.check(&with_head(fields, chunks), &expected).await;
    }
    let old = b"POST /first HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    setup.check(old, &Refused(&[400])).await;
    // The body of an HTTP/1.0 request ends where its length says, and never with the connection (CVE-2026-2835).
    let old = b"POST /first HTTP/1.0\r\nHost: a\r\n\r\n";
    setup.check(old, &PassesAndCloses("")).await;
}

#[tokio::test]
async fn chunk_syntax_is_strict() {
    let setup = Setup::start().await;
    let extension = |bytes: usize| format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(bytes));
    let many = "1;".to_owned() + &"x".repeat(8192) + "\r\na\r\n";
    let sizes = [
        ("5\r\nhello\r\n0\r\n\r\n".to_owned(), Passes("hello")),
        ("005\r\nhello\r\n000\r\n\r\n".to_owned(), Passes("hello")),
        ("5;a=b\r\nhello\r\n0;c\r\n\r\n".to_owned(), Passes("hello")),
        ("5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n".to_owned(), Passes("hello")),
        (extension(64), Passes("hello")),
        (extension(64 * 1024), Refused(&[400])),
        (many.repeat(64) + "0\r\n\r\n", Refused(&[400])),
        ("Z\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("0_5\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("+5\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("-5\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("0x5\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5;\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\rX\nhello\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\r\nhelloX0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\r\nhello\r\n\r\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\r\nhello\n0\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\r\nhello\r\n0\r\nX-Trailer\r\n\r\n".to_owned(), Refused(&[400])),
        ("5\r\nhello\r\n0\r\nX-A: a\rb\r\n\r\n".to_owned(), Refused(&[400])),
    ];
    for (chunks, expected) in sizes {
        setup.check(&with_head("Transfer-Encoding: chunked", &chunks), &expected).await;
    }
}

#[tokio::test]
async fn head_syntax_is_strict() {
    let setup = Setup::start().await;
    for (head, expected) in [
        ("GET /first HTTP/1.1\r\nHost: a\r\n\r\n", Passes("")),
        ("\r\nGET /first HTTP/1.1\r\nHost: a\r\n\r\n", Passes("")),
        ("GET /first HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\n X-A: b\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\n X-A: b\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A: b\rc\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A: b\u{0}c\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX-A\u{85}: b\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nX(A): b\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.1 \r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET  /first HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /first  HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /fi rst HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /first\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET /first HTTP/1.2\r\nHost: a\r\n\r\n", Refused(&[400, 505])),
        ("GET /first HTTP/3.0\r\nHost: a\r\n\r\n", Refused(&[400, 505])),
        ("GET /first http/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("G(T /first HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET first HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET ftp://a/first HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
        ("GET http://u@a/first HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[400])),
    ] {
        setup.check(head.as_bytes(), &expected).await;
    }
    // A very long name is forwarded or refused; it hides no second request.
    let long = format!(
        "GET /first HTTP/1.1\r\nHost: a\r\n{}: b\r\nX-Session-Token: forged\r\n\r\n",
        "n".repeat(300)
    );
    let (statuses, seen) = setup.send(long.as_bytes()).await;
    assert_eq!(statuses, [200, 200]);
    assert!(!format!("{seen:?}").contains("forged"));
    // Lines that end in LF alone: what hyper accepts is unambiguous.
    let (statuses, seen) = setup.send(b"GET /first HTTP/1.1\nHost: a\n\n").await;
    assert_eq!((statuses.len(), seen.len()), (2, 2), "{statuses:?}");
}

/// A head beyond the limits is refused without reading the rest.
#[tokio::test]
async fn heads_are_bounded() {
    let setup = Setup::start().await;
    let field = |count: usize| "X-A: b\r\n".repeat(count);
    let get = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
    };
    let long = |bytes: usize| "x".repeat(bytes);
    let cookies: String = (0..1000).map(|index| format!("c{index}=v; ")).collect();
    for (request, expected) in [
        (get("/first", &field(99)), Passes("")),
        (get("/first", &field(101)), Refused(&[431])),
        (get("/first", &format!("X-A: {}\r\n", long(30_000))), Passes("")),
        (get("/first", &format!("X-A: {}\r\n", long(40_000))), Refused(&[431])),
        (get("/first", &format!("X-A: {}\r\n", long(1 << 20))), Refused(&[431])),
        (get(&format!("/{}", long(70_000)), ""), Refused(&[414, 431])),
        (get("/first", &format!("Cookie: {cookies}z=1\r\n")), Passes("")),
    ] {
        setup.check(&request, &expected).await;
    }
}

/// If the upstream does not confirm an upgrade, the next request is still parsed and checked (CVE-2026-2833, T-62).
#[tokio::test]
async fn unconfirmed_upgrade_does_not_tunnel() {
    let setup = Setup::start().await;
    for fields in [
        "Connection: Upgrade\r\nUpgrade: x",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: Upgrade\r\nUpgrade: websocket",
        "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13",
    ] {
        let (statuses, seen) = setup
            .send(format!("GET /first HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n").as_bytes())
            .await;
        assert_eq!(statuses, [200, 200], "{fields}");
        let (first, next) = (&seen[0], &seen[1]);
        assert_eq!((first.target.as_str(), next.target.as_str()), ("/first", "/next"), "{fields}");
        assert_eq!(next.headers.iter().filter(|(name, _)| name == "x-session-token").count(), 1);
        // WebSocket is the only upgrade that is supported; this upstream did not confirm it.
        let switches = |(name, value): &&(String, String)| {
            name == "http2-settings" || (name == "upgrade" && value != "websocket")
        };
        assert_eq!(first.headers.iter().find(switches), None, "{fields}");
    }
}

/// The proxy answers `Expect` itself. An upstream connection is not reused while part of a body is outstanding
/// (CVE-2024-24791).
#[tokio::test]
async fn expect_leaves_no_connection_half_read() {
    let upstream = RawUpstream::start().await;
    let cloakroom = Cloakroom::for_site(upstream.address, "", "").await;
    let mut client = TcpStream::connect(cloakroom.public()).await.unwrap();
    let head =
        "POST /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut connection, seen) = upstream.head().await;
    assert!(!seen.to_lowercase().contains("expect"), "{seen}");
    // The upstream refuses the body.
    connection
        .write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut client, "417").await;
    assert!(answer.contains("417"));
    let mut another = TcpStream::connect(cloakroom.public()).await.unwrap();
    another.write_all(NEXT.as_bytes()).await.unwrap();
    // On a new connection: the first still lacks five bytes of a body.
    let (mut fresh, head) = upstream.head().await;
    assert!(head.starts_with("GET /next"), "{head}");
    fresh.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(read_all(&mut another).await.starts_with("HTTP/1.1 200"));
    let setup = Setup::start().await;
    for expectation in ["tea", "100-continue, tea"] {
        let fields = format!("Expect: {expectation}\r\nContent-Length: 5");
        setup.check(&with_head(&fields, "hello"), &Refused(&[417])).await;
    }
}

/// After an early response, the unread body is not mistaken for the next request (CVE-2025-4366).
#[tokio::test]
async fn unread_body_is_not_the_next_request() {
    let upstream = Upstream::start();
    let toml = "[[route]]\nupstream = \"UPSTREAM\"\nmax_body = \"10B\"\n";
    let setup = Setup { cloakroom: Cloakroom::with(&upstream, toml).await, upstream };
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    let request = with_head(&format!("Content-Length: {}", body.len()), &body);
    let (statuses, seen) = setup.send(&request).await;
    assert!(matches!(statuses.as_slice(), [413] | [413, 200]), "{statuses:?}");
    assert!(seen.iter().all(|seen| seen.target == "/next"), "{seen:?}");
    // A body too large to discard closes the connection.
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100_000);
    let request = with_head(&format!("Content-Length: {}", body.len()), &body);
    let (statuses, seen) = setup.send(&request).await;
    assert!(matches!(statuses.as_slice(), [413] | []), "{statuses:?}");
    assert!(seen.is_empty(), "{seen:?}");
}
