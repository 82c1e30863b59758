//! The JSON of values.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Serialize, Serializer};

use crate::session::json::Json;
use crate::session::record::{Key, Values};

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
        push_member(&mut out, key, value);
    }
    out.push('}');
    out
}

/// The values that fit into a header, and the keys of the others.
#[derive(Debug)]
pub(crate) struct PartialValues<'a> {
    /// One JSON object in printable ASCII.
    pub(crate) data: String,
    /// The keys, in their order.
    pub(crate) omitted: Vec<&'a Key>,
}

/// A value as the member of an object.
struct Member<'a> {
    key: &'a Key,
    /// The member in ASCII; `None` if it certainly does not fit.
    text: Option<String>,
    fits: bool,
}

/// Selects the values that fit into a header of `max_bytes`: the smallest ones, in ASCII and with their keys; of equal
/// ones the first.
pub(crate) fn values_within(values: &Values, max_bytes: usize) -> PartialValues<'_> {
    let member =
        |(key, value)| Member { key, text: short_member(key, value, max_bytes), fits: false };
    let mut members: Vec<Member<'_>> = values.iter().map(member).collect();
    let mut by_size: Vec<&mut Member<'_>> =
        members.iter_mut().filter(|member| member.text.is_some()).collect();
    by_size.sort_by_key(|member| member.text.as_ref().map(String::len));
    let mut size = "{}".len();
    for member in by_size {
        let comma = usize::from(size > "{}".len());
        size += comma + member.text.as_ref().map_or(0, String::len);
        if size > max_bytes {
            break;
        }
        member.fits = true;
    }
    let (sent, omitted): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.fits);
    let sent: Vec<String> = sent.into_iter().filter_map(|member| member.text).collect();
    PartialValues {
        data: format!("{{{}}}", sent.join(",")),
        omitted: omitted.into_iter().map(|member| member.key).collect(),
    }
}

/// Returns the keys for a header: percent-encoded, so that they have neither commas nor spaces, and comma-separated.
pub(crate) fn keys_header(keys: &[&Key]) -> String {
    /// All characters except the unreserved ones (RFC 3986, section 2.3).
    const NOT_UNRESERVED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let encoded = |key: &&Key| utf8_percent_encode(key.as_str(), NOT_UNRESERVED).to_string();
    keys.iter().map(encoded).collect::<Vec<_>>().join(",")
}

/// Returns a member in ASCII. One whose value alone exceeds `max_bytes` is not encoded, which never shortens it.
fn short_member(key: &Key, value: &Json, max_bytes: usize) -> Option<String> {
    if value.as_str().len() > max_bytes {
        return None;
    }
    let mut text = String::new();
    push_member(&mut text, key, value);
    Some(text)
}

fn push_member(out: &mut String, key: &Key, value: &Json) {
    push_ascii(out, Json::string(key.as_str()).as_str());
    out.push(':');
    push_ascii(out, value.as_str());
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

    #[track_caller]
    fn check_within(max_bytes: usize, data: &str, omitted: &str) {
        let values = values(&[
            ("a", "\"xxxxxxxxx\""),
            ("b", "1"),
            ("c", "[2]"),
            ("\u{e9},", "3"),
            ("z", "4"),
        ]);
        let partial = values_within(&values, max_bytes);
        assert_eq!(
            (&*partial.data, &*keys_header(&partial.omitted)),
            (data, omitted),
            "{max_bytes}"
        );
        assert!(partial.data.len() <= max_bytes.max("{}".len()));
    }

    #[test]
    fn smallest_values_come_first() {
        check_within(100, r#"{"a":"xxxxxxxxx","b":1,"c":[2],"z":4,"\u00e9,":3}"#, "");
        check_within(49, r#"{"a":"xxxxxxxxx","b":1,"c":[2],"z":4,"\u00e9,":3}"#, "");
        check_within(48, r#"{"b":1,"c":[2],"z":4,"\u00e9,":3}"#, "a");
        check_within(32, r#"{"b":1,"c":[2],"z":4}"#, "a,%C3%A9%2C");
        check_within(20, r#"{"b":1,"z":4}"#, "a,c,%C3%A9%2C");
        check_within(12, r#"{"b":1}"#, "a,c,z,%C3%A9%2C");
        check_within(0, "{}", "a,b,c,z,%C3%A9%2C");
        assert_eq!(values_within(&Values::new(), 0).data, "{}");
    }

    #[test]
    fn keys_keep_unreserved_characters_only() {
        let keys = ["A-z.0_~", "a b", "*", "100%", "\"\\/", "\u{738b}"]
            .map(|key| Key::new(key).expect("a key"));
        let keys: Vec<&Key> = keys.iter().collect();
        assert_eq!(keys_header(&keys), "A-z.0_~,a%20b,%2A,100%25,%22%5C%2F,%E7%8E%8B");
    }

    #[test]
    fn header_is_ascii() {
        let values = values(&[("é", "\"a\u{1f600}\u{7f} b\"")]);
        assert_eq!(values_header(&values), r#"{"\u00e9":"a\ud83d\ude00\u007f b"}"#);
        let back = Json::parse(values_header(&values).as_bytes(), 0).expect("JSON").members();
        assert_eq!(back.expect("an object").pop().map(|(name, _)| name).as_deref(), Some("é"));
    }
}
