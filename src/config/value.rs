//! Values as people write them: durations, sizes, counts, addresses and words.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;
use tracing::level_filters::LevelFilter;

use crate::client::{InvalidTarget, Target, UpstreamProtocol};
use crate::log::Format;
use crate::proxy::config::{Encoding, Session, Tunnels};
use crate::server::Address;
use crate::session::cookie::SameSite;
use crate::session::policy::{AtMax, Create, OnReplay, Touch};
use crate::store::config::OnError;
use crate::telemetry::Collector;

/// A value of the configuration. An error says what is wrong and what would be right, without the
/// value itself.
pub(super) trait Value: Sized {
    /// What it is, in a word or two.
    const NOUN: &'static str;
    /// What to write.
    const RIGHT: &'static str;

    /// Reads it from text; `None` for anything else.
    fn parse(text: &str) -> Option<Self>;

    /// Reads it from text, as the environment has it, or a string of the file.
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| format!("is no {}; write {}", Self::NOUN, Self::RIGHT))
    }

    /// Reads it from the file.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::String(text) => Self::from_text(text),
            other => Err(Self::wrong_type(other)),
        }
    }

    /// What is wrong with a value of another type.
    fn wrong_type(value: &DeValue<'_>) -> String {
        format!("{} is no {}; write {}", article(value), Self::NOUN, Self::RIGHT)
    }
}

/// The type of a value, with its article.
pub(super) fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Text as it is.
impl Value for String {
    const NOUN: &'static str = "text";
    const RIGHT: &'static str = "a string without control characters";

    fn parse(text: &str) -> Option<Self> {
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    }
}

impl Value for bool {
    const NOUN: &'static str = "boolean";
    const RIGHT: &'static str = "true or false";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| Self::wrong_type(value))
    }
}

/// How many of something.
impl Value for usize {
    const NOUN: &'static str = "count";
    const RIGHT: &'static str = "a whole number, as 100";

    fn parse(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| is_plain)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        match whole(value) {
            Some(number) => Self::from_text(&number),
            None => Err(Self::wrong_type(value)),
        }
    }
}

/// An integer of the file in decimal digits, whatever its radix there.
fn whole(value: &DeValue<'_>) -> Option<String> {
    let integer = value.as_integer()?;
    let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
    Some(number.to_string())
}

/// A time: `500ms`, `30s`, `15m`, `14d`, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    After(Duration),
    Never,
}

impl Value for Timeout {
    const NOUN: &'static str = "duration";
    const RIGHT: &'static str = "\"500ms\", \"30s\", \"15m\", \"14d\" or \"never\"";

    fn parse(text: &str) -> Option<Self> {
        // `M` is humantime's month, far too near to the minute.
        let is_plain = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match text {
            "never" => Some(Self::Never),
            text => humantime::parse_duration(text).ok().filter(|_| is_plain).map(Self::After),
        }
    }
}

/// A duration, in the largest unit that says it exactly.
pub(super) fn write_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
        .into_iter()
        .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None if duration.is_zero() => "0s".to_owned(),
        None if duration.subsec_nanos().is_multiple_of(1_000_000) => format!("{millis}ms"),
        None => humantime::format_duration(duration).to_string(),
    }
}

/// A number of bytes: `3KiB`, `1MiB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) usize);

const SIZE_UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for Size {
    const NOUN: &'static str = "size";
    const RIGHT: &'static str = "\"3KiB\", \"1MiB\" or a number of bytes";

    fn parse(text: &str) -> Option<Self> {
        let (digits, unit) = SIZE_UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .unwrap_or_else(|| (text.strip_suffix('B').unwrap_or(text), 1));
        usize::parse(digits.trim())?.checked_mul(unit).map(Self)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        match (value, whole(value)) {
            (DeValue::String(text), _) => Self::from_text(text),
            (_, Some(number)) => Self::from_text(&number),
            _ => Err(Self::wrong_type(value)),
        }
    }
}

