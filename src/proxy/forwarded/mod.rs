//! Forwarded (RFC 7239), X-Forwarded-For, -Proto and -Host, and X-Real-IP: believed from trusted
//! proxies, taken away from everybody else, and written anew for the upstream.
//!
//! A proxy in front of us must overwrite or append to what it passes on. Where a request has any of
//! X-Forwarded-For, -Proto and -Host, those are believed and Forwarded is not: most proxies maintain
//! the former and pass on whatever stranger's Forwarded comes along.

#[cfg(test)]
mod tests;
mod told;

use std::net::IpAddr;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use super::{
    host, list,
    names::{self, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REAL_IP},
};
use told::{Source, Told};

use crate::scheme::Scheme;
use crate::trust::Trust;

/// What we write, and therefore may come in no other spelling.
const WRITTEN: [HeaderName; 5] =
    [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_REAL_IP];

/// Whoever connected to us, and to which kind of listener.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// None for a unix socket.
    pub address: Option<IpAddr>,
    /// Whether the listener has TLS.
    pub scheme: Scheme,
}

/// The client, as far as trusted proxies let us see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The right-most address that is not a trusted proxy's, or the left-most where all are. None
    /// where a unix socket's peer told none.
    pub address: Option<IpAddr>,
    /// The scheme as the browser sees it.
    pub scheme: Scheme,
    /// The host as the browser sees it, with the port. None for HTTP/1.0 without a Host.
    pub host: Option<HeaderValue>,
}

/// Finds the client and rewrites the fields that tell the upstream of it.
///
/// From an untrusted peer, everything of the kind is dropped ([`names::is_forwarding`]). From a
/// trusted one, the lists are appended to, and the fields that we don't write (X-Forwarded-Prefix,
/// -Port) pass. The Host must be settled ([`super::request::settle_target`]).
pub fn rewrite(
    headers: &mut HeaderMap,
    trust: &Trust,
    peer: Peer,
) -> Result<Client, MaxSizeReached> {
    let peer = Peer { address: peer.address.map(|address| address.to_canonical()), ..peer };
    let is_trusted = trust.believes(peer.address);
    names::remove_where(headers, |name| {
        let is_respelled = || WRITTEN.iter().any(|ours| name != ours && names::is_same(name, ours));
        if is_trusted { is_respelled() } else { names::is_forwarding(name) }
    });
    let told = Told::read(headers, trust, peer.address);
    let received =
        headers.get(HOST).filter(|line| line.to_str().is_ok_and(host::is_valid)).cloned();
    let client = Client {
        address: told.address,
        scheme: told.scheme.unwrap_or(peer.scheme),
        host: told.host.or_else(|| received.clone()),
    };
    write_lists(headers, told.source, &client, peer, received.as_ref())?;
    headers.try_insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()))?;
    set(headers, X_FORWARDED_HOST, client.host.clone())?;
    set(headers, X_REAL_IP, client.address.and_then(|address| value(&address.to_string())))?;
    Ok(client)
}

/// Returns the host as the browser sees it, of a head that has not been rewritten: as the trusted peer
/// reports it, or else the Host. The Host must be settled.
pub fn host(headers: &HeaderMap, trust: &Trust, peer: Peer) -> Option<HeaderValue> {
    let peer = peer.address.map(|address| address.to_canonical());
    let told = trust.believes(peer).then(|| Told::read(headers, trust, peer));
    told.and_then(|told| told.host).or_else(|| headers.get(HOST).cloned())
}

/// Appends this hop to the list that was believed, and tells the same in the other.
fn write_lists(
    headers: &mut HeaderMap,
    source: Source,
    client: &Client,
    peer: Peer,
    received: Option<&HeaderValue>,
) -> Result<(), MaxSizeReached> {
    let seen = element(client.address, client.host.as_ref(), client.scheme);
    let own = element(peer.address, received, peer.scheme);
    let hop = peer.address.map(|address| address.to_string()).unwrap_or_default();
    let before = client.address.filter(|_| client.address != peer.address);

    let addresses = match (source, before) {
        (Source::XForwarded, _) => list::joined(headers, &X_FORWARDED_FOR, hop.as_bytes()),
        (_, Some(before)) if hop.is_empty() => value(&before.to_string()),
        (_, Some(before)) => value(&format!("{before}, {hop}")),
        (_, None) => value(&hop),
    };
    let elements = match (source, before) {
        (Source::Forwarded, _) => list::joined(headers, &FORWARDED, own.as_bytes()),
        (_, Some(_)) => value(&format!("{seen}, {own}")),
        (_, None) => value(&seen),
    };
    set(headers, X_FORWARDED_FOR, addresses.filter(|line| !line.is_empty()))?;
    set(headers, FORWARDED, elements)
}

/// RFC 7239 4: what is no token is quoted, an IPv6 address in its brackets (section 6). No `by`: it
/// would tell where we are.
fn element(address: Option<IpAddr>, host: Option<&HeaderValue>, scheme: Scheme) -> String {
    let node = match address {
        Some(IpAddr::V4(address)) => format!("for={address}"),
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\""),
        None => "for=unknown".to_owned(),
    };
    let scheme = scheme.as_str();
    match host.and_then(|host| host.to_str().ok()) {
        // A valid host has neither a quote nor a backslash in it.
        Some(host) if host.bytes().all(list::is_token_byte) => {
            format!("{node};host={host};proto={scheme}")
        }
        Some(host) => format!("{node};host=\"{host}\";proto={scheme}"),
        None => format!("{node};proto={scheme}"),
    }
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

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
