//! Parsing of forwarding fields: what trusted proxies report about a request.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::{
    list,
    names::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO},
};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

/// The family of fields that a trusted proxy used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    None,
    XForwarded,
    Forwarded,
}

/// The content of the forwarding fields, after the removal of those that are not trusted.
pub(super) struct ForwardedInfo {
    pub(super) family: Family,
    /// The hops of the trusted list, in its order: the nearest last.
    pub(super) hops: Vec<Hop>,
    /// The index of the client in `hops`; `None` if the client is the peer.
    pub(super) client: Option<usize>,
    pub(super) address: Option<IpAddr>,
    pub(super) scheme: Option<Scheme>,
    pub(super) host: Option<HeaderValue>,
}

/// A hop as a list describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// An address, with its port if the list has one.
    Address(IpAddr, Option<u16>),
    /// An obfuscated identifier (RFC 7239, section 6.3), with its underscore.
    Obfuscated(String),
    /// `unknown`, or invalid text.
    Unknown,
}

impl Hop {
    /// Parses an address with or without a port (IPv6 with or without brackets), or an obfuscated
    /// identifier. Never fails: anything else is [`Self::Unknown`].
    fn parse(text: &[u8]) -> Self {
        let Ok(text) = str::from_utf8(text) else { return Self::Unknown };
        // An obfuscated identifier begins with an underscore (RFC 7239, section 6.3).
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.starts_with('_') && text.len() > 1 && text.bytes().all(is_name) {
            return Self::Obfuscated(text.to_owned());
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let parsed = match bare {
            Some(bare) => bare.parse().ok().map(|address| (IpAddr::V6(address), None)),
            None => text.parse().map(|address| (address, None)).ok().or_else(|| {
                let socket = text.parse::<SocketAddr>().ok()?;
                Some((socket.ip(), Some(socket.port())))
            }),
        };
        match parsed {
            Some((address, port)) => Self::Address(address.to_canonical(), port),
            None => Self::Unknown,
        }
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address, _) => Some(*address),
            Self::Obfuscated(_) | Self::Unknown => None,
        }
    }
}

impl ForwardedInfo {
    pub(super) fn read(headers: &HeaderMap, trust: &Trust, peer: Option<IpAddr>) -> Self {
        if [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST]
            .iter()
            .any(|name| headers.contains_key(name))
        {
            return Self::x_forwarded(headers, trust, peer);
        }
        // A list that cannot be parsed is discarded rather than appended to.
        match list::quoted_members(headers, &FORWARDED) {
            Some(elements) if !elements.is_empty() => Self::forwarded(&elements, trust, peer),
            _ => Self::of_peer(peer),
        }
    }

    /// Returns what is known without any field: the client is the peer.
    pub(super) fn of_peer(peer: Option<IpAddr>) -> Self {
        let (family, hops) = (Family::None, Vec::new());
        Self { family, hops, client: None, address: peer, scheme: None, host: None }
    }

    fn x_forwarded(headers: &HeaderMap, trust: &Trust, peer: Option<IpAddr>) -> Self {
        // From the right: each hop was appended by the one after it, so trust ends at the first hop
        // that is not a trusted proxy.
        let hops: Vec<_> = list::members(headers, &X_FORWARDED_FOR).map(Hop::parse).collect();
        let walk = walk(hops.iter().rev().map(Hop::address), trust);
        // Few proxies append to these two fields, so their lists may be shorter than that of the hops.
        // Entries to the left of the client's own are not trusted.
        let at_client = |name: &HeaderName| {
            let members: Vec<_> = list::members(headers, name).collect();
            members.iter().rev().nth(walk.last).or_else(|| members.first()).copied()
        };
        let (scheme, host) = (at_client(&X_FORWARDED_PROTO), at_client(&X_FORWARDED_HOST));
        let (scheme, host) = (scheme.and_then(self::scheme), host.and_then(valid_host));
        Self::with_hops(Family::XForwarded, hops, &walk, peer).with(scheme, host)
    }

