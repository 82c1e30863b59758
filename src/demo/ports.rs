//! The ports of the demo: the default ones, or free ones if those are taken.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::api::config::url_at;
use crate::config::{Config, Listen, Role};
use crate::server::{self, Address};

// The defaults of `listen`, `api.address` and `admin.address`.
const PUBLIC: u16 = 8080;
const API: u16 = 8081;
const ADMIN: u16 = 8082;

/// Attempts to bind before the demo gives up: other programs may take the free ports first.
const ATTEMPTS: usize = 20;

/// The ports to try; 0 is any free port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    public: Public,
    loopback: Loopback,
    api: u16,
    admin: u16,
    attempts: usize,
}

#[derive(Clone, Copy, Debug)]
enum Public {
    /// This port, or an error.
    Fixed(u16),
    /// This port first, then any free port.
    Preferred(u16),
}

/// The addresses of `localhost`. Browsers try both, so another program must not have the port on one
/// of them.
#[derive(Clone, Copy, Debug)]
enum Loopback {
    Both,
    Ipv4,
}

impl Ports {
    /// Returns the ports to try first. `requested` is the public port: 0 for any free port, `None` for
    /// the default.
    pub(super) fn new(requested: Option<u16>) -> io::Result<Self> {
        let public = match requested {
            None => Public::Preferred(PUBLIC),
            Some(0) => Public::Preferred(free()?),
            Some(port) => Public::Fixed(port),
        };
        let other = |usual| if usual == public.port() { 0 } else { usual };
        let (api, admin) = (other(API), other(ADMIN));
        Ok(Self { public, loopback: Loopback::Both, api, admin, attempts: 0 })
    }

    pub(super) fn public(&self) -> u16 {
        self.public.port()
    }

    /// Returns a configuration that listens on these ports.
    pub(super) fn apply_to(self, mut config: Config) -> Config {
        let address = |ip: IpAddr, port| Address::Tcp(SocketAddr::new(ip, port));
        let ipv4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let hosts = match self.loopback {
            Loopback::Both => vec![ipv4, Ipv6Addr::LOCALHOST.into()],
            Loopback::Ipv4 => vec![ipv4],
        };
        let listen = |ip| Listen {
            address: address(ip, self.public()),
            socket_mode: None,
            proxy_protocol: false,
            role: Role::Http1,
        };
        config.listen = hosts.into_iter().map(listen).collect();
        config.api.address = address(ipv4, self.api);
        // The URL that sites receive has the same port. For port 0, the app sets it after binding.
        if let Some(url) = url_at(&config.api.address, config.api.scheme(), &config.api.prefix) {
            config.api.url = url;
        }
        config.admin.address = address(ipv4, self.admin);
        config
    }

    /// Returns other ports to try after an address could not be bound; `None` to give up.
    pub(super) fn after_error(
        mut self,
        address: &Address,
        error: &io::Error,
    ) -> io::Result<Option<Self>> {
        let Address::Tcp(address) = address else { return Ok(None) };
        self.attempts += 1;
        let taken = error.kind() == ErrorKind::AddrInUse && self.attempts < ATTEMPTS;
        match self.public {
            // The machine has no IPv6.
            _ if address.is_ipv6() && error.kind() != ErrorKind::AddrInUse => {
                self.loopback = Loopback::Ipv4;
            }
            _ if !taken => return Ok(None),
            Public::Fixed(port) if address.port() == port => return Ok(None),
            Public::Preferred(port) if address.port() == port => {
                self.public = Public::Preferred(free()?);
            }
            _ if address.port() == self.api => self.api = 0,
            _ => self.admin = 0,
        }
        Ok(Some(self))
    }
}

impl Public {
    fn port(self) -> u16 {
        match self {
            Self::Fixed(port) | Self::Preferred(port) => port,
        }
    }
}

/// Returns a port that is free now. Another program may still take it.
fn free() -> io::Result<u16> {
    let any = Address::Tcp((Ipv4Addr::LOCALHOST, 0).into());
    let bound = server::bind(&any, None)?;
    match bound.local_address() {
        Address::Tcp(address) => Ok(address.port()),
        Address::Unix(_) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the public, API and admin ports to try next.
    fn after_error(ports: Ports, address: &str, kind: ErrorKind) -> Option<(u16, u16, u16)> {
        let others = ports.after_error(&address.parse().unwrap(), &kind.into()).unwrap();
        others.map(|ports| (ports.public(), ports.api, ports.admin))
    }

    #[test]
    fn taken_ports_are_replaced() {
        use ErrorKind::{AddrInUse, PermissionDenied};
        let fixed = Ports::new(Some(4000)).unwrap();
        for (address, kind, others) in [
            ("127.0.0.1:4000", AddrInUse, None),
            ("[::1]:4000", AddrInUse, None),
            ("127.0.0.1:8081", AddrInUse, Some((4000, 0, 8082))),
            ("127.0.0.1:8082", AddrInUse, Some((4000, 8081, 0))),
            ("127.0.0.1:8081", PermissionDenied, None),
        ] {
            assert_eq!(after_error(fixed, address, kind), others, "{address} {kind}");
        }
        let (public, ..) =
            after_error(Ports::new(None).unwrap(), "[::1]:8080", AddrInUse).expect("another port");
        assert_ne!(public, PUBLIC, "browsers would reach the other program over IPv6");
        let api = Ports::new(Some(API)).unwrap();
        assert_eq!(api.api, 0, "the API does not use the public port");
    }

    #[test]
    fn without_ipv6_listens_on_ipv4() {
        let ports = Ports::new(Some(4000)).unwrap();
        let error = ErrorKind::AddrNotAvailable.into();
        let ports = ports.after_error(&"[::1]:4000".parse().unwrap(), &error).unwrap().unwrap();
        assert!(matches!(ports.loopback, Loopback::Ipv4));
    }
}
