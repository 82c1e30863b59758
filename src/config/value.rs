//! Values as operators write them: durations, sizes, counts, addresses, and one or several of a kind.
//!
//! A message says what is wrong and what would be right. It repeats the value only for types that hold
//! no secret by mistake, such as durations; the reader adds the key and its place.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use tracing::level_filters::LevelFilter;

use crate::client::{InvalidTarget, Target};
use crate::proxy::config::Encoding;
use crate::server::Address;
use crate::store::url::StoreUrl;
use crate::telemetry::Collector;

/// A value that is written as text, or as a number if it is one.
pub(super) trait Value: Sized {
    /// Its name in the reference.
    const NOUN: &str;
    /// Completes "expected …": what to write, with an example.
    const EXPECTED: &str;
    /// JSON types that the schema allows.
    const TYPES: &[&str] = &["string"];

    /// Reads it from text. An error says what is wrong and what would be right, as in
    /// `invalid duration "5 parsecs"; expected …`.
    fn parse(text: &str) -> Result<Self, String>;

    /// Completes an error of [`Value::parse`].
    fn wrong(wrong: impl fmt::Display) -> String {
        format!("{wrong}; expected {}", Self::EXPECTED)
    }

    /// Writes it so that [`Value::parse`] reads the same.
    fn write(&self) -> Cow<'_, str>;
}

/// Implements serde and the JSON Schema for types that are written as text.
macro_rules! values {
    ($($type:ty),* $(,)?) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(ValueVisitor(PhantomData))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text = self.write();
                match text.parse::<i64>() {
                    Ok(number) if Self::TYPES == ["integer"] => serializer.serialize_i64(number),
                    _ => match text.parse::<f64>() {
                        Ok(number) if Self::TYPES == ["number"] => serializer.serialize_f64(number),
                        _ => serializer.serialize_str(&text),
                    },
                }
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let one = Self::TYPES.first().filter(|_| Self::TYPES.len() == 1);
                let types = one.map_or_else(|| Self::TYPES.into(), |one| serde_json::Value::from(*one));
                json_schema!({ "title": Self::NOUN, "type": types })
            }
        }
    )*};
}

values!(
    Span, Timeout, Size, Count, Ratio, Mode, Network, Text, Address, Target, Collector, StoreUrl
);

struct ValueVisitor<T>(PhantomData<T>);

impl<T: Value> ValueVisitor<T> {
    fn number<E: de::Error>(self, text: &str, unexpected: de::Unexpected<'_>) -> Result<T, E> {
        if T::TYPES == ["string"] {
            return Err(E::invalid_type(unexpected, &self));
        }
        T::parse(text).map_err(E::custom)
    }
}

impl<T: Value> Visitor<'_> for ValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        if !T::TYPES.contains(&"string") {
            return Err(E::invalid_type(de::Unexpected::Str(text), &self));
        }
        T::parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.number(&number.to_string(), de::Unexpected::Signed(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        if T::TYPES.contains(&"number") {
            return T::parse(&number.to_string()).map_err(E::custom);
        }
        Err(E::invalid_type(de::Unexpected::Float(number), &self))
    }
}

/// A duration, e.g. `30s`; never "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl Value for Span {
    const NOUN: &str = "duration";
    const EXPECTED: &str = "a duration, e.g. \"500ms\", \"30s\", \"15m\" or \"14d\"";

    fn parse(text: &str) -> Result<Self, String> {
        // `M` is humantime's month, too close to `m`, the minute.
        let is_plain = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let duration = humantime::parse_duration(text).ok().filter(|_| is_plain);
        duration.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid duration {text:?}")))
    }

    /// Writes the largest unit that is exact.
    fn write(&self) -> Cow<'_, str> {
        let millis = self.0.as_millis();
        let unit = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
            .into_iter()
            .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => format!("{}{name}", millis / unit).into(),
            None if self.0.is_zero() => "0s".into(),
            None if self.0.subsec_nanos().is_multiple_of(1_000_000) => format!("{millis}ms").into(),
            None => humantime::format_duration(self.0).to_string().into(),
        }
    }
}

/// A duration, or "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeout(pub(super) Option<Duration>);