/// A size, in the largest unit that says it exactly.
pub(super) fn write_size(bytes: usize) -> String {
    SIZE_UNITS
        .into_iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A part of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio(pub(super) f64);

impl Value for Ratio {
    const NOUN: &'static str = "ratio";
    const RIGHT: &'static str = "a number from 0 to 1, as 0.1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).map(Self)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        match (value, whole(value)) {
            (DeValue::Float(float), _) => Self::from_text(float.as_str()),
            (_, Some(number)) => Self::from_text(&number),
            _ => Err(Self::wrong_type(value)),
        }
    }
}

impl Value for Collector {
    const NOUN: &'static str = "collector";
    const RIGHT: &'static str = "its base URL, as \"http://127.0.0.1:4318\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// The mode of a socket's file, in octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode(pub(super) u32);

impl Value for Mode {
    const NOUN: &'static str = "file mode";
    const RIGHT: &'static str = "octal digits in a string, as \"0660\"";

    fn parse(text: &str) -> Option<Self> {
        let is_octal =
            matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok()?;
        (is_octal && mode <= 0o777).then_some(Self(mode))
    }
}

impl Value for Address {
    const NOUN: &'static str = "address";
    const RIGHT: &'static str = "IP:PORT, as \"127.0.0.1:8080\" or \"[::]:443\", or \"unix:PATH\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A network; a single address is a network of one.
impl Value for IpNet {
    const NOUN: &'static str = "network";
    const RIGHT: &'static str = "a CIDR, as \"10.0.0.0/8\" or \"fd00::/8\"";

    fn parse(text: &str) -> Option<Self> {
        let one = || text.parse().ok().map(|ip: IpAddr| Self::from(ip));
        text.parse().ok().or_else(one)
    }
}

/// A second header for the principal: its name, or its name and how the principal is written in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrincipalHeader {
    pub(super) name: String,
    pub(super) encoding: Encoding,
}

impl Value for PrincipalHeader {
    const NOUN: &'static str = "header";
    const RIGHT: &'static str =
        "\"X-Remote-User\", or { name = \"X-Remote-User\", encoding = \"utf-8\" }";

    fn parse(text: &str) -> Option<Self> {
        Some(Self { name: text.to_owned(), encoding: Encoding::Percent })
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        let table = match value {
            DeValue::String(text) => return Self::from_text(text),
            DeValue::Table(table) => table,
            other => return Err(Self::wrong_type(other)),
        };
        let (mut name, mut encoding) = (None, Encoding::Percent);
        for (key, value) in table {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("name", DeValue::String(text)) => name = Some(text.to_string()),
                ("encoding", value) => {
                    encoding = Encoding::from_toml(value)
                        .map_err(|wrong| format!("its encoding {wrong}"))?;
                }
                _ => return Err(format!("has only a name and an encoding; write {}", Self::RIGHT)),
            }
        }
        let name = name.ok_or_else(|| format!("has no name; write {}", Self::RIGHT))?;
        Ok(Self { name, encoding })
    }
}

/// Where requests go: one upstream or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upstreams(pub(super) Vec<Target>);

impl Value for Upstreams {
    const NOUN: &'static str = Target::NOUN;
    const RIGHT: &'static str = Target::RIGHT;

    fn parse(text: &str) -> Option<Self> {
        Self::from_text(text).ok()
    }

    /// With commas between them, where there are several.
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(|one| Target::from_text(one.trim())).collect::<Result<_, _>>().map(Self)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::Array(several) = value else {
            return Target::from_toml(value).map(|one| Self(vec![one]));
        };
        if several.is_empty() {
            return Err(format!("a list of none; write {}", Self::RIGHT));
        }
        several
            .iter()
            .map(|one| Target::from_toml(one.get_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Value for Target {
    const NOUN: &'static str = "upstream";
    const RIGHT: &'static str = "\"http://HOST:PORT\", \"https://HOST:PORT\" or \"unix:PATH\"";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = match text.parse() {
            Ok(target) => return Ok(target),
            Err(InvalidTarget::Path) => "an upstream has no path",
            Err(InvalidTarget::User) => "an upstream has no user or password",
            Err(InvalidTarget::Malformed) => "is no upstream",
        };
        Err(format!("{wrong}; write {}", Self::RIGHT))
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, String> {
        match value {
            DeValue::String(text) => Self::from_text(text),
            other => Err(Self::wrong_type(other)),
        }
    }
}

/// A value that is one of a few words.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// The words.
    const WORDS: &'static [(&'static str, Self)];

    /// The word for this one.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}

