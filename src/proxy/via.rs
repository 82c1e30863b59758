//! Via (RFC 9110 7.6.3): says that we were here, and by that finds loops.

use http::header::{HeaderMap, HeaderValue, MaxSizeReached, VIA};
use http::{StatusCode, Version};

use super::{list, request::Rejected};

/// Our name in Via. It must be this instance's own: two instances of one name, one behind the other,
/// are taken for a loop.
#[derive(Clone, Debug)]
pub struct Via {
    pseudonym: String,
    http_10: HeaderValue,
    http_11: HeaderValue,
    http_2: HeaderValue,
}

/// Why a request did not get our Via.
#[derive(Debug, thiserror::Error)]
pub enum ViaError {
    /// It has been here before.
    #[error("the request came back to us")]
    Loop,
    /// Its head is full.
    #[error("too many header fields")]
    Full(#[from] MaxSizeReached),
}

impl From<ViaError> for Rejected {
    fn from(error: ViaError) -> Self {
        match error {
            ViaError::Loop => {
                Self { status: StatusCode::LOOP_DETECTED, reason: "the request came back to us" }
            }
            ViaError::Full(full) => full.into(),
        }
    }
}

impl Via {
    /// `None` where the pseudonym is no token.
    pub fn new(pseudonym: &str) -> Option<Self> {
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

    /// Adds our line to a request that came in the given version, unless one of ours is there.
    pub fn append(&self, headers: &mut HeaderMap, version: Version) -> Result<(), ViaError> {
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

    /// Comments are not skipped: one that is never closed could hide our name behind it.
    fn wrote(&self, member: &[u8]) -> bool {
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
    fn our_line_comes_last() {
        check(&[], false);
        check(&["1.0 fred, HTTP/1.1 p.example.net (Apache)"], false);
        check(&["1.1 cloakroom-x2", "1.1 cloakroom"], false);
        check(&["cloakroom-x1", "", ",,", "1.1"], false);
    }

    #[test]
    fn our_name_in_any_line_is_a_loop() {
        check(&["1.1 cloakroom-x1"], true);
        check(&["1.1 a", "1.0 b (c), HTTP/1.1\t Cloakroom-X1 (v1)"], true);
    }

    #[test]
    fn a_pseudonym_is_a_token() {
        for name in ["", "a b", "a,b", "a(b)", "a\nb", "é"] {
            assert!(Via::new(name).is_none(), "{name:?}");
        }
    }
}
