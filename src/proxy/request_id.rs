//! The id of a request: `X-Request-Id`, by which the lines of several services are joined.
//!
//! It is the id of the request's trace, unless a trusted proxy has sent another.

use http::HeaderMap;
use http::header::HeaderValue;

use super::names::X_REQUEST_ID;

/// Most bytes of an id that is accepted.
const MAX_BYTES: usize = 128;

/// Returns the id that a request has, if it is one line of visible ASCII.
pub(super) fn received(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(X_REQUEST_ID).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let is_valid =
        (1..=MAX_BYTES).contains(&line.len()) && line.as_bytes().iter().all(u8::is_ascii_graphic);
    is_valid.then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_one_line_of_visible_ascii() {
        let longest = "x".repeat(MAX_BYTES);
        for valid in ["a", "0af7651916cd43dd8448eb211c80319c", "<\"&=;>", &longest] {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, valid.parse().unwrap())]);
            assert_eq!(received(&headers).unwrap(), valid);
        }
        for invalid in ["", "a b", "a\tb", "caf\u{e9}", &format!("{longest}x")] {
            let value = HeaderValue::from_bytes(invalid.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, value)]);
            assert_eq!(received(&headers), None, "{invalid}");
        }
        let mut two = HeaderMap::new();
        two.append(X_REQUEST_ID, HeaderValue::from_static("a"));
        two.append(X_REQUEST_ID, HeaderValue::from_static("a"));
        assert_eq!(received(&two), None);
    }
}
