//! Where the demo listens: the usual ports, and free ones where those are taken.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::api::config::url_at;
use crate::config::{Config, Listen, Role};
use crate::server::{self, Address};

/// What the public listener has where nobody says otherwise.
const PUBLIC: u16 = 8080;
const API: u16 = 8081;
const ADMIN: u16 = 8082;

/// A machine whose free ports are taken again and again at once is given up.
const ATTEMPTS: usize = 20;

/// The ports to try; 0 is a free one.
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
    /// This one or none.
    Asked(u16),
    /// Any, and this one first.
    Any(u16),
}

/// Which addresses `localhost` has: browsers try both, so that on one port both must be ours.
#[derive(Clone, Copy, Debug)]
enum Loopback {
    Both,
    Ipv4,
}

impl Ports {
    /// The port that was asked for, 0 for a free one; the usual one where none was.
    pub(super) fn new(asked: Option<u16>) -> io::Result<Self> {
        let public = match asked {
            None => Public::Any(PUBLIC),
            Some(0) => Public::Any(free()?),
            Some(port) => Public::Asked(port),
        };
        let other = |usual| if usual == public.port() { 0 } else { usual };
        let (api, admin) = (other(API), other(ADMIN));
        Ok(Self { public, loopback: Loopback::Both, api, admin, attempts: 0 })
    }

    /// The public port.
    pub(super) fn public(&self) -> u16 {
        self.public.port()
    }

    /// A configuration with listeners at these ports.
    pub(super) fn put_into(self, mut config: Config) -> Config {
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
        // What the site is told follows the address; with port 0, once that is bound.
        if let Some(url) = url_at(&config.api.address, config.api.scheme(), &config.api.prefix) {
            config.api.url = url;
        }
        config.admin.address = address(ipv4, self.admin);
        config
    }

    /// Other ports, after this address could not be had; `None` where there is no other way.
    pub(super) fn without(
        mut self,
        address: &Address,
        error: &io::Error,
    ) -> io::Result<Option<Self>> {
        let Address::Tcp(address) = address else { return Ok(None) };
        self.attempts += 1;
        let taken = error.kind() == ErrorKind::AddrInUse && self.attempts < ATTEMPTS;
        match self.public {
            // A machine without IPv6.
            _ if address.is_ipv6() && error.kind() != ErrorKind::AddrInUse => {
                self.loopback = Loopback::Ipv4;
            }
            _ if !taken => return Ok(None),
            Public::Asked(port) if address.port() == port => return Ok(None),
            Public::Any(port) if address.port() == port => self.public = Public::Any(free()?),
            _ if address.port() == self.api => self.api = 0,
            _ => self.admin = 0,
        }
        Ok(Some(self))
    }
}

impl Public {
    fn port(self) -> u16 {
        match self {
            Self::Asked(port) | Self::Any(port) => port,
        }
    }
}

/// A port that nobody has now; it may be taken before it is used.
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

    /// The ports after an address could not be had, as public, API's and admin's.
    fn without(ports: Ports, address: &str, kind: ErrorKind) -> Option<(u16, u16, u16)> {
        let others = ports.without(&address.parse().unwrap(), &kind.into()).unwrap();
        others.map(|ports| (ports.public(), ports.api, ports.admin))
    }

    #[test]
    fn what_is_taken_is_left_to_others() {
        use ErrorKind::{AddrInUse, PermissionDenied};
        let asked = Ports::new(Some(4000)).unwrap();
        for (address, kind, others) in [
            ("127.0.0.1:4000", AddrInUse, None),
            ("[::1]:4000", AddrInUse, None),
            ("127.0.0.1:8081", AddrInUse, Some((4000, 0, 8082))),
            ("127.0.0.1:8082", AddrInUse, Some((4000, 8081, 0))),
            ("127.0.0.1:8081", PermissionDenied, None),
        ] {
            assert_eq!(without(asked, address, kind), others, "{address} {kind}");
        }
        let (public, ..) =
            without(Ports::new(None).unwrap(), "[::1]:8080", AddrInUse).expect("another port");
        assert_ne!(public, PUBLIC, "browsers would reach whoever is there");
        let api = Ports::new(Some(API)).unwrap();
        assert_eq!(api.api, 0, "the public port is not the API's too");
    }

    #[test]
    fn a_machine_without_ipv6_listens_on_ipv4_alone() {
        let ports = Ports::new(Some(4000)).unwrap();
        let error = ErrorKind::AddrNotAvailable.into();
        let ports = ports.without(&"[::1]:4000".parse().unwrap(), &error).unwrap().unwrap();
        assert!(matches!(ports.loopback, Loopback::Ipv4));
    }
}
