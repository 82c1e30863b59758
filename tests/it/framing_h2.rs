//! HTTP/2 framing, with frames written by hand: requests that would change their meaning in HTTP/1.1, and floods.

use std::time::Duration;

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS,
    StreamEnd, WINDOW_UPDATE, block, frame,
};
use crate::support::{Cloakroom, Upstream, until};

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/first")];

struct Setup {
    upstream: Upstream,
    cloakroom: Cloakroom,
}

impl Setup {
    async fn start() -> Self {
        let upstream = Upstream::start();
        let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
        let cloakroom = Cloakroom::with(&upstream, toml).await;
        Self { upstream, cloakroom }
    }

    async fn connect(&self) -> Frames {
        Frames::connect(self.cloakroom.public()).await
    }

    /// Asserts that another client is served.
    async fn check_other_client(&self) {
        let mut other = self.connect().await;
        other.open(1, &GET, END_STREAM).await;
        assert_eq!(other.ended(1).await, StreamEnd::Status(Some(200)));
    }
}

#[tokio::test]
async fn fields_ambiguous_in_http1_are_refused() {
    let setup = Setup::start().await;
    let with = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
    let but = |name: &str, value: &'static str| {
        GET.map(|(known, was)| if known == name { (known, value) } else { (known, was) }).to_vec()
    };
    for fields in [
        with(&[("transfer-encoding", "chunked")]),
        with(&[("connection", "close")]),
        with(&[("keep-alive", "5")]),
        with(&[("proxy-connection", "close")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("X-A", "upper case")]),
        with(&[("x a", "b")]),
        with(&[("x-a:", "b")]),
        with(&[("", "b")]),
        with(&[("x-a", "b\r\nx-c: d")]),
        with(&[("x-a", "b\nc")]),
        with(&[("x-a", "b\0c")]),
        with(&[("x-a\r\nx-c", "d")]),
        with(&[("host", "b")]),
        with(&[(":path", "/second")]),
        with(&[(":status", "200")]),
        with(&[(":made-up", "1")]),
        [&[("x-a", "b")], &GET[..]].concat(),
        but(":method", "GET /admin HTTP/1.1\r\nX:"),
        but(":method", "GE T"),
        but(":method", ""),
        but(":method", "TRACE"),
        but(":method", "CONNECT"),
        but(":path", ""),
        but(":path", "first"),
        but(":path", "/first HTTP/1.1\r\nX-A: b"),
        but(":path", "/fi rst"),
        but(":path", "http://b/first"),
        but(":path", "*"),
        but(":scheme", "http://b/?"),
        but(":scheme", "ftp"),
        but(":authority", "u@a"),
        but(":authority", "a b"),
        but(":authority", "a\r\nX-A: b"),
        but(":authority", ""),
        GET[..3].to_vec(),
        GET[1..].to_vec(),
    ] {
        let mut connection = setup.connect().await;
        connection.open(1, &fields, END_STREAM).await;
        let ended = connection.ended(1).await;
        assert_ne!(ended, StreamEnd::Status(Some(200)), "{fields:?}");
        let seen = setup.upstream.take_seen();
        assert!(seen.is_empty(), "{fields:?}: {seen:?}");
    }
    setup.check_other_client().await;
}

/// RFC 9113, section 8.1.1: a request whose Content-Length differs from its DATA frames is malformed.
#[tokio::test]
async fn content_length_matches_the_frames() {
    let setup = Setup::start().await;
    let post = |length: &'static str| {
        let mut fields = GET.to_vec();
        fields[0] = (":method", "POST");
        fields.push(("content-length", length));
        fields
    };
    for (length, data) in
        [("5", "hell"), ("5", "hello!"), ("0", "x"), ("+5", "hello"), ("5,6", "hello")]
    {
        let mut connection = setup.connect().await;
        // Sent at once: a request without a body by its length may be answered before its frames arrive.
        let head = frame(HEADERS, END_HEADERS, 1, &block(&post(length)));
        let body = frame(DATA, END_STREAM, 1, data.as_bytes());
        connection.send_bytes(&[head, body].concat()).await;
        assert_ne!(connection.ended(1).await, StreamEnd::Status(Some(200)), "{length} {data}");
    }
    assert!(!setup.upstream.take_seen().iter().any(|seen| seen.whole));
    let mut connection = setup.connect().await;
    connection.open(1, &post("5"), 0).await;
    connection.send(DATA, END_STREAM, 1, b"hello").await;
    assert_eq!(connection.ended(1).await, StreamEnd::Status(Some(200)));
    let seen = setup.upstream.take_seen().pop().unwrap();
    assert_eq!((seen.body.as_str(), seen.whole), ("hello", true));
}

