//! The JSON validator: grammar (RFC 8259), depth, surrogates and duplicate members.

use std::collections::HashSet;
use std::fmt;

/// An error in a JSON text.
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
    DuplicateMember,
}

impl JsonError {
    pub(super) fn not_utf8(at: usize) -> Self {
        Self { kind: Kind::NotUtf8, at }
    }

    /// Returns the offset of the error, in bytes.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Returns the error without its offset.
    pub(crate) fn reason(&self) -> impl fmt::Display {
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
            Self::DuplicateMember => "an object has this member twice",
        })
    }
}

/// Returns the text of a valid JSON string.
pub(super) fn unescape(string: &str) -> String {
    // The escapes have been validated, so serde_json accepts them.
    serde_json::from_str(string).unwrap_or_default()
}

/// A pass over a text that validates it and copies its significant characters.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// The number of levels that may still be opened, which bounds the recursion.
    room: usize,
}

impl<'a> Scanner<'a> {
    /// Scans a text of unknown content, whose values may nest `room` deep.
    pub(super) fn new(text: &'a str, room: usize) -> Self {
        Self { text, at: 0, out: String::with_capacity(text.len()), room }
    }

    /// Scans the text of one value, and returns it without insignificant white space.
    pub(super) fn document(mut self) -> Result<String, JsonError> {
        self.value()?;
        self.white_space();
        match self.peek() {
            None => Ok(self.out),
            Some(_) => Err(self.error(Kind::Unexpected)),
        }
    }

    /// Splits a valid object into its members.
    pub(super) fn members(text: &'a str) -> Option<Vec<(&'a str, &'a str)>> {
        let mut scanner = Self { text, at: 0, out: String::new(), room: usize::MAX };
        scanner.take(b'{').ok()?;
        let mut members = Vec::new();
        while scanner.peek() != Some(b'}') {
            let start = scanner.at;
            scanner.string().ok()?;
            let name = text.get(start..scanner.at)?;
            scanner.take(b':').ok()?;
            let start = scanner.at;
            scanner.value().ok()?;
            members.push((name, text.get(start..scanner.at)?));
            scanner.skip_comma();
        }
        Some(members)
    }

    /// Splits a valid array into its elements.
    pub(super) fn elements(text: &'a str) -> Option<Vec<&'a str>> {
        let mut scanner = Self { text, at: 0, out: String::new(), room: usize::MAX };
        scanner.take(b'[').ok()?;
        let mut elements = Vec::new();
        while scanner.peek() != Some(b']') {
            let start = scanner.at;
            scanner.value().ok()?;
            elements.push(text.get(start..scanner.at)?);
            scanner.skip_comma();
        }
        Some(elements)
    }

    fn skip_comma(&mut self) {
        if self.peek() == Some(b',') {
            self.at += 1;
        }
    }

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

    /// Copies the text since `start`.
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
                return Err(JsonError { kind: Kind::DuplicateMember, at: start });
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

    /// Scans the four hexadecimal digits after a `u`.
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
