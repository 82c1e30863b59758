//! Session ids.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The place of a session in its store, for as long as it lasts: 128 random bits, written as 22 characters of
/// base64url. Callers see it as a [`PublicId`].
///
/// It may be logged, shown and stored elsewhere: it does not open the session without a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; Self::BYTES]);

impl Id {
    /// The number of bytes.
    pub const BYTES: usize = 16;

    /// The number of characters.
    pub const LENGTH: usize = (Self::BYTES * 4).div_ceil(3);

    /// Creates an id from its bytes.
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns a part of it, which is as random as the whole.
    pub(crate) fn part(self) -> u64 {
        let bytes = self.as_bytes().iter().take(size_of::<u64>());
        bytes.fold(0, |part, byte| part << 8 | u64::from(*byte))
    }

    /// Returns its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Parses the format of [`fmt::Display`], and no other spelling.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::LENGTH {
            return None;
        }
        let mut bytes = [0; Self::BYTES];
        URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::LENGTH];
        // It cannot fail, since the text has exactly this length.
        let _ = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of a session as callers see it: the session's place, and the number of times that it was given another id.
///
/// Written as the place alone while the number is 0, and later as 24 characters of base64url: the place, and the
/// number as two bytes, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PublicId {
    pub(crate) place: Id,
    pub(crate) counter: u16,
}

impl PublicId {
    /// Returns the first id of the session at a place.
    pub(crate) fn first(place: Id) -> Self {
        Self { place, counter: 0 }
    }

    const BYTES: usize = Id::BYTES + 2;
    const LENGTH: usize = Self::BYTES * 4 / 3;

    /// Parses the format of [`fmt::Display`], and no other spelling.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::LENGTH {
            return Some(Self { place: Id::parse(text)?, counter: 0 });
        }
        let mut bytes = [0; Self::BYTES];
        URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (place, counter) = bytes.split_first_chunk::<{ Id::BYTES }>()?;
        let counter = u16::from_be_bytes(counter.try_into().ok()?);
        (counter > 0).then_some(Self { place: Id::from_bytes(*place), counter })
    }
}

impl fmt::Display for PublicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counter == 0 {
            return fmt::Display::fmt(&self.place, f);
        }
        let mut bytes = [0; Self::BYTES];
        let (place, counter) = bytes.split_at_mut(Id::BYTES);
        place.copy_from_slice(self.place.as_bytes());
        counter.copy_from_slice(&self.counter.to_be_bytes());
        let mut text = [0; Self::LENGTH];
        // It cannot fail, since the text has exactly this length.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_id_has_one_spelling() {
        let place = Id::from_bytes([0xff; 16]);
        for (counter, text) in [
            (0, "_____________________w"),
            (1, "_____________________wAB"),
            (u16::MAX, "________________________"),
        ] {
            let id = PublicId { place, counter };
            assert_eq!(id.to_string(), text);
            assert_eq!(PublicId::parse(text), Some(id));
        }
        for other in
            ["", "_____________________x", "_____________________wAA", "_____________________wAB="]
        {
            assert_eq!(PublicId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn id_has_one_spelling() {
        let id = Id::from_bytes([0xff; 16]);
        assert_eq!(id.to_string(), "_____________________w");
        assert_eq!(Id::parse("_____________________w"), Some(id));
        for other in [
            "",
            "_",
            "_____________________x",
            "/////////////////////w",
            "_____________________w==",
        ] {
            assert_eq!(Id::parse(other), None, "{other}");
        }
    }
}
