//! A client of HTTP/2 that writes frames as it likes (RFC 9113, section 4.1).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// The frames' types.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Their flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a stream, or all of its connection, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With a response of this status; other than these two it is not decoded.
    Status(Option<u16>),
    /// With a reset.
    Reset,
    /// With the connection.
    Connection,
}

/// A connection.
pub struct Frames(TcpStream);

impl Frames {
    /// Connected, the preface and empty settings sent.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// Sends a frame; whether the other side still takes any.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        timeout(PATIENCE, self.0.write_all(&frame(kind, flags, stream, payload)))
            .await
            .is_ok_and(|written| written.is_ok())
    }

    /// Sends many at once.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.0.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
    }

    /// Opens a stream with these fields.
    pub async fn open(&mut self, stream: u32, fields: &[(&str, &str)], flags: u8) -> bool {
        self.send(HEADERS, END_HEADERS | flags, stream, &block(fields)).await
    }

    /// The next frame; `None` where the connection is over.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        timeout(PATIENCE, self.0.read_exact(&mut head)).await.expect("a frame comes").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        timeout(PATIENCE, self.0.read_exact(&mut payload)).await.expect("its rest comes").ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// How `stream` ends.
    pub async fn ended(&mut self, stream: u32) -> Ended {
        while let Some(frame) = self.next().await {
            match frame.kind {
                GOAWAY if frame.payload.get(4..8) != Some(&[0; 4]) => return Ended::Connection,
                RST_STREAM if frame.stream == stream => return Ended::Reset,
                HEADERS if frame.stream == stream => {
                    // Entries 8 and 12 of the static table (RFC 7541, appendix A).
                    return Ended::Status(match frame.payload.first() {
                        Some(0x88) => Some(200),
                        Some(0x8c) => Some(400),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Ended::Connection
    }

    /// Whether the other side answers a ping, and so still serves this connection.
    pub async fn is_alive(&mut self) -> bool {
        if !self.send(PING, 0, 0, b"12345678").await {
            return false;
        }
        while let Some(frame) = self.next().await {
            match frame.kind {
                PING if frame.flags == ACK && frame.payload == b"12345678" => return true,
                GOAWAY => return false,
                _ => {}
            }
        }
        false
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals without indexing or compression (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            length(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// An integer of a prefix of seven bits (RFC 7541, section 5.1).
fn length(bytes: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return bytes.push(u8::try_from(length).unwrap());
    };
    bytes.push(127);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}
