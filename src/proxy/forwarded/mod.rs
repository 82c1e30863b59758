//! Forwarded (RFC 7239), X-Forwarded-For, -Proto and -Host, and X-Real-IP: believed from trusted
//! proxies, taken away from everybody else, and written anew for the upstream.
//!
//! A proxy in front of us must overwrite or append to what it passes on. Where a request has any of
//! X-Forwarded-For, -Proto and -Host, those are believed and Forwarded is not: most proxies maintain
//! the former and pass on whatever stranger's Forwarded comes along.
//!
//! Both families are written from one list of hops, one scheme and one host, so that they agree for a
//! site that reads both: Symfony compares them value by value, and answers 400 if they differ.

#[cfg(test)]
mod tests;
mod told;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, MaxSizeReached};

use super::{
    list,
    names::{
        self, FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PORT, X_FORWARDED_PROTO,
        X_REAL_IP,
    },
};
use told::{Hop, Source, Told};

use crate::net::host::is_valid as is_valid_host;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

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
    /// Whether a trusted proxy says that it does not know for whom the connection is: then nobody is
    /// believed.
    pub is_unknown: bool,
}

/// Whose word is taken, and which fields are whose.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The peers that are believed.
    pub trust: Trust,
    /// Names that untrusted peers may not send either.
    pub strip: Vec<HeaderName>,
    /// Names of [`names::is_forwarding`] that untrusted peers may send; none of those that we write.
    pub keep: Vec<HeaderName>,
}

impl Rules {
    /// Whether what a peer says of its clients is believed.
    pub fn believes(&self, peer: Peer) -> bool {
        !peer.is_unknown && self.trust.believes(peer.address)
    }

    fn strips(&self, name: &HeaderName) -> bool {
        let is_among = |names: &[HeaderName]| names.iter().any(|one| names::is_same(one, name));
        (names::is_forwarding(name) && !is_among(&self.keep)) || is_among(&self.strip)
    }
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

/// What [`rewrite`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Whose request it is.
    pub client: Client,
    /// The names of the fields that were dropped.
    pub dropped: Vec<HeaderName>,
    /// Whether an untrusted peer said https of a request that came in the clear: it may be a TLS
    /// terminator that nobody declared.
    pub lost_https: bool,
}

/// Finds the client and rewrites the fields that tell the upstream of it.
///
/// From an untrusted peer, everything of the kind is dropped ([`names::is_forwarding`]). From a
/// trusted one, its peer is appended to the list of hops, and the fields that we don't write
/// (X-Forwarded-Prefix, -Port) pass. The Host must be settled ([`super::request::settle_target`]).
///
/// # Errors
/// The head has no room for the fields.
pub fn rewrite(
    headers: &mut HeaderMap,
    rules: &Rules,
    peer: Peer,
) -> Result<Rewritten, MaxSizeReached> {
    let peer = Peer { address: peer.address.map(|address| address.to_canonical()), ..peer };
    let trust = &rules.trust;
    let is_trusted = rules.believes(peer);
    let lost_https = !trust.believes(peer.address)
        && peer.scheme == Scheme::Http
        && list::members(headers, &X_FORWARDED_PROTO).any(|s| s.eq_ignore_ascii_case(b"https"));
    let dropped = names::remove_where(headers, |name| {
        let is_respelled = || is_written(name) && !WRITTEN.contains(name);
        if is_trusted { is_respelled() } else { rules.strips(name) }
    });
    let mut told = Told::read(headers, trust, peer.address);
    let received = headers.get(HOST).filter(|line| line.to_str().is_ok_and(is_valid_host)).cloned();
    let client = Client {
        address: told.address,
        scheme: told.scheme.unwrap_or(peer.scheme),
        host: told.host.take().or(received),
    };
    let elements = elements(headers, &told, &client, peer.address);
    set(headers, X_FORWARDED_FOR, addresses(&told, peer.address))?;
    set(headers, FORWARDED, value(&elements))?;
    headers.try_insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()))?;
    set(headers, X_FORWARDED_HOST, client.host.clone())?;
    set(headers, X_REAL_IP, client.address.and_then(|address| value(&address.to_string())))?;
    Ok(Rewritten { client, dropped, lost_https })
}

