//! The PROXY protocol, versions 1 and 2: a header before the first byte of the client, in which a TCP proxy sends the
//! client's address (haproxy.org, `proxy-protocol.txt`).

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::net::scheme::Scheme;

/// Signature of version 2 (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Maximum length of a version 1 header, CRLF included (section 2.1).
const MAX_V1_BYTES: usize = 107;

/// Bytes accepted after the fixed part of a version 2 header: more than known proxies send.
const MAX_V2_BYTES: usize = 4096;

/// The client of a proxied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// The proxy itself (`LOCAL`, e.g. a health check), or a client whose address it does not know (`UNKNOWN`).
    Unknown,
    /// A client. The scheme is known if the header says whether it used TLS.
    Client { address: SocketAddr, scheme: Option<Scheme> },
}

/// Reads the header, and nothing after it. It has no deadline here.
///
/// # Errors
/// The connection closed, or the header is missing or invalid.
pub(super) async fn read(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Proxied> {
    let mut header = vec![0; SIGNATURE.len()];
    socket.read_exact(&mut header).await?;
    if header == SIGNATURE {
        // Signature, version and command, family and protocol, length of the rest (section 2.2).
        header.resize(16, 0);
        socket.read_exact(header.get_mut(12..).unwrap_or_default()).await?;
        let length = match header.as_slice() {
            [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        };
        if length > MAX_V2_BYTES {
            return Err(invalid("PROXY header is too long"));
        }
        header.resize(16 + length, 0);
        socket.read_exact(header.get_mut(16..).unwrap_or_default()).await?;
    } else {
        if !header.starts_with(b"PROXY ") {
            return Err(invalid("missing PROXY header"));
        }
        while !header.ends_with(b"\r\n") {
            if header.len() == MAX_V1_BYTES {
                return Err(invalid("PROXY header is too long"));
            }
            // Byte by byte, since what follows the header belongs to the protocol after it.
            header.push(socket.read_u8().await?);
        }
    }
    let (parsed, _length) = ProxyHeader::parse(&header, ParseConfig::default())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let Some(proxied) = parsed.proxied_address() else { return Ok(Proxied::Unknown) };
    let source = proxied.source;
    let address = SocketAddr::new(source.ip().to_canonical(), source.port());
    let scheme =
        parsed.ssl().map(|tls| if tls.client_ssl() { Scheme::Https } else { Scheme::Http });
    Ok(Proxied::Client { address, scheme })
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use proxy_header::{ProxiedAddress, SslInfo, Tlv};

    use super::*;

    async fn parse(bytes: &[u8]) -> Result<(Proxied, Vec<u8>), io::ErrorKind> {
        let mut rest = bytes;
        let read = read(&mut rest).await.map_err(|error| error.kind())?;
        Ok((read, rest.to_vec()))
    }

    fn client(address: &str, scheme: Option<Scheme>) -> Proxied {
        Proxied::Client { address: address.parse().unwrap(), scheme }
    }

    #[tokio::test]
    async fn both_versions_are_read_up_to_their_end() {
        let addresses = ProxiedAddress::stream(
            "[2001:db8::1]:1000".parse().unwrap(),
            "[2001:db8::2]:443".parse().unwrap(),
        );
        let secured = Tlv::Ssl(SslInfo::new(true, false, false, 0));
        let mut binary = Vec::new();
        ProxyHeader::with_tlvs(Some(addresses), [secured]).encode_v2(&mut binary).unwrap();
        let mut local = Vec::new();
        ProxyHeader::with_local().encode_v2(&mut local).unwrap();
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n".to_vec(),
                client("192.0.2.1:1000", None),
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1000 80\r\n".to_vec(),
                client("192.0.2.1:1000", None),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Proxied::Unknown),
            (b"PROXY UNKNOWN 1 2 3 4\r\n".to_vec(), Proxied::Unknown),
            (binary, client("[2001:db8::1]:1000", Some(Scheme::Https))),
            (local, Proxied::Unknown),
        ] {
            let bytes = [header, b"GET / HTTP/1.1\r\n".to_vec()].concat();
            let case = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(
                parse(&bytes).await,
                Ok((expected, b"GET / HTTP/1.1\r\n".to_vec())),
                "{case}"
            );
        }
    }

    #[tokio::test]
    async fn invalid_headers_are_errors() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        let mut long = SIGNATURE.to_vec();
        long.extend([0x21, 0x11, 0xff, 0xff]);
        for (bytes, kind) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), InvalidData),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\n".to_vec(), UnexpectedEof),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 80\r\n".to_vec(), InvalidData),
            (b"PROXY TCP4 a b 1 2\r\n".to_vec(), InvalidData),
            ([b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(), InvalidData),
            (b"PROXY".to_vec(), UnexpectedEof),
            (long, InvalidData),
            ([SIGNATURE.to_vec(), vec![0x31, 0x11, 0, 0]].concat(), InvalidData),
        ] {
            let case = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(parse(&bytes).await, Err(kind), "{case}");
        }
    }
}
