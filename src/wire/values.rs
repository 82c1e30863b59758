//! The JSON of values.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::session::json::Json;
use crate::session::record::Values;

/// The values as one JSON object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValuesObject<'a>(pub(crate) &'a Values);

impl Serialize for ValuesObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key.as_str(), value)))
    }
}

/// Returns the values as one JSON object in printable ASCII, for a header.
///
/// Other characters are escaped. They occur only in strings, where JSON allows that.
pub(crate) fn values_header(values: &Values) -> String {
    let mut out = String::from("{");
    for (index, (key, value)) in values.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_ascii(&mut out, Json::string(key.as_str()).as_str());
        out.push(':');
        push_ascii(&mut out, value.as_str());
    }
    out.push('}');
    out
}

fn push_ascii(out: &mut String, text: &str) {
    for character in text.chars() {
        if matches!(character, ' '..='~') {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::record::Key;

    fn values(pairs: &[(&str, &str)]) -> Values {
        let pair = |(key, value): &(&str, &str)| {
            let value = Json::parse(value.as_bytes(), 0).expect("JSON");
            (Key::new(key).expect("a key"), value)
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn values_keep_their_text() {
        let values = values(&[("a\"b", "[1.0,1e400]"), ("é", "\"\\u00e9é\"")]);
        let text = serde_json::to_string(&ValuesObject(&values)).expect("serializable");
        assert_eq!(text, "{\"a\\\"b\":[1.0,1e400],\"é\":\"\\u00e9é\"}");
    }

    #[test]
    fn header_is_ascii() {
        let values = values(&[("é", "\"a\u{1f600}\u{7f} b\"")]);
        assert_eq!(values_header(&values), r#"{"\u00e9":"a\ud83d\ude00\u007f b"}"#);
        let back = Json::parse(values_header(&values).as_bytes(), 0).expect("JSON").members();
        assert_eq!(back.expect("an object").pop().map(|(name, _)| name).as_deref(), Some("é"));
    }
}
