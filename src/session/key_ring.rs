//! The key ring: the first key signs, all verify.

use std::fmt;

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
    fingerprint: Fingerprint,
}

/// The public name of a key: 8 bytes, written as 16 hexadecimal digits.
///
/// It is derived from the key as the subkeys are, with a label of its own, so it says nothing of
/// them or of the key: safe to log, to count by, and to keep in a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; Self::BYTES]);

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
    /// A key that still verifies, by its place after the first: the token is renewed at its next
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
            self.older.iter().position(made_by).map(SignedBy::Older)
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
        first.or_else(|| {
            let mut older = self.older.iter().enumerate();
            older.find_map(|(place, keys)| Some((opened(keys)?, SignedBy::Older(place))))
        })
    }

    /// Returns the fingerprints of the keys, in the ring's order: the first one's first.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        std::iter::once(&self.first).chain(&self.older).map(|keys| keys.fingerprint)
    }

    /// Returns the fingerprint of the key that made a tag or a seal.
    pub fn fingerprint(&self, signed_by: SignedBy) -> Fingerprint {
        let older = match signed_by {
            SignedBy::First => None,
            SignedBy::Older(place) => self.older.get(place),
        };
        older.unwrap_or(&self.first).fingerprint
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing({} keys)", 1 + self.older.len())
    }
}

impl Fingerprint {
    /// Bytes of a fingerprint.
    pub const BYTES: usize = 8;

    /// Returns its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Parses the form that [`fmt::Display`] writes, and no other.
    pub fn parse(text: &str) -> Option<Self> {
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

/// What HKDF gives for a fingerprint: bytes, and no key.
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
        let sealed = extracted.expand(&[b"sealed"], hkdf::HKDF_SHA256);
        let mut fingerprint = [0; Fingerprint::BYTES];
        extracted
            .expand(&[b"fingerprint"], FingerprintLength)
            .and_then(|expanded| expanded.fill(&mut fingerprint))
            .expect("8 bytes are within what HKDF gives");
        Self {
            token: subkey("token"),
            request: subkey("request"),
            peer: subkey("peer"),
            sealed: sealed.expect("one hash length is within what HKDF gives").into(),
            fingerprint: Fingerprint(fingerprint),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_names_its_key_alone() {
        let key = |byte| Zeroizing::new([byte; 32]);
        let ring = KeyRing::new(&key(1), &[key(2), key(3)]);
        let all: Vec<String> = ring.fingerprints().map(|one| one.to_string()).collect();
        // Fixed values: instances of different releases compare them.
        assert_eq!(all, ["1419f280e4c4a8bb", "68a9a23dce76f3dd", "c500d6ce0abb93f6"]);
        assert_eq!(ring.fingerprint(SignedBy::First).to_string(), all[0]);
        assert_eq!(ring.fingerprint(SignedBy::Older(1)).to_string(), all[2]);
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
