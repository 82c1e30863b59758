//! The sealed cookie: a whole session, encrypted and kept by its client.
//!
//! `base64url( 1 ‖ nonce[24] ‖ AES-256-GCM(session) )`, with the cookie's name as associated data.
//! Each cookie has its own key, derived from the `sealed` subkey and the first half of its nonce, so
//! that the number of cookies that one key seals is not limited by random 96-bit nonces. This is the
//! construction of XAES-256-GCM (C2SP), with HKDF-Expand (RFC 5869) in place of its CMAC.
//!
//! The session is encoded by postcard: numbers as varints, texts with their lengths. The first byte is
//! the version of the format: 2 if the session has been given another id, keeps the values of a principal that
//! has logged out, or holds cookies of the site, which older releases do not know, else 1.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::held::Held;
use super::id::Id;
use super::json::Json;
use super::key_ring::{KeyRing, NONCE_BYTES, Nonce, SEAL_BYTES, Sealing, SignedBy};
use super::record::{Client, Expiry, Key, Meta, Principal, Record};
use crate::secret::Secret;
use crate::time::Timestamp;

/// A session in a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub(crate) id: Id,
    pub(crate) record: Record,
}

/// A session that older releases can open.
const FORMAT: u8 = 1;

/// A session that ends with [`Later`].
const LATER_FORMAT: u8 = 2;

impl Sealed {
    /// The maximum length of name and value together, in bytes, in browsers (RFC 6265bis, section
    /// 5.6).
    pub const MAX_COOKIE: usize = 4096;

    /// Returns the cookie's value. The nonce must be random and new.
    pub(crate) fn seal(&self, ring: &KeyRing, cookie_name: &str, nonce: &Nonce) -> Secret {
        let mut bytes = vec![Later::from(&self.record.meta).format()];
        bytes.extend_from_slice(nonce);
        bytes.extend(ring.seal(Sealing::Session, nonce, cookie_name.as_bytes(), self.to_bytes()));
        Secret::new(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens a cookie that the ring has sealed under this name; `None` for any other text.
    pub fn open(ring: &KeyRing, cookie_name: &str, text: &[u8]) -> Option<(Self, SignedBy)> {
        if cookie_name.len() + text.len() > Self::MAX_COOKIE {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&format, bytes) = bytes.split_first()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let (plain, signed_by) =
            ring.open(Sealing::Session, nonce, cookie_name.as_bytes(), sealed)?;
        let sealed = Self::parse(&plain)?;
        (Later::from(&sealed.record.meta).format() == format).then_some((sealed, signed_by))
    }

    /// Returns whether it fits a cookie of this name.
    pub(crate) fn fits(&self, cookie_name: &str) -> bool {
        let bytes = 1 + NONCE_BYTES + self.to_bytes().len() + SEAL_BYTES;
        cookie_name.len() + (bytes * 4).div_ceil(3) <= Self::MAX_COOKIE
    }

    fn to_bytes(&self) -> Vec<u8> {
        let plain = Plain::from(self);
        let later = Later::from(&self.record.meta);
        let encoded = match later.format() {
            FORMAT => postcard::to_stdvec(&plain),
            _ => postcard::to_stdvec(&(plain, later)),
        };
        encoded.expect("postcard encodes these types")
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (plain, rest) = postcard::take_from_bytes::<Plain<'_>>(bytes).ok()?;
        let mut sealed = plain.into_sealed()?;
        if !rest.is_empty() {
            let (later, []) = postcard::take_from_bytes::<Later<'_>>(rest).ok()? else {
                return None;
            };
            later.add_to(&mut sealed.record.meta)?;
        }
        Some(sealed)
    }
}

/// The part of a session that older releases do not know.
#[derive(Serialize, Deserialize)]
struct Later<'a> {
    id_counter: u16,
    #[serde(borrow)]
    former_principal: Option<&'a str>,
    #[serde(borrow)]
    held: Option<&'a str>,
}

impl<'a> From<&'a Meta> for Later<'a> {
    fn from(meta: &'a Meta) -> Self {
        Self {
            id_counter: meta.id_counter,
            former_principal: meta.former_principal.as_deref().map(Principal::as_str),
            held: meta.held.as_ref().map(|held| held.as_str()),
        }
    }
}

impl Later<'_> {
    fn format(&self) -> u8 {
        match self {
            Self { id_counter: 0, former_principal: None, held: None } => FORMAT,
            _ => LATER_FORMAT,
        }
    }

    /// Adds it to a session; `None` if it is not as this release writes it.
    fn add_to(self, meta: &mut Meta) -> Option<()> {
        let is_written = self.format() == LATER_FORMAT;
        meta.id_counter = self.id_counter;
        if let Some(name) = self.former_principal {
            meta.former_principal = Some(Box::new(Principal::new(name)?));
        }
        if let Some(text) = self.held {
            meta.held = Some(Arc::new(Held::parse(text)?));
        }
        is_written.then_some(())
    }
}