/// Whether a name, in any spelling, is of a field that we write.
pub fn is_written(name: &HeaderName) -> bool {
    WRITTEN.iter().any(|ours| names::is_same(name, ours))
}

/// Returns the host as the browser sees it, of a head that has not been rewritten: as the trusted peer
/// reports it, or else the Host. The Host must be settled.
pub fn host(headers: &HeaderMap, rules: &Rules, peer: Peer) -> Option<HeaderValue> {
    let address = peer.address.map(|address| address.to_canonical());
    let told = rules.believes(peer).then(|| Told::read(headers, &rules.trust, address));
    told.and_then(|told| told.host).or_else(|| headers.get(HOST).cloned())
}

/// The hops and the peer for X-Forwarded-For; `None` if there are none. Ports are written if the list
/// had them: few readers expect any.
fn addresses(told: &Told, peer: Option<IpAddr>) -> Option<HeaderValue> {
    let hops = told.hops.iter().map(|hop| match (hop, told.source) {
        (Hop::Address(address, Some(port)), Source::XForwarded) => {
            SocketAddr::new(*address, *port).to_string()
        }
        (Hop::Address(address, _), _) => address.to_string(),
        (Hop::Obfuscated(name), _) => name.clone(),
        (Hop::Unknown, _) => "unknown".to_owned(),
    });
    let line = hops.chain(peer.map(|address| address.to_string())).collect::<Vec<_>>().join(", ");
    value(&line).filter(|line| !line.is_empty())
}

/// The same as elements of Forwarded (RFC 7239, section 4). Scheme and host are the client's, and said
/// once, at its element: what is said of other hops no other field repeats.
fn elements(headers: &HeaderMap, told: &Told, client: &Client, peer: Option<IpAddr>) -> String {
    let peer = peer.map_or(Hop::Unknown, |address| Hop::Address(address, None));
    let mut line = String::new();
    for (index, hop) in told.hops.iter().chain([&peer]).enumerate() {
        if index > 0 {
            line.push_str(", ");
        }
        push_node(&mut line, hop);
        if index == told.client.unwrap_or(told.hops.len()) {
            push_client(&mut line, headers, client);
        }
    }
    line
}

/// What is no token is quoted, an IPv6 address in its brackets (section 6). No `by`: it would reveal
/// where we are.
fn push_node(line: &mut String, hop: &Hop) {
    line.push_str("for=");
    // Writing to a string does not fail.
    let _ = match hop {
        Hop::Address(IpAddr::V4(address), None) => write!(line, "{address}"),
        Hop::Address(IpAddr::V4(address), Some(port)) => write!(line, "\"{address}:{port}\""),
        Hop::Address(IpAddr::V6(address), None) => write!(line, "\"[{address}]\""),
        Hop::Address(IpAddr::V6(address), Some(port)) => write!(line, "\"[{address}]:{port}\""),
        Hop::Obfuscated(name) => write!(line, "{name}"),
        Hop::Unknown => write!(line, "unknown"),
    };
}

fn push_client(line: &mut String, headers: &HeaderMap, client: &Client) {
    let host = client.host.as_ref().and_then(|host| host.to_str().ok());
    let _ = match host.filter(|host| port_agrees(headers, host, client.scheme)) {
        // A valid host has neither a quote nor a backslash in it.
        Some(host) if host.bytes().all(list::is_token_byte) => write!(line, ";host={host}"),
        Some(host) => write!(line, ";host=\"{host}\""),
        None => Ok(()),
    };
    let _ = write!(line, ";proto={}", client.scheme.as_str());
}

/// Whether X-Forwarded-Port, if a trusted proxy set it, is the port that host and scheme say. Forwarded
/// has no parameter for it; if they differ, it leaves the host to X-Forwarded-Host.
fn port_agrees(headers: &HeaderMap, host: &str, scheme: Scheme) -> bool {
    let mut ports = list::members(headers, &X_FORWARDED_PORT);
    let Some(port) = ports.next() else { return true };
    let usual = scheme.usual_port().to_string();
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

fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
