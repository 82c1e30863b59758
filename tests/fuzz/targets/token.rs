//! Unsigned tokens and sealed cookies are rejected.
#![no_main]

use std::sync::LazyLock;

use cloakroom::session::key_ring::{Key, KeyRing};
use cloakroom::session::sealed::Sealed;
use cloakroom::session::token::{CookieToken, RequestToken};
use libfuzzer_sys::fuzz_target;

static RING: LazyLock<KeyRing> = LazyLock::new(|| KeyRing::new(&Key::new([7; 32]), &[]));

fuzz_target!(|data: &[u8]| {
    assert!(CookieToken::verify(&RING, "id", data).is_none());
    assert!(RequestToken::verify(&RING, data).is_none());
    assert!(Sealed::open(&RING, "id", data).is_none());
});