impl Value for Timeout {
    const NOUN: &str = "duration or \"never\"";
    const EXPECTED: &str = "a duration, e.g. \"500ms\", \"30s\", \"15m\" or \"14d\", or \"never\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self(None)),
            text => match Span::parse(text) {
                Ok(Span(duration)) => Ok(Self(Some(duration))),
                Err(_) => Err(Self::wrong(format_args!("invalid duration {text:?}"))),
            },
        }
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.map_or_else(|| "never".into(), |duration| Span(duration).write().into_owned().into())
    }
}

/// A number of bytes, e.g. `3KiB`, `1MiB`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) usize);

const SIZE_UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for Size {
    const NOUN: &str = "size";
    const EXPECTED: &str = "a size, e.g. \"3KiB\", \"1MiB\" or a number of bytes";
    const TYPES: &[&str] = &["string", "integer"];

    fn parse(text: &str) -> Result<Self, String> {
        let (digits, unit) = SIZE_UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .unwrap_or_else(|| (text.strip_suffix('B').unwrap_or(text), 1));
        let bytes = Count::parse(digits.trim()).ok().and_then(|Count(n)| n.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid size {text:?}")))
    }

    /// Writes the largest unit that is exact.
    fn write(&self) -> Cow<'_, str> {
        let unit =
            SIZE_UNITS.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => format!("{}{name}", self.0 / unit).into(),
            None => self.0.to_string().into(),
        }
    }
}

/// A whole number from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub(super) usize);

impl Value for Count {
    const NOUN: &str = "number";
    const EXPECTED: &str = "a whole number, e.g. 100";
    const TYPES: &[&str] = &["integer"];

    fn parse(text: &str) -> Result<Self, String> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_plain);
        number.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid number {text:?}")))
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }
}

/// A part of the whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio(pub(super) f64);

impl Value for Ratio {
    const NOUN: &str = "ratio";
    const EXPECTED: &str = "a number from 0 to 1, e.g. 0.1";
    const TYPES: &[&str] = &["number"];

    fn parse(text: &str) -> Result<Self, String> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid ratio {text:?}")))
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }
}

/// The mode of a socket file, in octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode(pub(super) u32);

impl Value for Mode {
    const NOUN: &str = "file mode";
    const EXPECTED: &str = "octal digits in a string, e.g. \"0660\"";

    fn parse(text: &str) -> Result<Self, String> {
        let is_octal =
            matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid file mode {text:?}")))
    }

    fn write(&self) -> Cow<'_, str> {
        format!("{:04o}", self.0).into()
    }
}

/// A network; a single address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network(pub(super) IpNet);

impl Value for Network {
    const NOUN: &str = "network";
    const EXPECTED: &str = "a CIDR, e.g. \"10.0.0.0/8\" or \"fd00::/8\"";

    fn parse(text: &str) -> Result<Self, String> {
        let one = || text.parse().ok().map(|ip: IpAddr| IpNet::from(ip));
        let network = text.parse().ok().or_else(one);
        network.map(Self).ok_or_else(|| Self::wrong(format_args!("invalid network {text:?}")))
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.to_string().into()
    }
}

/// Text without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

impl Value for Text {
    const NOUN: &str = "string";
    const EXPECTED: &str = "a string without control characters";

    fn parse(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err(Self::wrong("has a control character"));
        }
        Ok(Self(text.to_owned()))
    }

    fn write(&self) -> Cow<'_, str> {
        self.0.as_str().into()
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Types of other modules that have `FromStr` and `Display`. What is wrong is not repeated: a URL may
/// have a password.
macro_rules! parsed {
    ($($type:ty: $noun:literal, $wrong:literal, $expected:literal;)*) => {$(
        impl Value for $type {
            const NOUN: &str = $noun;
            const EXPECTED: &str = $expected;

            fn parse(text: &str) -> Result<Self, String> {
                Self::from_str(text).map_err(|_| Self::wrong($wrong))
            }

            fn write(&self) -> Cow<'_, str> {
                self.to_string().into()
            }
        }
    )*};
}

parsed! {
    Address: "address", "invalid address",
        "IP:PORT, e.g. \"127.0.0.1:8080\" or \"[::]:443\", or \"unix:PATH\"";
    Collector: "URL", "invalid URL of a collector", "its base URL, e.g. \"http://127.0.0.1:4318\"";
}

