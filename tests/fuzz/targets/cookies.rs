//! The Cookie header: session cookies are removed, all others are kept unchanged.
#![no_main]

use cloakroom::session::cookie::take;
use http::header::{COOKIE, HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

const NAME: &str = "__Host-id";

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(line) = HeaderValue::from_bytes(line) else { continue };
        headers.append(COOKIE, line);
    }
    let before: usize = headers.values().map(HeaderValue::len).sum();
    let taken = take(&mut headers, NAME).len();
    let after: usize = headers.values().map(HeaderValue::len).sum();
    assert!(after + taken * NAME.len() <= before, "removing cookies adds no bytes");
    // No session cookie is left, neither for this parser nor for a naive one.
    let left = headers.clone();
    assert!(take(&mut headers, NAME).is_empty());
    assert_eq!(headers, left);
    for line in left.get_all(COOKIE) {
        for pair in line.as_bytes().split(|byte| *byte == b';') {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            assert!(name != NAME.as_bytes() || !pair.contains(&b'='), "{line:?}");
        }
    }
});
