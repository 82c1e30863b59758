//! JSON texts.
//!
//! Values keep the text that a caller sent, except for insignificant white space: numbers, key order
//! and escapes keep their bytes. A parser into a tree would lose them, so the text is validated and
//! copied.

mod merge;
mod scanner;

use std::borrow::Borrow;
use std::fmt;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

pub(crate) use scanner::JsonError;
use scanner::{Scanner, unescape};

/// The maximum depth of a value.
pub(crate) const MAX_DEPTH: usize = 128;

/// A valid JSON text without insignificant white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Json(Box<str>);

impl Json {
    /// Parses a text. `wrapping` is the number of levels around the values, which do not count as
    /// theirs: 2 for a patch, whose values are in an object in an object.
    pub(crate) fn parse(text: &[u8], wrapping: usize) -> Result<Self, JsonError> {
        let text =
            std::str::from_utf8(text).map_err(|error| JsonError::not_utf8(error.valid_up_to()))?;
        let scanned = Scanner::new(text, MAX_DEPTH + wrapping).document()?;
        Ok(Self(scanned.into_boxed_str()))
    }

    /// Creates one from a text that is valid already.
    pub(crate) fn trusted(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    pub(crate) fn string(text: &str) -> Self {
        Self::trusted(serde_json::Value::from(text).to_string())
    }

    pub(crate) fn integer(number: i64) -> Self {
        Self::trusted(number.to_string())
    }

    /// Creates null.
    #[cfg(test)]
    pub(crate) fn null() -> Self {
        Self::trusted("null")
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it is null.
    pub(crate) fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// Returns the integer, if it is one: `0` or `-?[1-9][0-9]*` within 64 bits signed. `-0`, `1.0` and
    /// `1e3` are numbers, but not integers.
    pub(crate) fn as_integer(&self) -> Option<i64> {
        let digits = self.0.strip_prefix('-').unwrap_or(&self.0);
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let leading = digits.starts_with('0') && self.0.len() > 1;
        (plain && !leading).then(|| self.0.parse().ok()).flatten()
    }

    /// Returns the text of the string, if it is one.
    pub(crate) fn as_string(&self) -> Option<String> {
        self.0.starts_with('"').then(|| unescape(&self.0))
    }

    /// Returns the members of an object in their order; `None` if this is not an object.
    pub(crate) fn members(&self) -> Option<Vec<(String, Self)>> {
        let members = Scanner::members(&self.0)?.into_iter();
        Some(members.map(|(name, value)| (unescape(name), Self::trusted(value))).collect())
    }

    /// Returns the elements of an array; `None` if this is not an array.
    pub(crate) fn elements(&self) -> Option<Vec<Self>> {
        Some(Scanner::elements(&self.0)?.into_iter().map(Self::trusted).collect())
    }

    /// Returns this array with the elements of another at its end; `None` if one of them is not an array. Works on
    /// the texts alone, as the Redis script does.
    pub(crate) fn appended(&self, more: &Self) -> Option<Self> {
        let (own, more) = (self.within_brackets()?, more.within_brackets()?);
        let comma = if own.is_empty() || more.is_empty() { "" } else { "," };
        Some(Self::trusted(format!("[{own}{comma}{more}]")))
    }

    /// Returns an array with this value as its only element.
    pub(crate) fn in_brackets(&self) -> Self {
        Self::trusted(format!("[{self}]"))
    }

    pub(crate) fn is_object(&self) -> bool {
        object_text(&self.0).starts_with('{')
    }

    /// Returns the text of the elements of an array; `None` if this is not an array.
    pub(crate) fn within_brackets(&self) -> Option<&str> {
        self.0.strip_prefix('[')?.strip_suffix(']')
    }

    /// Returns this object with `patch` merged into it (RFC 7396); `None` if one of them is no object. `[]` counts as
    /// `{}`, because PHP encodes an empty array so. The text of the other members stays as it is.
    pub(crate) fn merged(&self, patch: &Self) -> Option<Self> {
        let text = merge::merged(object_text(&self.0), object_text(&patch.0))?;
        Some(Self::trusted(text))
    }
}

fn object_text(text: &str) -> &str {
    if text == "[]" { "{}" } else { text }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Json {
    /// Serializes the text as it is.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl Borrow<str> for Json {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, compact: &str) {
        assert_eq!(Json::parse(text.as_bytes(), 0).expect(text).as_str(), compact);
    }

    #[track_caller]
    fn refused(text: &[u8]) {
        let parsed = Json::parse(text, 0);
        assert!(parsed.is_err(), "{}", String::from_utf8_lossy(text));
    }

    #[test]
    fn only_insignificant_white_space_is_removed() {
        check(
            " { \"b\" : [ 1 , 1.0 , 1e400 , -0 ] , \"a\" : \" x \\u00e9 é \" } ",
            "{\"b\":[1,1.0,1e400,-0],\"a\":\" x \\u00e9 é \"}",
        );
        check("\t[ ]\r\n", "[]");
        check("{ }", "{}");
        check("\"\\ud83d\\ude00\"", "\"\\ud83d\\ude00\"");
        check("null", "null");
    }

    #[test]
    fn invalid_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "\"",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "0x1",
            "NaN",
            "nul",
            "truefalse",
            "1 2",
            "[1 2]",
            "'a'",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\u{1}\"",
            "\u{feff}1",
            "{\"a\" 1}",
            "[,]",
        ] {
            refused(text.as_bytes());
        }
        refused(b"\"\xff\"");
    }

