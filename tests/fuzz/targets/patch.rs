//! The JSON documents that the session API accepts: patches, values and others.
#![no_main]

use cloakroom::wire;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let read = [
        wire::patch(data).is_ok(),
        wire::values(data).is_ok(),
        wire::value(data).is_ok(),
        wire::element(data).is_ok(),
        wire::increment(data).is_ok(),
        wire::expiry(data).is_ok(),
        wire::patches(data.split(|byte| *byte == b'\n')).is_ok(),
    ];
    // Whatever another JSON parser rejects is rejected here too. An empty body of an increment
    // means 1.
    if read.iter().take(6).any(|read| *read) && !data.trim_ascii().is_empty() {
        assert!(serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok(), "{read:?}");
    }
});
