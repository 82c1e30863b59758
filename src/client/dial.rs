//! Dialling an upstream: name resolution, connection and TLS handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time;

use super::error::{Error, ErrorKind};
use super::target::Target;
use super::tls::{NegotiatedProtocol, Tls, UpstreamProtocol};
use crate::net::descriptors::{self, Use};
use crate::net::scheme::Scheme;
use crate::net::socket::Socket;

/// An upstream to dial, and how.
pub(super) struct DialTarget<'a> {
    pub(super) target: &'a Target,
    pub(super) tls: Option<&'a Tls>,
    pub(super) protocol: UpstreamProtocol,
    pub(super) timeout: Duration,
}

impl DialTarget<'_> {
    /// Opens a connection, TLS handshake included, within the timeout.
    pub(super) async fn dial(&self) -> Result<(Socket, NegotiatedProtocol), Error> {
        match time::timeout(self.timeout, self.dial_without_timeout()).await {
            Ok(dialled) => dialled,
            Err(elapsed) => Err(Error::with(ErrorKind::ConnectTimeout, elapsed)),
        }
    }

    async fn dial_without_timeout(&self) -> Result<(Socket, NegotiatedProtocol), Error> {
        let socket = connect(self.target, self.timeout).await.map_err(connect_error)?;
        // Checked now, since the number of the new socket shows how many descriptors are in use.
        if descriptors::are_scarce(&socket, Use::Upstream) {
            let message = "the process has too few file descriptors left";
            return Err(Error::with(ErrorKind::Busy, message));
        }
        match (self.target, self.tls) {
            (Target::Http { scheme: Scheme::Https, host, .. }, Some(tls)) => {
                tls.connect(host, socket, self.protocol).await.map_err(connect_error)
            }
            (Target::Http { scheme: Scheme::Https, .. }, None) => {
                Err(Error::with(ErrorKind::Connect, "TLS is not set up for this upstream"))
            }
            (Target::Http { scheme: Scheme::Http, .. } | Target::Unix(_), _) => {
                Ok((socket, self.protocol.in_cleartext()))
            }
        }
    }
}

fn connect_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::with(ErrorKind::ConnectTimeout, error),
        _ => Error::with(ErrorKind::Connect, error),
    }
}

async fn connect(target: &Target, timeout: Duration) -> io::Result<Socket> {
    let (host, port) = match target {
        Target::Unix(path) => return Ok(UnixStream::connect(path).await?.into()),
        Target::Http { host, port, .. } => (host.as_str(), *port),
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(TcpStream::connect((address, port)).await?.into());
    }
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    // Each address gets an equal share of the time, so that one that drops packets does not use up all of it.
    let share = timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in addresses {
        match time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream.into()),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