/// A session as it is encoded. The order of the fields is the format.
#[derive(Serialize, Deserialize)]
struct Plain<'a> {
    id: [u8; Id::BYTES],
    version: u64,
    generation: u32,
    generation_since: i64,
    previous_until: Option<i64>,
    floor: u32,
    login_at: Option<i64>,
    #[serde(borrow)]
    principal: Option<&'a str>,
    created_at: i64,
    last_seen_at: i64,
    cookie_set_at: i64,
    expiry: Option<PlainExpiry>,
    withheld: bool,
    client: Option<(Option<IpAddr>, &'a str)>,
    values: Vec<(&'a str, &'a str)>,
}

#[derive(Serialize, Deserialize)]
enum PlainExpiry {
    /// Seconds.
    Idle(u64),
    /// Milliseconds since the epoch.
    At(i64),
    /// Seconds.
    BrowserClose(Option<u64>),
}

impl<'a> From<&'a Sealed> for Plain<'a> {
    fn from(Sealed { id, record }: &'a Sealed) -> Self {
        let Meta { client, principal, .. } = &record.meta;
        let values = record.values.iter();
        Self {
            id: *id.as_bytes(),
            version: record.meta.version,
            generation: record.meta.generation,
            generation_since: record.meta.generation_since.as_millis(),
            previous_until: record.meta.previous_until.map(Timestamp::as_millis),
            floor: record.meta.floor,
            login_at: record.meta.login_at.map(Timestamp::as_millis),
            principal: principal.as_ref().map(Principal::as_str),
            created_at: record.meta.created_at.as_millis(),
            last_seen_at: record.meta.last_seen_at.as_millis(),
            cookie_set_at: record.meta.cookie_set_at.as_millis(),
            expiry: record.meta.expiry.map(PlainExpiry::from),
            withheld: record.meta.withheld,
            client: client.as_ref().map(|client| (client.address, &*client.user_agent)),
            values: values.map(|(key, text)| (key.as_str(), text.as_str())).collect(),
        }
    }
}

impl Plain<'_> {
    fn into_sealed(self) -> Option<Sealed> {
        let principal = match self.principal {
            Some(name) => Some(Principal::new(name)?),
            None => None,
        };
        let client =
            self.client.map(|(address, agent)| Client { address, user_agent: agent.into() });
        let values = self.values.into_iter();
        let values = values.map(|(key, text)| Some((Key::new(key)?, Json::trusted(text))));
        let meta = Meta {
            version: self.version,
            generation: self.generation,
            generation_since: Timestamp::from_millis(self.generation_since),
            previous_until: self.previous_until.map(Timestamp::from_millis),
            floor: self.floor,
            login_at: self.login_at.map(Timestamp::from_millis),
            principal,
            // A sealed session is never rotated away.
            principal_since: 0,
            former_principal: None,
            id_counter: 0,
            held: None,
            unpresented: false,
            created_at: Timestamp::from_millis(self.created_at),
            last_seen_at: Timestamp::from_millis(self.last_seen_at),
            cookie_set_at: Timestamp::from_millis(self.cookie_set_at),
            expiry: self.expiry.map(Expiry::from),
            withheld: self.withheld,
            // A sealed session exists only in a cookie that was presented.
            unproven: false,
            client: client.map(Box::new),
        };
        let record = Record { meta, values: values.collect::<Option<_>>()? };
        Some(Sealed { id: Id::from_bytes(self.id), record })
    }
}

impl From<Expiry> for PlainExpiry {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::Idle(idle) => Self::Idle(idle.as_secs()),
            Expiry::At(instant) => Self::At(instant.as_millis()),
            Expiry::BrowserClose(idle) => Self::BrowserClose(idle.map(|idle| idle.as_secs())),
        }
    }
}

