//! Protocol sniffing: HTTP/2 with prior knowledge begins with a preface that is not valid HTTP/1.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Client connection preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a connection, with the bytes that were read to find out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sniffed {
    Http1(Bytes),
    Http2(Bytes),
}

impl Sniffed {
    pub(super) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }
}

/// Reads until the bytes differ from the preface, or are all of it. It has no deadline here.
pub(super) async fn sniff(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Sniffed> {
    let mut first = BytesMut::with_capacity(PREFACE.len());
    let mut socket = socket.take(PREFACE.len() as u64);
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        if socket.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let first = first.freeze();
    Ok(if *first == *PREFACE { Sniffed::Http2(first) } else { Sniffed::Http1(first) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn preface_is_http2_and_all_else_http1() {
        for (bytes, http2) in [
            (&PREFACE[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframe", true),
            (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", false),
            (b"G", false),
            (b"PRINT / HTTP/1.1\r\n\r\n", false),
        ] {
            let mut rest = bytes;
            let sniffed = sniff(&mut rest).await.unwrap();
            assert_eq!(sniffed.is_http2(), http2, "{bytes:?}");
            let (Sniffed::Http1(first) | Sniffed::Http2(first)) = sniffed;
            assert_eq!([&first, rest].concat(), bytes);
        }
        for bytes in [&b""[..], b"PRI"] {
            assert!(sniff(&mut &*bytes).await.is_err(), "{bytes:?}");
        }
    }
}
