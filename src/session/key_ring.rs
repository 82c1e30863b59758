//! The key ring: the first key signs, all verify.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{aead, hkdf, hmac};
use zeroize::Zeroizing;

/// The session keys. A new key is put first; tokens that older keys signed stay valid.
///
/// Each purpose has its own subkey, derived by HKDF-SHA-256 (RFC 5869), so that a tag for one purpose
/// is invalid for another.
pub struct KeyRing {
    first: Subkeys,
    older: Vec<Subkeys>,
}

struct Subkeys {
    token: hmac::Key,
    request: hmac::Key,
    peer: hmac::Key,
    sealed: hkdf::Prk,
    held: hkdf::Prk,
    fingerprint: Fingerprint,
}

/// The public name of a key: 8 bytes, written as 16 hexadecimal digits.
///
/// It is derived from the key as the subkeys are, with its own label, so it reveals nothing about
/// them or the key. It may be logged, used as a metric label and stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; Self::BYTES]);

/// A key of 32 random bytes.
pub type Key = Zeroizing<[u8; 32]>;

/// The kind of message that a tag authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The token in the session cookie.
    Cookie,
    /// The token of a request, which the upstream gets.
    Request,
    /// A call that one instance forwards to another.
    Peer,
}

/// The kind of text that is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealing {
    /// A whole session, in its cookie.
    Session,
    /// The value of a held cookie.
    Held,
}

/// The key that made a tag or a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedBy {
    /// The key that signs.
    First,
    /// A key that only verifies, by its position after the first. The token is renewed at its next
    /// touch.
    Older(usize),
}

impl SignedBy {
    /// Returns the key's place in the ring, in the order of [`KeyRing::fingerprints`].
    pub(crate) fn position(self) -> usize {
        match self {
            Self::First => 0,
            Self::Older(place) => place + 1,
        }
    }
}

/// A tag: the first 16 bytes of HMAC-SHA-256.
pub(super) const TAG_BYTES: usize = 16;

/// The length of a [`Nonce`].
pub(super) const NONCE_BYTES: usize = 24;

/// The nonce of a seal: its first half selects the key, its second half is the nonce of AES-GCM.
pub(crate) type Nonce = [u8; NONCE_BYTES];

/// The number of bytes by which a sealed text is longer.
pub(super) const SEAL_BYTES: usize = 16;

impl KeyRing {
    /// Creates a ring of `first`, which signs, and `older`, which only verify.
    pub fn new(first: &Key, older: &[Key]) -> Self {
        Self { first: Subkeys::derive(first), older: older.iter().map(Subkeys::derive).collect() }
    }

    /// Returns the tag of `parts` with the first key.
    pub(super) fn tag(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        self.first.tag(purpose, parts)
    }

    /// Returns the key that made `tag` over `parts`, if any did. Compares in constant time.
    pub(super) fn verify(&self, purpose: Purpose, parts: &[&[u8]], tag: &[u8]) -> Option<SignedBy> {
        let made_by =
            |keys: &Subkeys| verify_slices_are_equal(&keys.tag(purpose, parts), tag).is_ok();
        if made_by(&self.first) {
            Some(SignedBy::First)
        } else {
            self.older.iter().position(made_by).map(SignedBy::Older)
        }
    }

    /// Encrypts and authenticates `text` with the first key, and authenticates `data` with it. The
    /// nonce must be random and new.
    pub(super) fn seal(
        &self,
        sealing: Sealing,
        nonce: &Nonce,
        data: &[u8],
        mut text: Vec<u8>,
    ) -> Vec<u8> {
        let (key, nonce) = self.first.cipher(sealing, nonce);
        key.seal_in_place_append_tag(nonce, aead::Aad::from(data), &mut text)
            .expect("AES-GCM seals up to 64 GiB");
        text
    }

