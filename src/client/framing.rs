//! The framing fields of a response: one meaning for every recipient.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};

/// A Content-Length field that does not give one length.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Content-Length is not one number")]
pub(super) struct InvalidLength;

/// Leaves a response at most one framing field of one value.
///
/// A length alongside Transfer-Encoding is removed (RFC 9112, section 6.3): the client would take so many
/// bytes for the whole body. A list of equal lengths becomes one (RFC 9110, section 8.6), also in responses
/// without a body, whose length hyper does not check. Fails for anything else.
pub(super) fn settle(headers: &mut HeaderMap) -> Result<(), InvalidLength> {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
        return Ok(());
    }
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(()) };
    if lines.next().is_none() && number(first.as_bytes()).is_some() {
        return Ok(());
    }
    let mut members = headers
        .get_all(CONTENT_LENGTH)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|member| number(member.trim_ascii()));
    let length = members.next().flatten().ok_or(InvalidLength)?;
    if members.any(|other| other != Some(length)) {
        return Err(InvalidLength);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(())
}

/// `1*DIGIT`; `None` also for a number that does not fit.
fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(lines: &[&'static str]) -> Result<Vec<HeaderValue>, InvalidLength> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_LENGTH, HeaderValue::from_static(line));
        }
        settle(&mut headers)?;
        Ok(headers.get_all(CONTENT_LENGTH).iter().cloned().collect())
    }

    #[test]
    fn equal_lengths_become_one() {
        for lines in [&["2"][..], &["2, 2"], &["2", "2"], &["2,\t2 ", "2"], &["02, 2"]] {
            assert_eq!(settled(lines).unwrap(), ["2"], "{lines:?}");
        }
        assert!(settled(&[]).unwrap().is_empty());
    }

    #[test]
    fn different_or_invalid_lengths_fail() {
        for lines in [
            &["2, 3"][..],
            &["2", "3"],
            &["2, "],
            &[", 2"],
            &[""],
            &["+2"],
            &["-2"],
            &["2 2"],
            &["0x2"],
            &["2;2"],
            &["18446744073709551616"],
        ] {
            assert_eq!(settled(lines), Err(InvalidLength), "{lines:?}");
        }
    }

    #[test]
    fn transfer_encoding_removes_lengths() {
        let mut headers = HeaderMap::new();
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("2"));
        headers.append(CONTENT_LENGTH, HeaderValue::from_static("x"));
        assert_eq!(settle(&mut headers), Ok(()));
        assert_eq!(headers.keys().collect::<Vec<_>>(), [TRANSFER_ENCODING]);
    }
}
