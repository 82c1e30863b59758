//! What trusted proxies say of a request that they passed on.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::{
    list,
    names::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO},
};
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;

/// Which fields a trusted proxy spoke by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Nothing,
    XForwarded,
    Forwarded,
}

/// What the fields that are left say.
pub(super) struct Told {
    pub(super) source: Source,
    /// The hops that the believed list names, in its order: the nearest last.
    pub(super) hops: Vec<Hop>,
    /// The index of the client among the hops; `None` if the client is the peer.
    pub(super) client: Option<usize>,
    pub(super) address: Option<IpAddr>,
    pub(super) scheme: Option<Scheme>,
    pub(super) host: Option<HeaderValue>,
}

/// A hop as a list names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// With the port, if the list has one.
    Address(IpAddr, Option<u16>),
    /// An obfuscated identifier (RFC 7239, section 6.3), with its underscore.
    Obfuscated(String),
    /// `unknown`, or a text without meaning.
    Unknown,
}

impl Hop {
    /// Parses an address with or without a port (IPv6 with or without brackets), or a name for none.
    fn parse(text: &[u8]) -> Self {
        let Ok(text) = str::from_utf8(text) else { return Self::Unknown };
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

impl Told {
    pub(super) fn read(headers: &HeaderMap, trust: &Trust, peer: Option<IpAddr>) -> Self {
        if [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST]
            .iter()
            .any(|name| headers.contains_key(name))
        {
            return Self::x_forwarded(headers, trust, peer);
        }
        // A list that can't be read is as good as none, and ours is not appended to it.
        match list::quoted_members(headers, &FORWARDED) {
            Some(elements) if !elements.is_empty() => Self::forwarded(&elements, trust, peer),
            _ => Self {
                source: Source::Nothing,
                hops: Vec::new(),
                client: None,
                address: peer,
                scheme: None,
                host: None,
            },
        }
    }

    fn x_forwarded(headers: &HeaderMap, trust: &Trust, peer: Option<IpAddr>) -> Self {
        let hops: Vec<_> = list::members(headers, &X_FORWARDED_FOR).map(Hop::parse).collect();
        let walked = walk(hops.iter().rev().map(Hop::address), trust);
        // Few proxies append to these two, so a list may be shorter; what is left of the client's
        // own entry a stranger wrote.
        let at_client = |name: &HeaderName| {
            let members: Vec<_> = list::members(headers, name).collect();
            members.iter().rev().nth(walked.last).or_else(|| members.first()).copied()
        };
        let (scheme, host) = (at_client(&X_FORWARDED_PROTO), at_client(&X_FORWARDED_HOST));
        let (scheme, host) = (scheme.and_then(self::scheme), host.and_then(valid_host));
        Self::walked(Source::XForwarded, hops, &walked, peer).with(scheme, host)
    }

    fn forwarded(elements: &[&[u8]], trust: &Trust, peer: Option<IpAddr>) -> Self {
        let nodes = elements.iter().map(|element| Some(Hop::parse(&parameter(element, "for")?)));
        let nodes: Vec<Option<Hop>> = nodes.collect();
        let addresses = nodes.iter().rev().map(|node| node.as_ref().and_then(Hop::address));
        let walked = walk(addresses, trust);
        // The element of the client's own hop, or the next one towards us that says it.
        let at_client = |name: &str| {
            let mut nearer = elements.iter().rev().take(walked.last + 1).rev();
            nearer.find_map(|element| parameter(element, name))
        };
        let scheme = at_client("proto").and_then(|text| scheme(&text));
        let host = at_client("host").and_then(|text| valid_host(&text));
        // An element without `for` ends the walk, so none stands between the client and us.
        let hops = nodes.into_iter().flatten().collect();
        Self::walked(Source::Forwarded, hops, &walked, peer).with(scheme, host)
    }

    fn walked(source: Source, hops: Vec<Hop>, walked: &Walked, peer: Option<IpAddr>) -> Self {
        let client = walked.client.and_then(|depth| hops.len().checked_sub(depth + 1));
        let address = client.and_then(|index| hops.get(index)).map_or(peer, Hop::address);
        Self { source, hops, client, address, scheme: None, host: None }
    }

    fn with(self, scheme: Option<Scheme>, host: Option<HeaderValue>) -> Self {
        Self { scheme, host, ..self }
    }
}

/// Some proxies write the schemes of WebSocket.
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

/// How far a walk through the hops went.
struct Walked {
    /// How far from the right the client is; `None` if it is the peer.
    client: Option<usize>,
    /// How far from the right the walk ended: at the client, or at what is no address.
    last: usize,
}

/// Goes through the hops, the nearest first, as long as they are trusted proxies.
///
/// A hop that is no address ("unknown", an obfuscated name, garbage) ends the walk at the one that
/// named it.
fn walk(hops: impl Iterator<Item = Option<IpAddr>>, trust: &Trust) -> Walked {
    let mut walked = Walked { client: None, last: 0 };
    for (depth, hop) in hops.enumerate() {
        walked.last = depth;
        let Some(address) = hop else { break };
        walked.client = Some(depth);
        if !trust.covers(address) {
            break;
        }
    }
    walked
}

fn valid_host(text: &[u8]) -> Option<HeaderValue> {
    let text = str::from_utf8(text).ok().filter(|text| host::is_valid(text))?;
    HeaderValue::from_str(text).ok()
}

/// A parameter of a Forwarded element, unquoted. None where it is missing, or comes twice, which RFC
/// 7239 4 forbids.
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

/// RFC 9110 5.6.4: a backslash stands before a byte that is meant literally.
fn unescaped(inner: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [b'\\', byte, tail @ ..] | [byte, tail @ ..] = rest {
        text.push(*byte);
        rest = tail;
    }
    text
}
