//! Secrets: redacted in `Debug` output, and erased from memory when dropped.

use std::path::Path;
use std::{fmt, fs};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::{Zeroize as _, Zeroizing};

/// A secret text: a cookie token, a password or a service token.
///
/// It has no `Display`: the text is only accessible through [`Secret::reveal`].
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Reads a file, without the newline at its end.
    ///
    /// # Errors
    /// The message says what is wrong with the file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let bytes = fs::read(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
        let mut text = String::from_utf8(bytes).map_err(|error| {
            error.into_bytes().zeroize();
            format!("{shown} is not UTF-8; write the secret as text")
        })?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(Self::new(text))
    }

    /// Returns the text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns whether `text` is equal, in constant time for texts of the same length.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), text).is_ok()
    }
}

/// Compares in constant time for texts of the same length.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::new("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert!(secret.matches(b"hunter2"));
        assert!(!secret.matches(b"hunter3"));
        assert!(!secret.matches(b"hunter"));
    }
}
