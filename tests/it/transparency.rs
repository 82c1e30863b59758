//! Transparency: what the proxy leaves unchanged. The cases are those of linkerd2-proxy's `transparency.rs` that concern
//! HTTP; tunnels, framing and trailers have files of their own.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::Cloakroom;
use crate::support::frames::{END_STREAM, Frames, RST_STREAM, StreamEnd};
use crate::support::raw::{RawUpstream, exchange, read_all, read_until};

struct Stage {
    site: RawUpstream,
    cloakroom: Cloakroom,
}

impl Stage {
    async fn set() -> Self {
        let site = RawUpstream::start().await;
        let h2c = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
        let cloakroom = Cloakroom::for_site(site.address, "", h2c).await;
        Self { site, cloakroom }
    }

    /// Returns the request's head as the site receives it, and the response as the client does.
    async fn pass(&self, request: &str, answer: &str) -> (String, String) {
        let mut client = TcpStream::connect(self.cloakroom.public()).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut connection, head) = self.site.head().await;
        connection.write_all(answer.as_bytes()).await.unwrap();
        drop(connection);
        (head.to_ascii_lowercase(), read_all(&mut client).await)
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn empty_request_gets_no_framing() {
    let stage = Stage::set().await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PROPFIND"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, _) = stage.pass(&request, OK).await;
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        let request = request.replace("Host: a", "Host: a\r\nContent-Length: 0");
        let (head, _) = stage.pass(&request, OK).await;
        assert!(head.contains("\r\ncontent-length: 0\r\n"), "{head}");
    }
}

#[tokio::test]
async fn target_is_forwarded_byte_for_byte() {
    let stage = Stage::set().await;
    for target in [
        "/?",
        "/a?b?c",
        "/%41/%2e",
        "/a;b=c/d:e@f",
        "/'()*!$&+,",
        "/%zz",
        "/a%20b?q=%2F#",
        "//a//b",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let (head, _) = stage.pass(&request, OK).await;
        // hyper drops what follows a raw '#'.
        let expected = format!("get {} http/1.1\r\n", target.trim_end_matches('#').to_lowercase());
        assert!(head.starts_with(&expected), "{target}: {head}");
    }
}

#[tokio::test]
async fn absolute_form_becomes_origin_form() {
    let stage = Stage::set().await;
    let request = "GET http://site.example/x HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    let (head, _) = stage.pass(request, OK).await;
    assert!(head.starts_with("get /x http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: site.example\r\n") && !head.contains("other"), "{head}");
}

#[tokio::test]
async fn response_keeps_status_and_field_order() {
    let stage = Stage::set().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for status in [200, 201, 226, 299, 300, 399, 401, 418, 451, 499, 500, 599] {
        let answer = format!(
            "HTTP/1.1 {status} Whatever\r\nX-B: 1\r\nX-A: 2\r\nX-B: 3\r\nContent-Length: 2\r\n\r\nok"
        );
        let (_, got) = stage.pass(request, &answer).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{got}");
        let (first, second) = (got.find("x-b: 1").unwrap(), got.find("x-b: 3").unwrap());
        assert!(first < second && got.contains("x-a: 2") && got.ends_with("ok"), "{got}");
    }
}

#[tokio::test]
async fn http_1_0_works_without_a_host() {
    let stage = Stage::set().await;
    for (lines, host) in [("", None), ("Host: a\r\n", Some("host: a\r\n"))] {
        let request = format!("GET /old HTTP/1.0\r\n{lines}\r\n");
        let (head, got) = stage.pass(&request, OK).await;
        assert!(head.starts_with("get /old http/1.1\r\n"), "{head}");
        assert!(host.is_none_or(|host| head.contains(host)), "{head}");
        assert!(got.starts_with("HTTP/1.0 200 OK\r\n") && got.ends_with("\r\n\r\nok"), "{got}");
    }
}

#[tokio::test]
async fn close_delimited_response_arrives_complete() {
    let stage = Stage::set().await;
    let request = "GET / HTTP/1.0\r\n\r\n";
    let (_, got) = stage.pass(request, "HTTP/1.0 200 OK\r\n\r\nall of it").await;
    assert!(got.ends_with("\r\n\r\nall of it"), "{got}");
}

#[tokio::test]
async fn requests_to_the_proxy_are_answered_locally() {
    let stage = Stage::set().await;
    let connect = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n";
    assert!(exchange(stage.cloakroom.public(), connect).await.starts_with("HTTP/1.1 40"));
}

/// A stream that the client resets ends at the site, and one that the site truncates is reset.
#[tokio::test]
async fn resets_are_forwarded_in_both_directions() {
    let stage = Stage::set().await;
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let mut client = Frames::connect(stage.cloakroom.public()).await;
    client.open(1, &get, END_STREAM).await;
    let (mut first, _) = stage.site.head().await;
    client.send(RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
    assert_eq!(read_all(&mut first).await, "", "its connection ends");

    client.open(3, &get, END_STREAM).await;
    let (mut second, _) = stage.site.head().await;
    second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    assert_eq!(client.ended(3).await, StreamEnd::Status(Some(200)));
    drop(second);
    while let Some(frame) = client.next().await {
        if frame.stream == 3 && frame.kind == RST_STREAM {
            assert!(client.is_alive().await, "the others go on");
            return;
        }
        assert!(frame.stream != 3 || frame.flags & END_STREAM == 0, "a cut is no end");
    }
    panic!("the connection ended");
}

/// The counterpart of linkerd's `http1_requests_without_body_doesnt_add_transfer_encoding`: a body of unknown length gets
/// no Content-Length.
#[tokio::test]
async fn body_of_unknown_length_is_chunked() {
    let stage = Stage::set().await;
    let mut client = TcpStream::connect(stage.cloakroom.public()).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let (mut connection, head) = stage.site.head().await;
    assert!(head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    client.write_all(b"2\r\nab\r\n").await.unwrap();
    assert_eq!(read_until(&mut connection, "ab\r\n").await, "2\r\nab\r\n");
    client.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut connection, "0\r\n\r\n").await, "0\r\n\r\n");
    connection.write_all(OK.as_bytes()).await.unwrap();
    assert!(read_all(&mut client).await.ends_with("\r\n\r\nok"));
}