    fn forwarded(elements: &[&[u8]], trust: &Trust, peer: Option<IpAddr>) -> Self {
        let nodes = elements.iter().map(|element| Some(Hop::parse(&parameter(element, "for")?)));
        let nodes: Vec<Option<Hop>> = nodes.collect();
        let addresses = nodes.iter().rev().map(|node| node.as_ref().and_then(Hop::address));
        let walk = walk(addresses, trust);
        // The parameter of the client's hop, or of the nearest hop after it that has the parameter.
        let at_client = |name: &str| {
            let mut nearer = elements.iter().rev().take(walk.last + 1).rev();
            nearer.find_map(|element| parameter(element, name))
        };
        let scheme = at_client("proto").and_then(|text| scheme(&text));
        let host = at_client("host").and_then(|text| valid_host(&text));
        // An element without `for` ends the walk, so the hops after the client are complete.
        let hops = nodes.into_iter().flatten().collect();
        Self::with_hops(Family::Forwarded, hops, &walk, peer).with(scheme, host)
    }

    fn with_hops(family: Family, hops: Vec<Hop>, walk: &Walk, peer: Option<IpAddr>) -> Self {
        let client = walk.client.and_then(|depth| hops.len().checked_sub(depth + 1));
        let address = client.and_then(|index| hops.get(index)).map_or(peer, Hop::address);
        Self { family, hops, client, address, scheme: None, host: None }
    }

    fn with(self, scheme: Option<Scheme>, host: Option<HeaderValue>) -> Self {
        Self { scheme, host, ..self }
    }
}

/// Parses a scheme. Some proxies report those of WebSocket.
fn scheme(text: &[u8]) -> Option<Scheme> {
    let is = |scheme: &str| text.eq_ignore_ascii_case(scheme.as_bytes());
    if is("https") || is("wss") {
        Some(Scheme::Https)
    } else if is("http") || is("ws") {
        Some(Scheme::Http)
    } else {
        None
    }
}

/// The result of a walk through the hops.
struct Walk {
    /// Distance of the client from the right; `None` if the client is the peer.
    client: Option<usize>,
    /// Distance from the right of the last visited hop: the client, or a hop without an address.
    last: usize,
}

/// Walks the hops, the nearest first, as long as they are trusted proxies.
///
/// A hop without an address ("unknown", an obfuscated identifier, invalid text) ends the walk: the hop
/// that reported it is the client.
fn walk(hops: impl Iterator<Item = Option<IpAddr>>, trust: &Trust) -> Walk {
    let mut walk = Walk { client: None, last: 0 };
    for (depth, hop) in hops.enumerate() {
        walk.last = depth;
        let Some(address) = hop else { break };
        walk.client = Some(depth);
        if !trust.contains(address) {
            break;
        }
    }
    walk
}

fn valid_host(text: &[u8]) -> Option<HeaderValue> {
    let text = str::from_utf8(text).ok().filter(|text| host::is_valid(text))?;
    HeaderValue::from_str(text).ok()
}

/// Returns a parameter of a Forwarded element, unquoted. Returns `None` if it is missing or repeated,
/// which RFC 7239, section 4, forbids.
fn parameter(element: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut values = list::quoted_split(element, b';')
        .filter_map(|pair| list::split_once(pair, b'='))
        .filter(|(found, _)| list::trim(found).eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| list::trim(value));
    match (values.next()?, values.next()) {
        ([b'"', inner @ .., b'"'], None) => Some(unescaped(inner)),
        (value, None) => Some(value.to_vec()),
        (_, Some(_)) => None,
    }
}

/// Resolves quoted pairs (RFC 9110, section 5.6.4): a backslash and the byte that it escapes.
fn unescaped(inner: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [b'\\', byte, tail @ ..] | [byte, tail @ ..] = rest {
        text.push(*byte);
        rest = tail;
    }
    text
}