    /// Decrypts a text that was sealed with `data`, and returns the key that sealed it; `None` if no
    /// key did.
    pub(super) fn open(
        &self,
        sealing: Sealing,
        nonce: &Nonce,
        data: &[u8],
        sealed: &[u8],
    ) -> Option<(Vec<u8>, SignedBy)> {
        let opened = |keys: &Subkeys| {
            let (key, nonce) = keys.cipher(sealing, nonce);
            let mut text = sealed.to_vec();
            let length = key.open_in_place(nonce, aead::Aad::from(data), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        };
        let first = opened(&self.first).map(|text| (text, SignedBy::First));
        first.or_else(|| {
            let mut older = self.older.iter().enumerate();
            older.find_map(|(place, keys)| Some((opened(keys)?, SignedBy::Older(place))))
        })
    }

    /// Returns the fingerprints of the keys, in the ring's order: the first one's first.
    pub(crate) fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        std::iter::once(&self.first).chain(&self.older).map(|keys| keys.fingerprint)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", 1 + self.older.len())
    }
}

impl Fingerprint {
    pub(crate) const BYTES: usize = 8;

    /// Returns its bytes.
    #[cfg(test)]
    pub(crate) const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Parses the format of [`fmt::Display`], and no other spelling.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_lower = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        let fits = text.len() == 2 * Self::BYTES && text.bytes().all(is_lower);
        let number = u64::from_str_radix(text, 16).ok().filter(|_| fits)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The output length of HKDF for a fingerprint.
struct FingerprintLength;

impl hkdf::KeyType for FingerprintLength {
    fn len(&self) -> usize {
        Fingerprint::BYTES
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
        let sealing = |purpose: &str| -> hkdf::Prk {
            let info = [purpose.as_bytes()];
            let expanded = extracted.expand(&info, hkdf::HKDF_SHA256);
            expanded.expect("one hash length is within what HKDF gives").into()
        };
        let mut fingerprint = [0; Fingerprint::BYTES];
        extracted
            .expand(&[b"fingerprint"], FingerprintLength)
            .and_then(|expanded| expanded.fill(&mut fingerprint))
            .expect("8 bytes are within what HKDF gives");
        Self {
            token: subkey("token"),
            request: subkey("request"),
            peer: subkey("peer"),
            sealed: sealing("sealed"),
            held: sealing("held"),
            fingerprint: Fingerprint(fingerprint),
        }
    }

    /// The key of one seal, and its nonce under that key. Random nonces of 12 bytes under one key
    /// for all would run out at 2^32 seals (NIST SP 800-38D, section 8.3).
    fn cipher(&self, sealing: Sealing, nonce: &Nonce) -> (aead::LessSafeKey, aead::Nonce) {
        let (picks, nonce) = nonce.split_at(NONCE_BYTES / 2);
        let picks = [picks];
        let keys = match sealing {
            Sealing::Session => &self.sealed,
            Sealing::Held => &self.held,
        };
        let key = keys.expand(&picks, &aead::AES_256_GCM);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_identifies_its_key() {
        let key = |byte| Zeroizing::new([byte; 32]);
        let ring = KeyRing::new(&key(1), &[key(2), key(3)]);
        let all: Vec<String> = ring.fingerprints().map(|one| one.to_string()).collect();
        // Fixed values: instances of different releases compare them.
        assert_eq!(all, ["1419f280e4c4a8bb", "68a9a23dce76f3dd", "c500d6ce0abb93f6"]);
        let alone = KeyRing::new(&key(3), &[]);
        assert_eq!(alone.fingerprints().next(), ring.fingerprints().nth(2));
        // It is neither a part of the key nor of what any subkey makes.
        for purpose in [Purpose::Cookie, Purpose::Request, Purpose::Peer] {
            for label in ["fingerprint", ""] {
                let tag = ring.tag(purpose, &[label.as_bytes()]);
                assert!(!tag.starts_with(ring.first.fingerprint.as_bytes()));
            }
        }
    }

    #[test]
    fn fingerprint_has_one_spelling() {
        let text = "00ff0a0000000001";
        assert_eq!(Fingerprint::parse(text).map(|one| one.to_string()).as_deref(), Some(text));
        for other in ["", "0", "00FF0A0000000001", "+0ff0a0000000001", "00ff0a00000000010"] {
            assert_eq!(Fingerprint::parse(other), None, "{other}");
        }
    }
}
