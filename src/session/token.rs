//! The two tokens: of the cookie, and of a request.
//!
//! Both are signed by the key ring, so that a forged one is refused before the store is called.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use smallvec::SmallVec;

use super::id::Id;
use super::key_ring::{KeyRing, Purpose, SignedBy, TAG_BYTES};
use super::peer::Instance;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The token in the cookie: a session, and the generation of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieToken {
    pub(crate) id: Id,
    /// The generation. The record decides whether it still opens the session.
    pub(crate) generation: u32,
}

impl CookieToken {
    /// The number of characters.
    pub(crate) const LENGTH: usize = 48;

    /// Returns `base64url(id ‖ generation ‖ tag)`, which depends on id, generation, name and key only.
    pub(crate) fn sign(self, ring: &KeyRing, cookie_name: &str) -> Secret {
        let generation = self.generation.to_be_bytes();
        let parts: [&[u8]; 4] = [cookie_name.as_bytes(), &[0], self.id.as_bytes(), &generation];
        let tag = ring.tag(Purpose::Cookie, &parts);
        Secret::new(
            URL_SAFE_NO_PAD.encode([self.id.as_bytes().as_slice(), &generation, &tag].concat()),
        )
    }

    /// Parses a token that the ring has signed for a cookie of this name; `None` for any other text.
    pub fn verify(ring: &KeyRing, cookie_name: &str, text: &[u8]) -> Option<(Self, SignedBy)> {
        if text.len() != Self::LENGTH {
            return None;
        }
        let mut bytes = [0; Self::LENGTH / 4 * 3];
        URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (id, rest) = bytes.split_first_chunk::<{ Id::BYTES }>()?;
        let (generation, tag) = rest.split_first_chunk::<4>()?;
        let parts: [&[u8]; 4] = [cookie_name.as_bytes(), &[0], id, generation];
        let signed_by = ring.verify(Purpose::Cookie, &parts, tag)?;
        let token = Self { id: Id::from_bytes(*id), generation: u32::from_be_bytes(*generation) };
        Some((token, signed_by))
    }
}

/// The token of a request: its number, and the session that it had when it was forwarded.
///
/// While the request lasts, its instance has the rest in the table of requests in flight. Afterwards
/// the token alone is accepted for `request_token_linger`. At another instance it is accepted at once
/// for changes that need no cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestToken {
    /// The request's number on its instance.
    pub(crate) number: u64,
    /// The session that the request came with.
    pub(crate) bound: Bound,
    /// Its changes touch the session.
    pub(crate) touches: bool,
    pub(crate) forwarded_at: Timestamp,
}

/// The session of a request when it was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// A session, opened at this generation.
    Session(Id, u32),
    /// No session; one that the request creates gets this id.
    None(Id),
    /// A session that the request may not change (stale, ended, ambiguous) or could not load.
    Refused,
}

impl RequestToken {
    /// The number of bytes without the authority of the instance.
    const BYTES: usize = 8 + 8 + Id::BYTES + 4 + 1 + 6 + TAG_BYTES;

    /// The number of characters without an authority. Three bytes of authority take four more.
    pub const LENGTH: usize = Self::length(0);

    const fn length(authority: usize) -> usize {
        ((Self::BYTES + authority) * 4).div_ceil(3)
    }

    /// Appends the signed token of a request of `instance`.
    pub(crate) fn sign_into(&self, ring: &KeyRing, instance: &Instance, text: &mut BytesMut) {
        let (kind, id, generation) = match self.bound {
            Bound::Session(id, generation) => (0, id, generation),
            Bound::None(id) => (1, id, 0),
            Bound::Refused => (2, Id::from_bytes([0; Id::BYTES]), 0),
        };
        let kind = if self.touches { kind | TOUCHES } else { kind };
        let forwarded_at = self.forwarded_at.as_millis().to_be_bytes();
        // 48 bits of milliseconds reach past the year 9999.
        let [_, _, forwarded_at @ ..] = forwarded_at;
        let mut bytes = SmallVec::<[u8; 128]>::new();
        bytes.extend_from_slice(&instance.number.to_be_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&generation.to_be_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&forwarded_at);
        bytes.extend_from_slice(instance.authority.as_bytes());
        let tag = ring.tag(Purpose::Request, &[&bytes]);
        bytes.extend_from_slice(&tag);
        let start = text.len();
        text.resize(start + Self::length(instance.authority.len()), 0);
        // It cannot fail, since the room has exactly the length of the token.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, text.get_mut(start..).unwrap_or_default());
    }

    /// Parses a token that the ring has signed, and the instance that issued it; `None` for any other
    /// text.
    pub fn verify(ring: &KeyRing, text: &[u8]) -> Option<(Self, Instance)> {
        if !(Self::LENGTH..=Self::length(Instance::MAX_AUTHORITY)).contains(&text.len()) {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (said, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG_BYTES)?)?;
        ring.verify(Purpose::Request, &[said], tag)?;
        let (instance, rest) = said.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk::<{ Id::BYTES }>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let (&kind, rest) = rest.split_first()?;
        let (millis, authority) = rest.split_first_chunk::<6>()?;
        let millis = millis.iter().fold(0, |sum, byte| (sum << 8) | i64::from(*byte));
        let id = Id::from_bytes(*id);
        let bound = match kind & !TOUCHES {
            0 => Bound::Session(id, u32::from_be_bytes(*generation)),
            1 => Bound::None(id),
            _ => Bound::Refused,
        };
        let token = Self {
            number: u64::from_be_bytes(*number),
            bound,
            touches: kind & TOUCHES != 0,
            forwarded_at: Timestamp::from_millis(millis),
        };
        let number = u64::from_be_bytes(*instance);
        let authority = std::str::from_utf8(authority).ok()?.to_owned();
        Some((token, Instance { number, authority }))
    }