    #[test]
    fn surrogates_come_in_pairs() {
        for text in [
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800\ud800""#,
            r#""\ud800x""#,
            r#""\ud800\n""#,
            r#"{"\udead":1}"#,
        ] {
            refused(text.as_bytes());
        }
    }

    #[test]
    fn duplicate_members_are_refused() {
        refused(br#"{"a":1,"a":2}"#);
        refused(br#"{"a":1,"\u0061":2}"#);
        refused(br#"[{"x":{"k":1,"k":1}}]"#);
        check(r#"[{"a":1},{"a":2}]"#, r#"[{"a":1},{"a":2}]"#);
    }

    #[test]
    fn values_nest_at_most_128_deep() {
        let nested =
            |levels: usize| [vec!["["; levels].concat(), vec!["]"; levels].concat()].concat();
        assert!(Json::parse(nested(128).as_bytes(), 0).is_ok());
        refused(nested(129).as_bytes());
        assert!(Json::parse(nested(130).as_bytes(), 2).is_ok());
        refused("[".repeat(1_000_000).as_bytes());
    }

    #[test]
    fn integers_have_one_spelling() {
        let integer = |text: &str| Json::trusted(text).as_integer();
        assert_eq!(integer("0"), Some(0));
        assert_eq!(integer("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer("9223372036854775807"), Some(i64::MAX));
        for text in ["9223372036854775808", "-0", "1.0", "1e3", "\"1\"", "null", "", "-"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn elements_are_appended_as_text() {
        let appended = |array: &str, element: &str| {
            Json::trusted(array).appended(&Json::trusted(element)).map(|json| json.to_string())
        };
        assert_eq!(appended("[]", "[1]").as_deref(), Some("[1]"));
        assert_eq!(appended("[1]", "[{},[2]]").as_deref(), Some("[1,{},[2]]"));
        assert_eq!(appended("[1]", "[]").as_deref(), Some("[1]"));
        assert_eq!(appended("[]", "[]").as_deref(), Some("[]"));
        assert_eq!(appended("{}", "[1]"), None);
        assert_eq!(appended("[1]", "1"), None);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).expect("a value");
            let json = Json::parse(pretty.as_bytes(), 0).expect(&pretty);
            prop_assert_eq!(json.as_str(), value.to_string());
            if let Some(members) = json.members() {
                let object: serde_json::Map<_, _> = members
                    .into_iter()
                    .map(|(name, text)| (name, serde_json::from_str(text.as_str()).expect("checked")))
                    .collect();
                prop_assert_eq!(serde_json::Value::Object(object), value);
            }
        }

        #[test]
        fn accepts_only_json_and_never_panics(text in "[\\[\\]{}\",:\\\\ud80c0-9.eE+ \\-tfna]{0,40}") {
            if let Ok(json) = Json::parse(text.as_bytes(), 0) {
                let raw: Result<&RawValue, _> = serde_json::from_str(json.as_str());
                prop_assert!(raw.is_ok(), "{}", text);
            }
        }
    }
}