impl Value for Target {
    const NOUN: &str = "URL";
    const EXPECTED: &str = "\"http://HOST:PORT\", \"https://HOST:PORT\" or \"unix:PATH\"";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = match Self::from_str(text) {
            Ok(target) => return Ok(target),
            Err(InvalidTarget::Path) => "an upstream has no path",
            Err(InvalidTarget::User) => "an upstream has no user or password",
            Err(InvalidTarget::Malformed) => "invalid upstream",
        };
        Err(Self::wrong(wrong))
    }

    fn write(&self) -> Cow<'_, str> {
        self.to_string().into()
    }
}

/// The URL of a store, whose own errors say what is wrong with which part.
impl Value for StoreUrl {
    const NOUN: &str = "URL";
    const EXPECTED: &str = "the URL of a store, e.g. \"memory:\", \"sqlite:PATH\" or \
                                    \"redis://HOST:PORT/DB\"";

    fn parse(text: &str) -> Result<Self, String> {
        Self::from_str(text)
    }

    fn write(&self) -> Cow<'_, str> {
        self.to_string().into()
    }
}

/// The least severe level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::TRACE,
            Level::Debug => Self::DEBUG,
            Level::Info => Self::INFO,
            Level::Warn => Self::WARN,
            Level::Error => Self::ERROR,
            Level::Off => Self::OFF,
        }
    }
}

/// One value, or an array of at least one.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one, or an array of several")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|one| vec![one])
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
                T::deserialize(de::value::I64Deserializer::new(number)).map(|one| vec![one])
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, several: A) -> Result<Vec<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(several))
            }
        }

        let several = deserializer.deserialize_any(OneOrManyVisitor(PhantomData))?;
        if several.is_empty() {
            return Err(de::Error::custom("must not be empty"));
        }
        Ok(Self(several))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

/// Header exchange of a route: on or off, or on with a part of the values if not all fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "invalid value; expected true, false or \"partial\"")]
pub(super) enum HeaderExchange {
    Switch(bool),
    Word(ExchangeWord),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExchangeWord {
    Partial,
}

/// Whether requests of one session wait for each other, and until when. `true` says no time, and is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "invalid value; expected false or \"head\"")]
pub(super) enum OneAtATime {
    Switch(bool),
    Until(TurnEnd),
}

/// The end of a request's turn on its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TurnEnd {
    Head,
}

/// A second header for the principal: its name, or its name and how the principal is encoded.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected \"X-Remote-User\" or { name = \"X-Remote-User\", encoding = \"utf-8\" }"
)]
pub(super) enum PrincipalHeader {
    Name(Text),
    Encoded { name: Text, encoding: Option<Encoding> },
}

/// A cookie of the site that sessions hold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected \"PHPSESSID\" or { name = \"laravel_session\", rotate = false }"
)]
pub(super) enum HeldCookie {
    Name(Text),
    Detailed { name: Text, rotate: bool },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("90m", 5_400_000),
            ("14d", 14 * 86_400_000),
            ("1h 30m", 5_400_000),
            ("0s", 0),
        ] {
            let expected = Timeout(Some(Duration::from_millis(millis)));
            assert_eq!(Timeout::parse(text), Ok(expected), "{text}");
        }
        assert_eq!(Timeout::parse("never"), Ok(Timeout(None)));
        for text in ["", "30", "5M", "1Month", "-1s", "forever", "Never"] {
            assert!(Timeout::parse(text).is_err(), "{text}");
        }
        assert!(Span::parse("never").is_err());
        for text in ["0s", "500ms", "1500ms", "30s", "90m", "36h", "14d"] {
            assert_eq!(Span::parse(text).unwrap().write(), text);
        }
    }

    #[test]
    fn sizes_may_have_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("3KiB", 3072),
            ("3 KiB", 3072),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "KiB", "3kb", "3KB", "3M", "-1", "1.5MiB", "+1", "99999999999GiB"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        for text in ["0", "1000", "3KiB", "1MiB", "2GiB"] {
            assert_eq!(Size::parse(text).unwrap().write(), text);
        }
    }

    #[test]
    fn networks_modes_and_ratios() {
        assert_eq!(Network::parse("::1").unwrap().write(), "::1/128");
        assert!(Network::parse("10.0.0.0/33").is_err());
        assert_eq!(Mode::parse("660").unwrap().write(), "0660");
        for text in ["", "66", "0888", "00660", "1777", "rw"] {
            assert!(Mode::parse(text).is_err(), "{text}");
        }
        for text in ["-0.1", "1.5", "NaN", "x"] {
            assert!(Ratio::parse(text).is_err(), "{text}");
        }
    }
}