    /// Returns whether the token alone is still accepted for values at `now`.
    ///
    /// The time counts from the forwarding, with `slack` for the request itself: longer requests are
    /// kept in the table of requests in flight until their own time has passed.
    pub(crate) fn lingers(&self, now: Timestamp, linger: Duration, slack: Duration) -> bool {
        now <= self.forwarded_at + linger + slack
    }
}

/// The flag in a token's kind that says that its request's changes touch the session.
const TOUCHES: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    fn ring(first: u8, older: &[u8]) -> KeyRing {
        let key = |byte| Zeroizing::new([byte; 32]);
        KeyRing::new(&key(first), &older.iter().copied().map(key).collect::<Vec<_>>())
    }

    fn signed(request: &RequestToken, ring: &KeyRing, instance: &Instance) -> Secret {
        let mut text = BytesMut::new();
        request.sign_into(ring, instance, &mut text);
        Secret::new(String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn keys_roll_over() {
        let token = CookieToken { id: Id::from_bytes([7; 16]), generation: 3 };
        let text = token.sign(&ring(1, &[]), "__Host-id");
        let check =
            |ring: &KeyRing| CookieToken::verify(ring, "__Host-id", text.reveal().as_bytes());
        assert_eq!(check(&ring(1, &[])), Some((token, SignedBy::First)));
        assert_eq!(check(&ring(2, &[1])), Some((token, SignedBy::Older(0))));
        assert_eq!(check(&ring(2, &[])), None);
    }

    #[test]
    fn token_is_valid_for_one_cookie_and_purpose() {
        let ring = ring(1, &[]);
        let token = CookieToken { id: Id::from_bytes([7; 16]), generation: 3 };
        let text = token.sign(&ring, "__Host-id");
        assert_eq!(text.reveal().len(), CookieToken::LENGTH);
        assert_eq!(CookieToken::verify(&ring, "id", text.reveal().as_bytes()), None);
        assert_eq!(RequestToken::verify(&ring, text.reveal().as_bytes()), None);
    }

    proptest! {
        #[test]
        fn a_cookie_token_says_what_was_signed(id: [u8; 16], generation: u32) {
            let ring = ring(1, &[]);
            let cookie = CookieToken { id: Id::from_bytes(id), generation };
            let text = cookie.sign(&ring, "id");
            prop_assert_eq!(CookieToken::verify(&ring, "id", text.reveal().as_bytes()), Some((cookie, SignedBy::First)));
        }

        #[test]
        fn a_request_token_says_what_was_signed(
            id: [u8; 16],
            generation: u32,
            numbers: [u64; 2],
            authority in "([a-z0-9.:-]{0,40}|[a-z]{255})",
            millis in 0..253_402_300_799_999_i64,
            touches: bool,
        ) {
            let ring = ring(1, &[]);
            let id = Id::from_bytes(id);
            let instance = Instance { number: numbers[0], authority };
            for bound in [Bound::Session(id, generation), Bound::None(id), Bound::Refused] {
                let forwarded_at = Timestamp::from_millis(millis);
                let request = RequestToken { number: numbers[1], bound, touches, forwarded_at };
                let text = signed(&request, &ring, &instance);
                prop_assert_eq!(text.reveal().len(), RequestToken::length(instance.authority.len()));
                prop_assert_eq!(RequestToken::verify(&ring, text.reveal().as_bytes()), Some((request, instance.clone())));
            }
        }

        #[test]
        fn a_changed_request_token_is_refused(at in 0..RequestToken::length(20), to in "[A-Za-z0-9_-]") {
            let ring = ring(1, &[]);
            let instance = Instance { number: 1, authority: "http.example.test:80".to_owned() };
            let bound = Bound::Session(Id::from_bytes([7; 16]), 1);
            let forwarded_at = Timestamp::from_millis(1);
            let request = RequestToken { number: 2, bound, touches: true, forwarded_at };
            let text = signed(&request, &ring, &instance);
            let mut changed = text.reveal().to_owned();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text.reveal());
            prop_assert_eq!(RequestToken::verify(&ring, changed.as_bytes()), None);
        }

        #[test]
        fn a_changed_token_is_refused(id: [u8; 16], at in 0..CookieToken::LENGTH, to in "[A-Za-z0-9_-]") {
            let ring = ring(1, &[]);
            let text = CookieToken { id: Id::from_bytes(id), generation: 1 }.sign(&ring, "id");
            let mut changed = text.reveal().to_owned();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text.reveal());
            prop_assert_eq!(CookieToken::verify(&ring, "id", changed.as_bytes()), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(text: Vec<u8>) {
            let ring = ring(1, &[]);
            prop_assert_eq!(CookieToken::verify(&ring, "id", &text), None);
            prop_assert_eq!(RequestToken::verify(&ring, &text), None);
        }
    }
}
