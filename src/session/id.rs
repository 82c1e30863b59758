//! Session ids.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The public name of a session: 128 random bits, written as 22 characters of base64url.
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

#[cfg(test)]
mod tests {
    use super::*;

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
