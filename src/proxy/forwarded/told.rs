//! What trusted proxies say of a request that they passed on.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::super::{
    host, list,
    names::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO},
};
use crate::scheme::Scheme;
use crate::trust::Trust;

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
    pub(super) address: Option<IpAddr>,
    pub(super) scheme: Option<Scheme>,
    pub(super) host: Option<HeaderValue>,
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
            _ => Self { source: Source::Nothing, address: peer, scheme: None, host: None },
        }
    }

    fn x_forwarded(headers: &HeaderMap, trust: &Trust, peer: Option<IpAddr>) -> Self {
        let hops: Vec<_> = list::members(headers, &X_FORWARDED_FOR).map(address).collect();
        let (client, depth) = walk(hops.into_iter().rev(), trust, peer);
        // Few proxies append to these two, so a list may be shorter; what is left of the client's
        // own entry a stranger wrote.
        let beside = |name: &HeaderName| {
            let members: Vec<_> = list::members(headers, name).collect();
            members.iter().rev().nth(depth).or_else(|| members.first()).copied()
        };
        Self {
            source: Source::XForwarded,
            address: client,
            scheme: beside(&X_FORWARDED_PROTO).and_then(scheme),
            host: beside(&X_FORWARDED_HOST).and_then(valid_host),
        }
    }

    fn forwarded(elements: &[&[u8]], trust: &Trust, peer: Option<IpAddr>) -> Self {
        let node = |element: &&[u8]| address(&parameter(element, "for")?);
        let (client, depth) = walk(elements.iter().rev().map(node), trust, peer);
        // The element of the client's own hop, or the next one towards us that says it.
        let beside = |name: &str| {
            elements.iter().rev().take(depth + 1).rev().find_map(|element| parameter(element, name))
        };
        Self {
            source: Source::Forwarded,
            address: client,
            scheme: beside("proto").and_then(|text| scheme(&text)),
            host: beside("host").and_then(|text| valid_host(&text)),
        }
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

/// Goes through the hops, the nearest first, as long as they are trusted proxies.
///
/// Returns the client and how far from the right its entry is. A hop that is no address ("unknown",
/// an obfuscated name, garbage) ends the walk at the one that told of it.
fn walk(
    hops: impl Iterator<Item = Option<IpAddr>>,
    trust: &Trust,
    peer: Option<IpAddr>,
) -> (Option<IpAddr>, usize) {
    let mut client = peer;
    let mut last = 0;
    for (depth, hop) in hops.enumerate() {
        last = depth;
        let Some(address) = hop else { break };
        client = Some(address);
        if !trust.covers(address) {
            break;
        }
    }
    (client, last)
}

fn valid_host(text: &[u8]) -> Option<HeaderValue> {
    let text = str::from_utf8(text).ok().filter(|text| host::is_valid(text))?;
    HeaderValue::from_str(text).ok()
}

/// An address, with or without a port; in IPv6 with or without brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => text
            .parse::<IpAddr>()
            .or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()))
            .ok()?,
    };
    Some(address.to_canonical())
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
