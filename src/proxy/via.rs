//! The Via field (RFC 9110, section 7.6.3), and loop detection by it.

use http::header::{HeaderMap, HeaderValue, MaxSizeReached, VIA};
use http::{StatusCode, Version};

use super::{list, request::Rejected};

/// The Via fields of this instance. Its pseudonym must be unique: two instances in a chain with the same
/// pseudonym would be detected as a loop.
#[derive(Clone, Debug)]
pub(crate) struct Via {
    pseudonym: String,
    http_10: HeaderValue,
    http_11: HeaderValue,
    http_2: HeaderValue,
}

/// The reason why Via cannot be appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViaError {
    /// The request has already passed this instance.
    #[error("proxy loop detected")]
    Loop,
    /// The head is full.
    #[error("too many header fields")]
    Full(#[from] MaxSizeReached),
}

impl From<ViaError> for Rejected {
    fn from(error: ViaError) -> Self {
        match error {
            ViaError::Loop => {
                Self { status: StatusCode::LOOP_DETECTED, reason: "proxy loop detected" }
            }
            ViaError::Full(full) => full.into(),
        }
    }
}

impl Via {
    /// Returns `None` if the pseudonym is not a token.
    pub(crate) fn new(pseudonym: &str) -> Option<Self> {
        if pseudonym.is_empty() || !pseudonym.bytes().all(list::is_token_byte) {
            return None;
        }
        let line = |version: &str| HeaderValue::from_str(&format!("{version} {pseudonym}")).ok();
        Some(Self {
            pseudonym: pseudonym.to_owned(),
            http_10: line("1.0")?,
            http_11: line("1.1")?,
            http_2: line("2")?,
        })
    }

    /// Appends Via to a request that was received with the given version, unless it has passed this
    /// instance before.
    pub(crate) fn append(&self, headers: &mut HeaderMap, version: Version) -> Result<(), ViaError> {
        if list::members(headers, &VIA).any(|member| self.wrote(member)) {
            return Err(ViaError::Loop);
        }
        let line = match version {
            Version::HTTP_09 | Version::HTTP_10 => &self.http_10,
            Version::HTTP_2 => &self.http_2,
            _ => &self.http_11,
        };
        headers.try_append(VIA, line.clone())?;
        Ok(())
    }

    /// Returns whether this instance wrote a member. Comments are not skipped: one that is never closed
    /// could hide the pseudonym behind it.
    fn wrote(&self, member: &[u8]) -> bool {
        // `1.1 name (comment)`: received-protocol, received-by, and an optional comment.
        let mut words =
            member.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(self.pseudonym.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&'static str], loops: bool) {
        let via = Via::new("cloakroom-x1").unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(VIA, HeaderValue::from_static(line));
        }
        assert_eq!(via.append(&mut headers, Version::HTTP_10).is_err(), loops, "{lines:?}");
        let mut expected = lines.to_vec();
        expected.extend((!loops).then_some("1.0 cloakroom-x1"));
        assert_eq!(headers.get_all(VIA).iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn appends_after_other_proxies() {
        check(&[], false);
        check(&["1.0 fred, HTTP/1.1 p.example.net (Apache)"], false);
        check(&["1.1 cloakroom-x2", "1.1 cloakroom"], false);
        check(&["cloakroom-x1", "", ",,", "1.1"], false);
    }

    #[test]
    fn detects_loops_in_any_field() {
        check(&["1.1 cloakroom-x1"], true);
        check(&["1.1 a", "1.0 b (c), HTTP/1.1\t Cloakroom-X1 (v1)"], true);
    }

    #[test]
    fn requires_a_token_as_pseudonym() {
        for name in ["", "a b", "a,b", "a(b)", "a\nb", "é"] {
            assert!(Via::new(name).is_none(), "{name:?}");
        }
    }
}
