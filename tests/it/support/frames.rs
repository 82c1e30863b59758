//! An HTTP/2 client that writes arbitrary frames (RFC 9113, section 4.1).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

// Frame types (RFC 9113, section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

// Frame flags.
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A received frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Way in which a stream, or its whole connection, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// A response. Only the statuses 200 and 400 are decoded.
    Status(Option<u16>),
    /// `RST_STREAM`.
    Reset,
    /// GOAWAY with an error, or the end of the connection.
    Connection,
}

/// A connection on which frames are written and read one by one.
pub struct Frames(TcpStream);

impl Frames {
    /// Connects, and sends the preface and empty SETTINGS.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    /// Sends a frame. Returns false if the peer has closed the connection.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        timeout(PATIENCE, self.0.write_all(&frame(kind, flags, stream, payload)))
            .await
            .is_ok_and(|written| written.is_ok())
    }

    /// Sends the bytes of many frames at once.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> bool {
        timeout(PATIENCE, self.0.write_all(bytes)).await.is_ok_and(|written| written.is_ok())
    }

    /// Opens a stream with these header fields.
    pub async fn open(&mut self, stream: u32, fields: &[(&str, &str)], flags: u8) -> bool {
        self.send(HEADERS, END_HEADERS | flags, stream, &block(fields)).await
    }

    /// Reads the next frame; `None` if the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        timeout(PATIENCE, self.0.read_exact(&mut head)).await.expect("a frame comes").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        timeout(PATIENCE, self.0.read_exact(&mut payload)).await.expect("its rest comes").ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads frames until `stream` or the connection ends.
    pub async fn ended(&mut self, stream: u32) -> StreamEnd {
        while let Some(frame) = self.next().await {
            match frame.kind {
                GOAWAY if frame.payload.get(4..8) != Some(&[0; 4]) => return StreamEnd::Connection,
                RST_STREAM if frame.stream == stream => return StreamEnd::Reset,
                HEADERS if frame.stream == stream => {
                    // Entries 8 and 12 of the static table (RFC 7541, appendix A).
                    return StreamEnd::Status(match frame.payload.first() {
                        Some(0x88) => Some(200),
                        Some(0x8c) => Some(400),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        StreamEnd::Connection
    }

    /// Returns true if the peer answers a PING, and therefore still serves this connection.
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

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Encodes fields as literals without indexing or compression (RFC 7541, section 6.2.2).
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

/// Encodes an integer with a prefix of seven bits (RFC 7541, section 5.1).
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
