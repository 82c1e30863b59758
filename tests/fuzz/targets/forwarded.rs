//! Forwarded and X-Forwarded-*: for any input, the upstream receives at most one valid header of
//! each name.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use cloakroom::proxy::forwarded::{Peer, Rules, rewrite};
use cloakroom::net::scheme::Scheme;
use cloakroom::net::trust::Trust;
use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const NAMES: [HeaderName; 6] = [
    FORWARDED,
    HOST,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
];

fuzz_target!(|data: &[u8]| {
    // Each line is a header; its first byte selects the name.
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((first, value)) = line.split_first() else { continue };
        let name = &NAMES[usize::from(*first) % NAMES.len()];
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(name, value);
    }
    let proxy = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    for (trust, address) in [
        (Trust::default(), Some(proxy)),
        (Trust::new(vec!["10.0.0.0/8".parse().unwrap()]), Some(proxy)),
        (Trust::new(vec!["0.0.0.0/0".parse().unwrap()]), None),
    ] {
        let mut headers = headers.clone();
        let is_trusted = trust.trusts_peer(address);
        let peer = Peer { address, scheme: Scheme::Http, is_unknown: false };
        let rules = Rules { trust, ..Rules::default() };
        let Ok(rewritten) = rewrite(&mut headers, &rules, peer) else { continue };
        let client = rewritten.client;
        assert!(headers.get_all("x-forwarded-proto").iter().count() == 1);
        assert!(headers.get_all("x-real-ip").iter().count() <= 1);
        if !is_trusted {
            assert_eq!(client.address, address, "an untrusted peer's headers are ignored");
            assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        }
    }
});
