//! List-valued header fields (RFC 9110, section 5.6.1): several lines, each with several elements.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Returns the elements of a field from all its lines, split at every comma, trimmed, without empty
/// ones. For fields whose elements are tokens.
pub(super) fn members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(trim)
        .filter(|member| !member.is_empty())
}

/// Returns the elements of a field from all its lines, with quoted strings kept whole (RFC 9110,
/// section 5.6.4). Returns `None` if a quoted string is not closed in its line: what follows would be
/// ambiguous.
pub(super) fn quoted_members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Option<Vec<&'a [u8]>> {
    let mut members = Vec::new();
    for line in headers.get_all(name) {
        if !is_closed(line.as_bytes()) {
            return None;
        }
        members.extend(quoted_split(line.as_bytes(), b','));
    }
    Some(members)
}

/// Splits at a delimiter outside quoted strings; parts are trimmed, and empty ones omitted.
pub(super) fn quoted_split(text: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    // The closure sees every byte in order, so the state of the quotes is that of the whole line.
    let mut quotes = Quotes::Outside;
    text.split(move |byte| {
        quotes = quotes.after(*byte);
        quotes == Quotes::Outside && *byte == delimiter
    })
    .map(trim)
    .filter(|part| !part.is_empty())
}

/// Joins the lines of a field into one, and appends `last` as an element.
///
/// A single line, because some recipients read only the first. By RFC 9110, section 5.3, the meaning
/// is the same.
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName, last: &[u8]) -> Option<HeaderValue> {
    let mut line = Vec::new();
    for part in headers.get_all(name).iter().map(|part| trim(part.as_bytes())).chain([last]) {
        if part.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.extend_from_slice(b", ");
        }
        line.extend_from_slice(part);
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(line)).ok()
}

/// Trims optional whitespace (RFC 9110, section 5.6.3): SP and HTAB only.
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Splits at the first `delimiter`.
pub(super) fn split_once(text: &[u8], delimiter: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == delimiter)?;
    let (before, [_, after @ ..]) = text.split_at_checked(at)? else {
        return None;
    };
    Some((before, after))
}

/// Returns whether a byte is allowed in a token (RFC 9110, section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

fn is_closed(line: &[u8]) -> bool {
    line.iter().fold(Quotes::Outside, |quotes, byte| quotes.after(*byte)) == Quotes::Outside
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Outside,
    Inside,
    Escaped,
}

impl Quotes {
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Outside, b'"') | (Self::Escaped, _) => Self::Inside,
            (Self::Outside, _) | (Self::Inside, b'"') => Self::Outside,
            (Self::Inside, b'\\') => Self::Escaped,
            (Self::Inside, _) => Self::Inside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn does_not_split_quoted_strings() {
        let parts: Vec<_> = quoted_split(br#"a="x, \", y" , b,,c"#, b',').collect();
        assert_eq!(parts, [&br#"a="x, \", y""#[..], b"b", b"c"]);
        assert!(!is_closed(br#"a="x"#));
        assert!(!is_closed(br#"a="x\""#));
        assert!(is_closed(br#"a="x\"""#));
    }

    #[test]
    fn trims_only_spaces_and_tabs() {
        assert_eq!(trim(b" \ta b\t "), b"a b");
        assert_eq!(trim("\u{a0}a\u{85}".as_bytes()), "\u{a0}a\u{85}".as_bytes());
        assert_eq!(trim(b" "), b"");
    }
}
