//! The key ring: the first key signs, all verify.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

/// The key ring. Keys roll over by putting a new one first: what older keys signed stays valid.
///
/// Each purpose has a subkey of its own by HKDF-SHA-256 (RFC 5869), so that no tag made for one
/// purpose is one for another.
pub struct KeyRing {
    first: Subkeys,
    older: Vec<Subkeys>,
}

struct Subkeys {
    token: hmac::Key,
    request: hmac::Key,
    peer: hmac::Key,
}

/// A key: 32 bytes that nobody can guess.
pub type Key = Zeroizing<[u8; 32]>;

/// What a tag vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The token in the session cookie.
    Cookie,
    /// The token of one request, handed to the upstream.
    Request,
    /// A call that one instance passes to another.
    Peer,
}

/// Which key made a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// The key that signs today.
    First,
    /// A key that still verifies: the token is renewed at its next touch.
    Older,
}

/// A tag: the first 16 bytes of HMAC-SHA-256.
pub(super) const TAG_BYTES: usize = 16;

impl KeyRing {
    /// A ring of `first`, which signs, and `older`, which only verify.
    pub fn new(first: &Key, older: &[Key]) -> Self {
        Self { first: Subkeys::derive(first), older: older.iter().map(Subkeys::derive).collect() }
    }

    /// The tag of `parts`, by the first key.
    pub(super) fn tag(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        self.first.tag(purpose, parts)
    }

    /// Which key made `tag` over `parts`, if any did; compared in constant time.
    pub(super) fn verify(&self, purpose: Purpose, parts: &[&[u8]], tag: &[u8]) -> Option<SignedBy> {
        let made_by =
            |keys: &Subkeys| verify_slices_are_equal(&keys.tag(purpose, parts), tag).is_ok();
        if made_by(&self.first) {
            Some(SignedBy::First)
        } else {
            self.older.iter().any(made_by).then_some(SignedBy::Older)
        }
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys)", 1 + self.older.len())
    }
}

impl Subkeys {
    fn derive(key: &Key) -> Self {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(key.as_slice());
        let subkey = |purpose: &str| -> hmac::Key {
            let info = [purpose.as_bytes()];
            let expanded = extracted
                .expand(&info, hmac::HMAC_SHA256)
                .expect("one hash length is within what HKDF gives");
            hmac::Key::from(expanded)
        };
        Self { token: subkey("token"), request: subkey("request"), peer: subkey("peer") }
    }

    fn tag(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(match purpose {
            Purpose::Cookie => &self.token,
            Purpose::Request => &self.request,
            Purpose::Peer => &self.peer,
        });
        for part in parts {
            context.update(part);
        }
        let full = context.sign();
        let mut tag = [0; TAG_BYTES];
        for (short, byte) in tag.iter_mut().zip(full.as_ref()) {
            *short = *byte;
        }
        tag
    }
}
