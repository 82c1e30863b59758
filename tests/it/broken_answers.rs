//! Responses whose body fails at the moment when their head arrives.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::frames::{DATA, END_STREAM, Frames, HEADERS, RST_STREAM};
use crate::support::raw::read_all;
use crate::support::{Cloakroom, Upstream};

/// End of a site's connection.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    Closed,
    Reset,
}

const CASES: [(Breaks, &str); 6] = [
    (Breaks::Closed, "Content-Length: 100\r\n\r\nhalf"),
    (Breaks::Reset, "Content-Length: 100\r\n\r\nhalf"),
    (Breaks::Closed, "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    (Breaks::Closed, "Content-Length: 100\r\n\r\n"),
    (Breaks::Reset, "Content-Length: 100\r\n\r\n"),
    (Breaks::Closed, "Transfer-Encoding: chunked\r\n\r\n"),
];

const ROUNDS: usize = 200;

/// A site that responds to each request with these bytes and aborts at once.
fn site(breaks: Breaks, answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut bytes = [0; 4096];
                let read = connection.read(&mut bytes).unwrap();
                head.extend_from_slice(&bytes[..read]);
            }
            let answer = format!("HTTP/1.1 200 OK\r\nX-Mark: here\r\n{answer}");
            connection.write_all(answer.as_bytes()).unwrap();
            if matches!(breaks, Breaks::Reset) {
                socket2::SockRef::from(&connection)
                    .set_linger(Some(std::time::Duration::ZERO))
                    .unwrap();
            }
        }
    });
    address
}

async fn proxy(site: SocketAddr) -> Cloakroom {
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n[[route]]\nupstream = \"http://{site}\"\n"
    );
    Cloakroom::with(&Upstream::start(), &toml).await
}

#[tokio::test]
async fn head_is_sent_before_its_body_fails() {
    for (breaks, answer) in CASES {
        let proxy = proxy(site(breaks, answer)).await;
        for round in 0..ROUNDS {
            let mut client = TcpStream::connect(proxy.public()).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let got = read_all(&mut client).await;
            let case = format!("{breaks:?} {answer:?} {round}: {got:?}");
            assert!(
                got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("x-mark: here"),
                "{case}"
            );
            assert_eq!(got.contains("half"), answer.contains("half"), "{case}");
            assert!(!got.ends_with("0\r\n\r\n"), "{case}");
        }
    }
}

#[tokio::test]
async fn http2_stream_is_reset_after_its_head() {
    for (breaks, answer) in CASES {
        let proxy = proxy(site(breaks, answer)).await;
        let mut client = Frames::connect(proxy.public()).await;
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        for round in 0..ROUNDS {
            let stream = u32::try_from(2 * round + 1).unwrap();
            client.open(stream, &get, END_STREAM).await;
            let mut kinds = Vec::new();
            while kinds.last() != Some(&RST_STREAM) {
                let frame = client.next().await.expect("the connection lives on");
                if frame.stream == stream {
                    assert_eq!(frame.flags & END_STREAM, 0, "{breaks:?} {answer:?}");
                    kinds.push(frame.kind);
                }
            }
            let body: &[u8] = if answer.contains("half") { &[DATA] } else { &[] };
            let expected = [&[HEADERS], body, &[RST_STREAM]].concat();
            assert_eq!(kinds, expected, "{breaks:?} {answer:?} {round}");
        }
    }
}

/// The client is still uploading, and its unread bytes must not reset the connection before it has read the head.
#[tokio::test]
async fn broken_response_survives_an_upload() {
    let proxy = proxy(site(Breaks::Closed, CASES[0].1)).await;
    for _ in 0..20 {
        let mut client = TcpStream::connect(proxy.public()).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n";
        client.write_all(head).await.unwrap();
        let sent = client.write_all(&vec![b'x'; 8 << 20]).await;
        let got = read_all(&mut client).await;
        assert!(sent.is_ok() && got.contains("x-mark: here"), "{sent:?} {got:?}");
        assert!(got.ends_with("half"), "{got:?}");
    }
}
