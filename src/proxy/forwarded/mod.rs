//! Forwarded (RFC 7239), X-Forwarded-For, -Proto and -Host, and X-Real-IP: accepted from trusted
//! proxies, removed from other requests, and rewritten for the upstream.
//!
//! A trusted proxy must overwrite these fields or append to them. If a request has any of
//! X-Forwarded-For, -Proto and -Host, those are used and Forwarded is ignored: most proxies maintain
//! the former and pass on a client's Forwarded unchanged.
//!
//! Both families are written from the same hops, scheme and host, so that they agree: Symfony compares
//! them and responds with 400 if they differ.

mod info;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use super::{
    lines::Lines,
    list,
    names::{
        self, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO,
        X_REAL_IP,
    },
};
use info::{Family, ForwardedInfo, Hop};

use crate::net::host::is_valid as is_valid_host;
use crate::net::ip;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

/// The fields that the proxy writes. Their other spellings are always removed.
const WRITTEN: [HeaderName; 5] =
    [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REAL_IP];

/// The usual length of all lines together, with one hop.
pub(super) const LINES_BYTES: usize = 192;

/// The peer of a connection, and the kind of listener that it connected to.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// HTTPS if the listener has TLS.
    pub scheme: Scheme,
    /// Whether a trusted proxy reported that it does not know the client of the connection. Forwarding
    /// fields are not trusted then.
    pub is_unknown: bool,
}

/// Rules about which forwarding fields are accepted from which peers.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The proxies whose fields are accepted.
    pub trust: Trust,
    /// Further names that untrusted peers may not send.
    pub strip: Vec<HeaderName>,
    /// Forwarding names ([`names::is_forwarding`]) that untrusted peers may send nevertheless; none that
    /// the proxy writes.
    pub keep: Vec<HeaderName>,
}

impl Rules {
    /// Returns whether the forwarding fields of a peer are trusted.
    pub(crate) fn trusts(&self, peer: Peer) -> bool {
        !peer.is_unknown && self.trust.trusts_peer(peer.address)
    }

    fn is_stripped(&self, name: &HeaderName) -> bool {
        let is_among = |names: &[HeaderName]| names.iter().any(|one| names::is_same(one, name));
        (names::is_forwarding(name) && !is_among(&self.keep)) || is_among(&self.strip)
    }
}

/// The client of a request, as far as trusted proxies report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The rightmost address that is not a trusted proxy's, or the leftmost if all are. `None` if the
    /// peer of a Unix socket reported none.
    pub address: Option<IpAddr>,
    /// The scheme as the browser sees it.
    pub(crate) scheme: Scheme,
    /// The host as the browser sees it, with the port. `None` for HTTP/1.0 without a Host.
    pub(crate) host: Option<HeaderValue>,
}

/// The result of [`rewrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The client of the request.
    pub client: Client,
    /// Names of the removed fields.
    pub(crate) dropped: Vec<HeaderName>,
    /// Whether an untrusted peer reported HTTPS for a request without TLS: it may be a TLS terminator
    /// that is missing from the configuration.
    pub(crate) lost_https: bool,
}

/// Determines the client and rewrites the fields that describe it to the upstream.
///
/// All forwarding fields of an untrusted peer are removed ([`names::is_forwarding`]). A trusted peer is
/// appended to the list of hops, and fields that the proxy does not write (X-Forwarded-Prefix, -Port)
/// are kept. The target must be normalized before (`request::normalize_target`).
///
/// # Errors
/// Fails if the head is full.
pub fn rewrite(
    headers: &mut HeaderMap,
    rules: &Rules,
    peer: Peer,
) -> Result<Rewritten, MaxSizeReached> {
    rewrite_with(headers, rules, peer, &mut Lines::with_capacity(LINES_BYTES))
}

/// Like [`rewrite`]. The values are written to `text`.
pub(super) fn rewrite_with(
    headers: &mut HeaderMap,
    rules: &Rules,
    peer: Peer,
    text: &mut Lines,
) -> Result<Rewritten, MaxSizeReached> {
    // A dual-stack socket reports IPv4 peers as mapped addresses.
    let peer = Peer { address: peer.address.map(|address| address.to_canonical()), ..peer };
    let trust = &rules.trust;
    let is_trusted = rules.trusts(peer);
    let lost_https = !trust.trusts_peer(peer.address)
        && peer.scheme == Scheme::Http
        && list::members(headers, &X_FORWARDED_PROTO).any(|s| s.eq_ignore_ascii_case(b"https"));
    let dropped = names::remove_matching(headers, |name| {
        let is_respelled = || is_written(name) && !WRITTEN.contains(name);
        if is_trusted { is_respelled() } else { rules.is_stripped(name) }
    });
    let mut info = if is_trusted {
        ForwardedInfo::read(headers, trust, peer.address)
    } else {
        ForwardedInfo::of_peer(peer.address)
    };
    // The Host of an HTTP/1.0 request may be empty, which is not a valid value here.
    let received = headers.get(HOST).filter(|line| line.to_str().is_ok_and(is_valid_host)).cloned();
    let client = Client {
        address: info.address,
        scheme: info.scheme.unwrap_or(peer.scheme),
        host: info.host.take().or(received),
    };
    // Written once: of most requests it is all three, the hop, the list and the client.
    let peer_text = peer.address.and_then(|address| text.of(ip::Text(address)));
    let addresses = if info.hops.is_empty() {
        peer_text.clone()
    } else {
        push_addresses(text, &info, peer_text.as_ref());
        text.take()
    };
    push_elements(text, headers, &info, &client, peer.address.zip(peer_text.as_ref()));
    let elements = text.take();
    let client_address = if client.address == peer.address {
        peer_text
    } else {
        client.address.and_then(|address| text.of(ip::Text(address)))
    };
    // Replaced rather than appended to: a site must not find two lists that differ.
    set(headers, X_FORWARDED_FOR, addresses)?;
    set(headers, FORWARDED, elements)?;
    headers.try_insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()))?;
    set(headers, X_FORWARDED_HOST, client.host.clone())?;
    set(headers, X_REAL_IP, client_address)?;
    Ok(Rewritten { client, dropped, lost_https })
}

