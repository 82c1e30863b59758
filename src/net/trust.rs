//! Trusted proxies: their statements about clients are accepted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Returns the address by which one customer of a provider is counted: the address itself for IPv4, and its /64 network
/// for IPv6, since a provider assigns at least that to each.
pub(crate) fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// The networks of trusted proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust(Vec<IpNet>);

impl Trust {
    /// Trusts all addresses in `networks`.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Returns whether `address` is trusted. An IPv4-mapped IPv6 address, e.g. that of a dual-stack socket, is compared as
    /// IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns whether a peer is trusted. One without an address is connected by a Unix socket, so it runs on this machine:
    /// it is trusted if the loopback addresses are.
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