/// CVE-2023-44487 (rapid reset): streams that are reset at once leave no request in flight.
#[tokio::test]
async fn rapid_resets_leave_no_requests() {
    let setup = Setup::start().await;
    let mut connection = setup.connect().await;
    let rounds = 200;
    for round in 0..rounds {
        let bytes: Vec<u8> = (0..50)
            .flat_map(|index| {
                let stream = (round * 50 + index) * 2 + 1;
                let opened = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET));
                [opened, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
            })
            .collect();
        if !connection.send_bytes(&bytes).await {
            break;
        }
    }
    setup.check_other_client().await;
    drop(connection);
    let in_flight = setup.cloakroom.metrics().requests_in_flight().clone();
    until("no request is in flight", || in_flight.get() == 0).await;
}

/// CVE-2024-27316, RUSTSEC-2024-0332: endless CONTINUATION frames.
#[tokio::test]
async fn endless_head_closes_the_connection() {
    let setup = Setup::start().await;
    for payload in [block(&[("x-a", &"b".repeat(1000))]), Vec::new()] {
        let mut connection = setup.connect().await;
        connection.send(HEADERS, END_STREAM, 1, &block(&GET)).await;
        let mut frames = 0;
        while connection.send(CONTINUATION, 0, 1, &payload).await {
            frames += 1;
            assert!(frames < 1_000_000, "it took {frames} frames of {} bytes", payload.len());
        }
        setup.check_other_client().await;
    }
}

/// Frames that require a reply, from a client that reads none: no more are read than replies can be written.
#[tokio::test]
async fn ping_and_settings_floods_are_held_back() {
    let setup = Setup::start().await;
    for flood in [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])] {
        let mut connection = setup.connect().await;
        let bytes = flood.repeat(10_000);
        let mut sent = 0_usize;
        // The socket buffers hold some; then writing blocks.
        let flooded = tokio::time::timeout(Duration::from_secs(2), async {
            while connection.send_bytes(&bytes).await {
                sent += bytes.len();
                assert!(sent < 256 << 20, "{sent} bytes were accepted without replies");
            }
        });
        let _ = flooded.await;
        setup.check_other_client().await;
    }
}

/// RUSTSEC-2026-0258: empty DATA frames, which flow control does not count.
#[tokio::test]
async fn empty_data_frames_use_no_memory() {
    let setup = Setup::start().await;
    let mut connection = setup.connect().await;
    let mut fields = GET.to_vec();
    fields[0] = (":method", "POST");
    connection.open(1, &fields, 0).await;
    let bytes = frame(DATA, 0, 1, &[]).repeat(1000);
    for _ in 0..100 {
        if !connection.send_bytes(&bytes).await {
            break;
        }
    }
    setup.check_other_client().await;
    drop(connection);
    assert!(!setup.upstream.seen().iter().any(|seen| seen.whole && seen.method == "POST"));
}

/// RFC 9113, section 6.9.1: a window that overflows is an error, and so is an increment of zero.
#[tokio::test]
async fn window_overflow_is_an_error() {
    let setup = Setup::start().await;
    for increment in [0_u32, 0x7fff_ffff] {
        let mut connection = setup.connect().await;
        connection.send(WINDOW_UPDATE, 0, 0, &increment.to_be_bytes()).await;
        connection.send(WINDOW_UPDATE, 0, 0, &increment.to_be_bytes()).await;
        assert!(!connection.is_alive().await, "{increment}");
    }
    setup.check_other_client().await;
}

/// HPACK: an invalid index, a table larger than allowed, and a decompression bomb.
#[tokio::test]
async fn compressed_heads_are_bounded() {
    let setup = Setup::start().await;
    // A field of 3 KiB into the table, then a thousand references to it.
    let mut bomb = vec![0x40];
    bomb.extend(&block(&[("x-a", &"b".repeat(3000))])[1..]);
    bomb.extend(block(&GET));
    bomb.extend([0xbe; 1000]);
    let (invalid_index, table) = (vec![0xff, 0xff, 0x03], vec![0x3f, 0xe1, 0xff, 0x03]);
    for payload in [invalid_index, table, bomb] {
        let mut connection = setup.connect().await;
        connection.send(HEADERS, END_HEADERS | END_STREAM, 1, &payload).await;
        let ended = connection.ended(1).await;
        assert_ne!(ended, StreamEnd::Status(Some(200)));
        assert!(setup.upstream.take_seen().is_empty());
    }
    setup.check_other_client().await;
}

/// RFC 9113, section 5.1.2: streams beyond the advertised limit are refused.
#[tokio::test]
async fn concurrent_streams_are_limited() {
    let setup = Setup::start().await;
    let mut connection = setup.connect().await;
    let mut fields = GET.to_vec();
    fields.push(("x-script", r#"{"calls":[],"wait":"held","headers":[]}"#));
    for index in 0..101 {
        connection.open(index * 2 + 1, &fields, END_STREAM).await;
    }
    assert_eq!(connection.ended(201).await, StreamEnd::Reset);
    setup.upstream.arrived("held", 100).await;
    setup.upstream.open("held");
    assert!(connection.is_alive().await);
}