impl From<PlainExpiry> for Expiry {
    fn from(expiry: PlainExpiry) -> Self {
        match expiry {
            PlainExpiry::Idle(seconds) => Self::Idle(Duration::from_secs(seconds)),
            PlainExpiry::At(millis) => Self::At(Timestamp::from_millis(millis)),
            PlainExpiry::BrowserClose(seconds) => {
                Self::BrowserClose(seconds.map(Duration::from_secs))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::record::Values;
    use crate::session::tests::{at, meta};

    fn ring(first: u8, older: &[u8]) -> KeyRing {
        let key = |byte| Zeroizing::new([byte; 32]);
        KeyRing::new(&key(first), &older.iter().copied().map(key).collect::<Vec<_>>())
    }

    fn sealed(values: &[(&str, &str)]) -> Sealed {
        let one =
            |(key, text): &(&str, &str)| (Key::new(key).expect("a key"), Json::trusted(*text));
        let values: Values = values.iter().map(one).collect();
        let meta = Meta {
            version: u64::MAX,
            generation: 9,
            previous_until: Some(at(3)),
            floor: 7,
            login_at: Some(at(4)),
            principal: Principal::new("ada é"),
            expiry: Some(Expiry::BrowserClose(Some(Duration::from_mins(1)))),
            withheld: true,
            client: Some(Box::new(Client { address: "::1".parse().ok(), user_agent: "x".into() })),
            ..meta(at(5))
        };
        Sealed { id: Id::from_bytes([7; 16]), record: Record { meta, values } }
    }

    #[test]
    fn sealed_session_round_trips() {
        let session = sealed(&[("a", "1e400"), ("é", "{\"b\":1,\"a\":[]}")]);
        let text = session.seal(&ring(1, &[]), "__Host-id", &[1; NONCE_BYTES]);
        let open = |ring: &KeyRing, name| Sealed::open(ring, name, text.reveal().as_bytes());
        assert_eq!(open(&ring(1, &[]), "__Host-id"), Some((session.clone(), SignedBy::First)));
        assert_eq!(open(&ring(2, &[1]), "__Host-id"), Some((session, SignedBy::Older(0))));
        assert_eq!(open(&ring(2, &[]), "__Host-id"), None);
        assert_eq!(open(&ring(1, &[]), "id"), None);
        for expiry in [
            None,
            Some(Expiry::Idle(Duration::from_hours(1))),
            Some(Expiry::At(Timestamp::MAX)),
            Some(Expiry::BrowserClose(None)),
        ] {
            let mut session = sealed(&[]);
            session.record.meta.expiry = expiry;
            assert_eq!(Sealed::parse(&session.to_bytes()), Some(session));
        }
        for (former, id_counter) in [(Some("ada"), 0), (None, 300), (Some("é"), u16::MAX)] {
            let mut session = sealed(&[("a", "1")]);
            session.record.meta.former_principal = former.and_then(Principal::new).map(Box::new);
            session.record.meta.id_counter = id_counter;
            let text = session.seal(&ring(1, &[]), "id", &[1; NONCE_BYTES]);
            assert!(text.reveal().starts_with("Ag"), "the second format");
            let opened = Sealed::open(&ring(1, &[]), "id", text.reveal().as_bytes());
            assert_eq!(opened, Some((session, SignedBy::First)));
        }
    }

    #[test]
    fn cookies_are_opaque_and_unique() {
        let session = sealed(&[("secret", "\"hunter2\"")]);
        let seal = |nonce| session.seal(&ring(1, &[]), "id", &[nonce; NONCE_BYTES]);
        let (one, other) = (seal(1), seal(2));
        assert_ne!(one.reveal(), other.reveal());
        let bytes = URL_SAFE_NO_PAD.decode(one.reveal()).expect("base64url");
        assert!(!bytes.windows(6).any(|part| part == b"hunter" || part == b"secret"));
        assert!(!bytes.windows(16).any(|part| part == [7; 16]));
    }

    #[test]
    fn fits_is_the_limit_of_browsers() {
        let with = |bytes: usize| sealed(&[("a", &format!("\"{}\"", "x".repeat(bytes)))]);
        let largest = (2000..4096).take_while(|bytes| with(*bytes).fits("__Host-id")).last();
        let largest = largest.expect("something fits");
        let length = |bytes| {
            let text = with(bytes).seal(&ring(1, &[]), "__Host-id", &[1; NONCE_BYTES]);
            "__Host-id".len() + text.reveal().len()
        };
        assert!(length(largest) <= Sealed::MAX_COOKIE);
        assert!(length(largest + 1) > Sealed::MAX_COOKIE);
    }

    proptest! {
        #[test]
        fn a_changed_cookie_is_refused(at in 0..200_usize, to in "[A-Za-z0-9_-]") {
            let ring = ring(1, &[]);
            let text = sealed(&[]).seal(&ring, "id", &[1; NONCE_BYTES]).reveal().to_owned();
            let mut changed = text.clone();
            let at = at % text.len();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text);
            prop_assert_eq!(Sealed::open(&ring, "id", changed.as_bytes()), None);
            let cut = text.get(..at).expect("ASCII");
            prop_assert_eq!(Sealed::open(&ring, "id", cut.as_bytes()), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(text: Vec<u8>) {
            prop_assert_eq!(Sealed::open(&ring(1, &[]), "id", &text), None);
            prop_assert!(Sealed::parse(&text).is_none_or(|read| Sealed::parse(&read.to_bytes()) == Some(read)));
        }
    }
}
