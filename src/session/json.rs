//! The one JSON validator: grammar (RFC 8259), depth, surrogates, doubled members.
//!
//! Values keep the text that came in, save insignificant white space: numbers, key order and
//! escapes survive to the byte. A parser into a tree would lose them, so this checks and copies.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// The deepest that a value may nest.
pub const MAX_DEPTH: usize = 128;

/// A JSON text that has been checked, without insignificant white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Json(Box<str>);

/// Why a text is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {at}")]
pub struct JsonError {
    kind: Kind,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NotUtf8,
    Unexpected,
    Ends,
    TooDeep,
    LoneSurrogate,
    ControlCharacter,
    DoubledMember,
}

impl JsonError {
    /// The offset, in bytes, of what is not taken.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What is wrong there.
    pub fn reason(&self) -> impl fmt::Display {
        self.kind
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUtf8 => "not UTF-8",
            Self::Unexpected => "unexpected character",
            Self::Ends => "the text ends too early",
            Self::TooDeep => "nested too deep",
            Self::LoneSurrogate => "a surrogate without its other half",
            Self::ControlCharacter => "a control character in a string",
            Self::DoubledMember => "an object has this member twice",
        })
    }
}

impl Json {
    /// Checks a text. `wrapping` is how many levels around the values do not count as theirs: 2 for
    /// a patch, whose values lie in an object in an object.
    pub fn parse(text: &[u8], wrapping: usize) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(text)
            .map_err(|error| JsonError { kind: Kind::NotUtf8, at: error.valid_up_to() })?;
        let mut scanner = Scanner {
            text,
            at: 0,
            out: String::with_capacity(text.len()),
            room: MAX_DEPTH + wrapping,
        };
        scanner.value()?;
        scanner.white_space();
        match scanner.peek() {
            None => Ok(Self(scanner.out.into_boxed_str())),
            Some(_) => Err(scanner.error(Kind::Unexpected)),
        }
    }

    /// A text that this crate wrote, or has checked before.
    pub(crate) fn trusted(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text of a string value.
    pub fn string(text: &str) -> Self {
        Self::trusted(serde_json::Value::from(text).to_string())
    }

    /// The text of an integer.
    pub fn integer(number: i64) -> Self {
        Self::trusted(number.to_string())
    }

    /// The text of null.
    pub fn null() -> Self {
        Self::trusted("null")
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        self.0.starts_with('[')
    }

    /// The integer that it is: `0` or `-?[1-9][0-9]*` within 64 bits signed, and nothing else
    /// (`-0`, `1.0` and `1e3` are numbers, but no integers).
    pub fn as_integer(&self) -> Option<i64> {
        let digits = self.0.strip_prefix('-').unwrap_or(&self.0);
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        let leading = digits.starts_with('0') && self.0.len() > 1;
        (plain && !leading).then(|| self.0.parse().ok()).flatten()
    }

    /// The text of the string that it is.
    pub fn as_string(&self) -> Option<String> {
        self.0.starts_with('"').then(|| unescape(&self.0))
    }

    /// How deep it nests: 0 for a scalar.
    pub fn depth(&self) -> usize {
        let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
        for byte in self.0.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                b'[' | b'{' if !in_string => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        deepest
    }

    /// The members of the object that it is, in their order; `None` where it is no object.
    pub fn members(&self) -> Option<Vec<(String, Self)>> {
        let mut scanner = Scanner { text: &self.0, at: 0, out: String::new(), room: usize::MAX };
        scanner.take(b'{').ok()?;
        let mut members = Vec::new();
        while scanner.peek() != Some(b'}') {
            let start = scanner.at;
            scanner.string().ok()?;
            let name = unescape(self.0.get(start..scanner.at)?);
            scanner.take(b':').ok()?;
            let start = scanner.at;
            scanner.value().ok()?;
            members.push((name, Self::trusted(self.0.get(start..scanner.at)?)));
            if scanner.peek() == Some(b',') {
                scanner.at += 1;
            }
        }
        Some(members)
    }

    /// The elements of the array that it is; `None` where it is no array.
    pub fn elements(&self) -> Option<Vec<Self>> {
        let mut scanner = Scanner { text: &self.0, at: 0, out: String::new(), room: usize::MAX };
        scanner.take(b'[').ok()?;
        let mut elements = Vec::new();
        while scanner.peek() != Some(b']') {
            let start = scanner.at;
            scanner.value().ok()?;
            elements.push(Self::trusted(self.0.get(start..scanner.at)?));
            if scanner.peek() == Some(b',') {
                scanner.at += 1;
            }
        }
        Some(elements)
    }

    /// This array with `element` at its end. Moves text alone, as the Redis script does.
    pub fn appended(&self, element: &Self) -> Option<Self> {
        let open = self.0.strip_prefix('[')?.strip_suffix(']')?;
        let comma = if open.is_empty() { "" } else { "," };
        Some(Self::trusted(format!("[{open}{comma}{element}]")))
    }
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

/// The text of a JSON string that has been checked.
fn unescape(string: &str) -> String {
    // The escapes have been checked, so serde_json can only agree.
    serde_json::from_str(string).unwrap_or_default()
}

/// One pass over a text: checks it, and copies what is significant.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// How many levels may still be opened. Recursion is as deep as this at most.
    room: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn error(&self, kind: Kind) -> JsonError {
        JsonError { kind, at: self.at }
    }

    fn unexpected(&self) -> JsonError {
        self.error(if self.peek().is_some() { Kind::Unexpected } else { Kind::Ends })
    }

    fn white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Copies what was scanned since `start`.
    fn copy(&mut self, start: usize) {
        self.out.push_str(self.text.get(start..self.at).unwrap_or_default());
    }

    fn take(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() != Some(byte) {
            return Err(self.unexpected());
        }
        self.at += 1;
        self.out.push(char::from(byte));
        Ok(())
    }

    fn value(&mut self) -> Result<(), JsonError> {
        self.white_space();
        match self.peek() {
            Some(b'{') => self.nested(b'}', Self::object),
            Some(b'[') => self.nested(b']', Self::array),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => Err(self.unexpected()),
        }
    }

    fn nested(
        &mut self,
        end: u8,
        inner: fn(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.room = self.room.checked_sub(1).ok_or_else(|| self.error(Kind::TooDeep))?;
        self.out.push(if end == b'}' { '{' } else { '[' });
        self.at += 1;
        self.white_space();
        if self.peek() != Some(end) {
            inner(self)?;
        }
        self.take(end)?;
        self.room += 1;
        Ok(())
    }

    fn array(&mut self) -> Result<(), JsonError> {
        loop {
            self.value()?;
            self.white_space();
            if self.peek() != Some(b',') {
                return Ok(());
            }
            self.take(b',')?;
        }
    }

    fn object(&mut self) -> Result<(), JsonError> {
        let mut names = HashSet::new();
        loop {
            self.white_space();
            let start = self.at;
            self.string()?;
            let name = unescape(self.text.get(start..self.at).unwrap_or_default());
            if !names.insert(name) {
                return Err(JsonError { kind: Kind::DoubledMember, at: start });
            }
            self.white_space();
            self.take(b':')?;
            self.value()?;
            self.white_space();
            if self.peek() != Some(b',') {
                return Ok(());
            }
            self.take(b',')?;
        }
    }

    fn string(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.unexpected());
        }
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err(self.error(Kind::Ends)),
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0..0x20) => return Err(self.error(Kind::ControlCharacter)),
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        self.copy(start);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                return Ok(());
            }
            Some(b'u') => {}
            _ => return Err(self.unexpected()),
        }
        let lone = JsonError { kind: Kind::LoneSurrogate, at: start };
        match self.code_unit()? {
            0xDC00..=0xDFFF => Err(lone),
            0xD800..=0xDBFF => {
                let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
                if !rest.starts_with(b"\\u") {
                    return Err(lone);
                }
                self.at += 1;
                match self.code_unit()? {
                    0xDC00..=0xDFFF => Ok(()),
                    _ => Err(lone),
                }
            }
            _ => Ok(()),
        }
    }

    /// The four hexadecimal digits after a `u`.
    fn code_unit(&mut self) -> Result<u32, JsonError> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            unit = unit * 16 + digit.ok_or_else(|| self.unexpected())?;
            self.at += 1;
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        self.copy(start);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.unexpected());
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), JsonError> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.unexpected());
        }
        self.at += word.len();
        self.out.push_str(word);
        Ok(())
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
    fn only_insignificant_white_space_goes() {
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
    fn what_rfc_8259_does_not_allow_is_refused() {
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
    fn no_object_has_a_member_twice_however_it_is_spelt() {
        refused(br#"{"a":1,"a":2}"#);
        refused(br#"{"a":1,"\u0061":2}"#);
        refused(br#"[{"x":{"k":1,"k":1}}]"#);
        check(r#"[{"a":1},{"a":2}]"#, r#"[{"a":1},{"a":2}]"#);
    }

    #[test]
    fn a_value_nests_at_most_128_deep() {
        let nested =
            |levels: usize| [vec!["["; levels].concat(), vec!["]"; levels].concat()].concat();
        assert_eq!(Json::parse(nested(128).as_bytes(), 0).map(|json| json.depth()), Ok(128));
        refused(nested(129).as_bytes());
        assert!(Json::parse(nested(130).as_bytes(), 2).is_ok());
        refused("[".repeat(1_000_000).as_bytes());
    }

    #[test]
    fn an_integer_has_one_spelling() {
        let integer = |text: &str| Json::trusted(text).as_integer();
        assert_eq!(integer("0"), Some(0));
        assert_eq!(integer("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer("9223372036854775807"), Some(i64::MAX));
        for text in ["9223372036854775808", "-0", "1.0", "1e3", "\"1\"", "null", "", "-"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn an_element_is_appended_as_text() {
        let appended = |array: &str, element: &str| {
            Json::trusted(array).appended(&Json::trusted(element)).map(|json| json.to_string())
        };
        assert_eq!(appended("[]", "1").as_deref(), Some("[1]"));
        assert_eq!(appended("[1]", "{}").as_deref(), Some("[1,{}]"));
        assert_eq!(appended("{}", "1"), None);
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
        fn what_another_library_writes_is_read_the_same(value in any_json()) {
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
        fn what_passes_is_json_and_nothing_panics(text in "[\\[\\]{}\",:\\\\ud80c0-9.eE+ \\-tfna]{0,40}") {
            if let Ok(json) = Json::parse(text.as_bytes(), 0) {
                let raw: Result<&RawValue, _> = serde_json::from_str(json.as_str());
                prop_assert!(raw.is_ok(), "{}", text);
            }
        }
    }
}
