//! The proxies before us whose word about their clients is taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What stands for one customer of a provider: an IPv4 address, or a /64 network of IPv6.
pub(crate) fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// The proxies whose word is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust(Vec<IpNet>);

impl Trust {
    /// Trusts the addresses of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether an address is trusted. An IPv4 address within IPv6 (a dual-stack socket's) is the IPv4
    /// address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether a peer is. One without an address came through a Unix socket, so it is a process on this
    /// machine, and as trusted as the loopback addresses are.
    pub fn trusts_peer(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or_else(
            || {
                self.contains(Ipv4Addr::LOCALHOST.into())
                    || self.contains(Ipv6Addr::LOCALHOST.into())
            },
            |address| self.contains(address),
        )
    }
}