/// Returns whether a name, in any spelling, is that of a field that the proxy writes.
pub(crate) fn is_written(name: &HeaderName) -> bool {
    WRITTEN.iter().any(|ours| names::is_same(name, ours))
}

/// Returns the host as the browser sees it, for a head that has not been rewritten: as reported by a
/// trusted peer, or else the Host. The target must be normalized before.
pub(crate) fn host(headers: &HeaderMap, rules: &Rules, peer: Peer) -> Option<HeaderValue> {
    let address = peer.address.map(|address| address.to_canonical());
    let info = rules.trusts(peer).then(|| ForwardedInfo::read(headers, &rules.trust, address));
    info.and_then(|info| info.host).or_else(|| headers.get(HOST).cloned())
}

/// Appends the hops and the peer for X-Forwarded-For. Ports are written only if the list had them: few
/// recipients expect any.
fn push_addresses(text: &mut Lines, info: &ForwardedInfo, peer: Option<&HeaderValue>) {
    for (index, hop) in info.hops.iter().enumerate() {
        if index > 0 {
            text.push_bytes(b", ");
        }
        match (hop, info.family) {
            (Hop::Address(address, Some(port)), Family::XForwarded) => {
                text.push(format_args!("{}", SocketAddr::new(*address, *port)));
            }
            (Hop::Address(address, _), _) => text.push(format_args!("{}", ip::Text(*address))),
            (Hop::Obfuscated(name), _) => text.push_bytes(name.as_bytes()),
            (Hop::Unknown, _) => text.push_bytes(b"unknown"),
        }
    }
    if let Some(peer) = peer {
        text.push_bytes(b", ");
        text.push_bytes(peer.as_bytes());
    }
}

/// Appends the same hops as elements of Forwarded (RFC 7239, section 4). The scheme and the host are
/// parameters of the client's element only, because X-Forwarded-* has no place for those of other hops.
fn push_elements(
    text: &mut Lines,
    headers: &HeaderMap,
    info: &ForwardedInfo,
    client: &Client,
    peer: Option<(IpAddr, &HeaderValue)>,
) {
    for (index, hop) in info.hops.iter().enumerate() {
        push_node(text, hop);
        if info.client == Some(index) {
            push_client(text, headers, client);
        }
        text.push_bytes(b", ");
    }
    match peer {
        Some((IpAddr::V4(_), address)) => {
            text.push_bytes(b"for=");
            text.push_bytes(address.as_bytes());
        }
        Some((IpAddr::V6(_), address)) => {
            text.push_bytes(b"for=\"[");
            text.push_bytes(address.as_bytes());
            text.push_bytes(b"]\"");
        }
        None => text.push_bytes(b"for=unknown"),
    }
    if info.client.is_none() {
        push_client(text, headers, client);
    }
}

/// Appends the `for` parameter of a hop. Values that are not tokens are quoted, and IPv6 addresses have
/// brackets (section 6). There is no `by`: it would reveal the address of the proxy.
fn push_node(text: &mut Lines, hop: &Hop) {
    match hop {
        Hop::Address(IpAddr::V4(address), None) => text.push(format_args!("for={address}")),
        Hop::Address(IpAddr::V4(address), Some(port)) => {
            text.push(format_args!("for=\"{address}:{port}\""));
        }
        Hop::Address(IpAddr::V6(address), None) => text.push(format_args!("for=\"[{address}]\"")),
        Hop::Address(IpAddr::V6(address), Some(port)) => {
            text.push(format_args!("for=\"[{address}]:{port}\""));
        }
        Hop::Obfuscated(name) => text.push(format_args!("for={name}")),
        Hop::Unknown => text.push(format_args!("for=unknown")),
    }
}

fn push_client(text: &mut Lines, headers: &HeaderMap, client: &Client) {
    let host = client.host.as_ref().and_then(|host| host.to_str().ok());
    match host.filter(|host| port_agrees(headers, host, client.scheme)) {
        // A valid host needs no escapes: it has neither quotes nor backslashes.
        Some(host) if host.bytes().all(list::is_token_byte) => {
            text.push_bytes(b";host=");
            text.push_bytes(host.as_bytes());
        }
        Some(host) => {
            text.push_bytes(b";host=\"");
            text.push_bytes(host.as_bytes());
            text.push_bytes(b"\"");
        }
        None => {}
    }
    text.push_bytes(b";proto=");
    text.push_bytes(client.scheme.as_str().as_bytes());
}

/// Returns whether X-Forwarded-Port, if a trusted proxy has set it, agrees with the host and the scheme.
/// Forwarded has no parameter for it, so it omits the host if they differ.
fn port_agrees(headers: &HeaderMap, host: &str, scheme: Scheme) -> bool {
    let mut ports = list::members(headers, &X_FORWARDED_PORT);
    let Some(port) = ports.next() else { return true };
    let usual = scheme.default_port().to_string();
    let implied = match host.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port,
        _ => &usual,
    };
    ports.next().is_none() && port == implied.as_bytes()
}

fn set(
    headers: &mut HeaderMap,
    name: HeaderName,
    value: Option<HeaderValue>,
) -> Result<(), MaxSizeReached> {
    match value {
        Some(value) => drop(headers.try_insert(name, value)?),
        None => drop(headers.remove(name)),
    }
    Ok(())
}