macro_rules! words {
    ($($type:ty {
        $first:literal => $first_value:ident $(, $word:literal => $value:ident)* $(,)?
    })*) => {$(
        impl Word for $type {
            const WORDS: &'static [(&'static str, Self)] =
                &[($first, Self::$first_value) $(, ($word, Self::$value))*];
        }

        impl Value for $type {
            const NOUN: &'static str = "such word";
            const RIGHT: &'static str =
                concat!("\"", $first, "\"" $(, " or \"", $word, "\"")*);

            fn parse(text: &str) -> Option<Self> {
                Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
            }
        }
    )*};
}

words! {
    AtMax { "evict_oldest" => EvictOldest, "reject" => Reject, }
    OnReplay { "ignore" => Ignore, "revoke" => Revoke, }
    Create { "on-write" => OnWrite, "navigation" => Navigation, }
    Touch { "request" => Request, "write" => Write, }
    SameSite { "Strict" => Strict, "Lax" => Lax, "None" => None, }
    Encoding { "percent" => Percent, "utf-8" => Utf8, }
    OnError { "fail" => Fail, "anonymous" => Anonymous, }
    Format { "text" => Text, "json" => Json, }
    UpstreamProtocol { "http1" => Http1, "h2c" => Http2, "alpn" => Alpn, }
    Tunnels { "with-session" => WithSession, "free" => Free, }
    Session { "on" => On, "no-touch" => NoTouch, "off" => Off, }
    LevelFilter {
        "trace" => TRACE, "debug" => DEBUG, "info" => INFO, "warn" => WARN, "error" => ERROR,
        "off" => OFF,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_their_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("90m", 5_400_000),
            ("14d", 14 * 86_400_000),
            ("1h 30m", 5_400_000),
            ("0s", 0),
        ] {
            let expected = Timeout::After(Duration::from_millis(millis));
            assert_eq!(Timeout::from_text(text), Ok(expected), "{text}");
        }
        assert_eq!(Timeout::from_text("never"), Ok(Timeout::Never));
        for text in ["", "30", "5M", "1Month", "-1s", "forever", "Never"] {
            assert!(Timeout::from_text(text).is_err(), "{text}");
        }
        for text in ["0s", "500ms", "1500ms", "30s", "90m", "36h", "14d"] {
            let Ok(Timeout::After(duration)) = Timeout::from_text(text) else { panic!("{text}") };
            assert_eq!(write_duration(duration), text);
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("3KiB", 3072),
            ("3 KiB", 3072),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(Size::from_text(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "KiB", "3kb", "3KB", "3M", "-1", "1.5MiB", "+1", "99999999999GiB"] {
            assert!(Size::from_text(text).is_err(), "{text}");
        }
        for text in ["0", "1000", "3KiB", "1MiB", "2GiB"] {
            assert_eq!(write_size(Size::from_text(text).unwrap().0), text);
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(Mode::from_text("0660"), Ok(Mode(0o660)));
        assert_eq!(Mode::from_text("666"), Ok(Mode(0o666)));
        for text in ["", "0", "0888", "01660", "1777", "+660", "rw-"] {
            assert!(Mode::from_text(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_single_address_is_a_network_of_one() {
        assert_eq!(IpNet::from_text("10.0.0.7").unwrap().to_string(), "10.0.0.7/32");
        assert_eq!(IpNet::from_text("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert!(IpNet::from_text("10.0.0.0/33").is_err());
    }

    #[test]
    fn every_word_is_read_as_it_is_written() {
        for (word, level) in LevelFilter::WORDS {
            assert_eq!(LevelFilter::from_text(word), Ok(*level));
            assert_eq!(level.word(), *word);
        }
        let said = SameSite::from_text("lax").unwrap_err();
        assert_eq!(said, "is no such word; write \"Strict\" or \"Lax\" or \"None\"");
    }
}
