//! The key ring: the first key signs, all verify.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{aead, hkdf, hmac};
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
    sealed: hkdf::Prk,
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

/// Which key made a tag or a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// The key that signs today.
    First,
    /// A key that still verifies: the token is renewed at its next touch.
    Older,
}

/// A tag: the first 16 bytes of HMAC-SHA-256.
pub(super) const TAG_BYTES: usize = 16;

/// Bytes of a [`Nonce`].
pub(super) const NONCE_BYTES: usize = 24;

/// What makes a seal one of its own: the first half picks its key, the second half is AES-GCM's.
pub type Nonce = [u8; NONCE_BYTES];

/// How many bytes longer a sealed text is.
pub(super) const SEAL_BYTES: usize = 16;

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

    /// `text` that nobody can read or change without the first key, nor take for one beside other
    /// `data`. The nonce must be random and new.
    pub(super) fn seal(&self, nonce: &Nonce, data: &[u8], mut text: Vec<u8>) -> Vec<u8> {
        let (key, nonce) = self.first.cipher(nonce);
        key.seal_in_place_append_tag(nonce, aead::Aad::from(data), &mut text)
            .expect("AES-GCM seals up to 64 GiB");
        text
    }

    /// The text that was sealed beside `data`, and by which key; `None` where none has sealed it.
    pub(super) fn open(
        &self,
        nonce: &Nonce,
        data: &[u8],
        sealed: &[u8],
    ) -> Option<(Vec<u8>, SignedBy)> {
        let opened = |keys: &Subkeys| {
            let (key, nonce) = keys.cipher(nonce);
            let mut text = sealed.to_vec();
            let length = key.open_in_place(nonce, aead::Aad::from(data), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        };
        let first = opened(&self.first).map(|text| (text, SignedBy::First));
        first.or_else(|| Some((self.older.iter().find_map(opened)?, SignedBy::Older)))
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
        let sealed = extracted.expand(&[b"sealed"], hkdf::HKDF_SHA256);
        Self {
            token: subkey("token"),
            request: subkey("request"),
            peer: subkey("peer"),
            sealed: sealed.expect("one hash length is within what HKDF gives").into(),
        }
    }

    /// The key of one seal, and its nonce under that key. Random nonces of 12 bytes under one key
    /// for all would run out at 2^32 seals (NIST SP 800-38D, section 8.3).
    fn cipher(&self, nonce: &Nonce) -> (aead::LessSafeKey, aead::Nonce) {
        let (picks, nonce) = nonce.split_at(NONCE_BYTES / 2);
        let picks = [picks];
        let key = self.sealed.expand(&picks, &aead::AES_256_GCM);
        let key = key.expect("one key is within what HKDF gives").into();
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).expect("half of it is 12 bytes");
        (aead::LessSafeKey::new(key), nonce)
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
