//! A session as the bytes of a file.
//!
//! A line with the format; then each field as a line with its length and name, its text, and a newline; last a
//! line with the SHA-256 of everything before it, without which the file is incomplete. `encode.rs` describes
//! the fields.

use std::collections::HashMap;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};

use crate::session::json::Json;
use crate::session::record::{Entry, Key, Record, Values};
use crate::store::encode::{self, Unreadable, unreadable};
use crate::time::Timestamp;

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    /// The first time at which it has expired.
    pub(super) over_at: Timestamp,
}

const HEAD: &str = "cloakroom session 1\n";
const TAIL: &str = "sha256 ";

impl Stored {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = HEAD.to_owned();
        let mut push = |name: &str, text: &str| {
            // The length comes before the name, which may be any text.
            // Writing to a String cannot fail.
            let _ = write!(out, "{} {}\n{name}\n{text}\n", name.len(), text.len());
        };
        push("e", &self.over_at.as_millis().to_string());
        match &self.entry {
            Entry::Ended { until } => push("m", &until.as_millis().to_string()),
            Entry::Live(record) => {
                for (name, text) in encode::meta_fields(&record.meta) {
                    push(name, &text);
                }
                for (key, text) in &record.values {
                    push(&encode::field_of(key), text.as_str());
                }
            }
        }
        let sum = checksum(out.as_bytes());
        let _ = writeln!(out, "{TAIL}{sum}");
        out.into_bytes()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(bytes).map_err(unreadable)?;
        let (whole, sum) = text.rsplit_once(TAIL).ok_or(Unreadable)?;
        if sum.strip_suffix('\n') != Some(&checksum(whole.as_bytes())) {
            return Err(Unreadable);
        }
        let mut rest = whole.strip_prefix(HEAD).ok_or(Unreadable)?;
        let mut fields = HashMap::new();
        while !rest.is_empty() {
            let (lengths, after) = rest.split_once('\n').ok_or(Unreadable)?;
            let (name, text) = lengths.split_once(' ').ok_or(Unreadable)?;
            let (name, after) = counted(after, name)?;
            let (text, after) = counted(after, text)?;
            fields.insert(name, text);
            rest = after;
        }
        let over_at = time(&fields, "e")?.ok_or(Unreadable)?;
        let entry = match time(&fields, "m")? {
            Some(until) => Entry::Ended { until },
            None => Entry::Live(Record {
                meta: encode::meta_of(|name| fields.get(name).copied())?,
                values: values(&fields)?,
            }),
        };
        Ok(Self { entry, over_at })
    }
}

/// Splits off a text of a number of bytes, and the newline after it.
fn counted<'a>(text: &'a str, length: &str) -> Result<(&'a str, &'a str), Unreadable> {
    let length: usize = length.parse().map_err(unreadable)?;
    let (found, rest) = text.split_at_checked(length).ok_or(Unreadable)?;
    Ok((found, rest.strip_prefix('\n').ok_or(Unreadable)?))
}

fn time(fields: &HashMap<&str, &str>, name: &str) -> Result<Option<Timestamp>, Unreadable> {
    let millis = fields.get(name).map(|text| text.parse().map_err(unreadable)).transpose()?;
    Ok(millis.map(Timestamp::from_millis))
}

fn values(fields: &HashMap<&str, &str>) -> Result<Values, Unreadable> {
    let values = fields.iter().filter_map(|(name, text)| Some((name.strip_prefix('=')?, text)));
    values.map(|(key, text)| Ok((Key::new(key).ok_or(Unreadable)?, Json::trusted(*text)))).collect()
}

fn checksum(bytes: &[u8]) -> String {
    let sum = digest(&SHA256, bytes);
    sum.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
