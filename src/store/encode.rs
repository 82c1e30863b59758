//! Texts that the stores on disk and on the network both write.
//!
//! | field | holds |
//! | --- | --- |
//! | `m` | of a marker, and then alone: until when it stands |
//! | `v` | version, decimal |
//! | `g`, `gs`, `pu`, `f`, `l` | `generation`, `generation_since`, `previous_until`, `floor`, `login_at` |
//! | `p` | principal |
//! | `c`, `s`, `k` | `created_at`, `last_seen_at`, `cookie_set_at` |
//! | `x` | expiry: `i` seconds, `a` milliseconds, `b`, or `b` seconds |
//! | `w` | `1` where it is withheld |
//! | `q` | where it is unproven: the same as `s` |
//! | `ca`, `cu` | the client's address and user agent |
//! | `e` | when the record ends |
//! | `=` and a key | that value's text |
//!
//! `q` counts only while it equals `s`, `g` equals `f` and there is no `p`. An older version does not
//! know it: it drops it, or leaves it as it is, but moves `s` by a touch or a write that prolongs, and
//! `g` by a renewed token that is presented. So what it has seen in use is not taken for unproven.
//!
//! Times are milliseconds since the epoch, decimal. What is absent is `None`.

use std::str::FromStr;
use std::time::Duration;

use crate::session::record::{Client, Expiry, Key, Meta, Principal};
use crate::time::Timestamp;

/// What stands there is nothing that we wrote.
#[derive(Debug, thiserror::Error)]
#[error("a session in the store cannot be read")]
pub(super) struct Unreadable;

/// What a parser says adds nothing to that.
pub(super) fn unreadable(_: impl std::error::Error) -> Unreadable {
    Unreadable
}

/// The fields of a record without its values; what is absent is left out.
pub(super) fn meta_fields(meta: &Meta) -> Vec<(&'static str, String)> {
    let time = |time: Timestamp| Some(time.as_millis().to_string());
    let client = meta.client.as_ref();
    let fields = [
        ("v", Some(meta.version.to_string())),
        ("g", Some(meta.generation.to_string())),
        ("gs", time(meta.generation_since)),
        ("pu", meta.previous_until.and_then(time)),
        ("f", Some(meta.floor.to_string())),
        ("l", meta.login_at.and_then(time)),
        ("p", meta.principal.as_ref().map(ToString::to_string)),
        ("c", time(meta.created_at)),
        ("s", time(meta.last_seen_at)),
        ("k", time(meta.cookie_set_at)),
        ("x", meta.expiry.map(expiry)),
        ("w", meta.withheld.then(|| "1".to_owned())),
        ("q", meta.unproven.then_some(meta.last_seen_at).and_then(time)),
        ("ca", client.and_then(|client| Some(client.address?.to_string()))),
        ("cu", client.map(|client| client.user_agent.to_string())),
    ];
    fields.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
}

/// The record without values that has these fields.
pub(super) fn meta_of<'a>(field: impl Fn(&str) -> Option<&'a str>) -> Result<Meta, Unreadable> {
    let time = |name| Ok(number(&field, name)?.map(Timestamp::from_millis));
    let principal = field("p").map(|name| Principal::new(name).ok_or(Unreadable));
    let expiry = field("x").map(|text| parse_expiry(text).ok_or(Unreadable));
    let client = field("cu").map(|user_agent| {
        Ok(Client { address: number(&field, "ca")?, user_agent: user_agent.into() })
    });
    Ok(Meta {
        version: number(&field, "v")?.ok_or(Unreadable)?,
        generation: number(&field, "g")?.ok_or(Unreadable)?,
        generation_since: time("gs")?.ok_or(Unreadable)?,
        previous_until: time("pu")?,
        floor: number(&field, "f")?.ok_or(Unreadable)?,
        login_at: time("l")?,
        principal: principal.transpose()?,
        created_at: time("c")?.ok_or(Unreadable)?,
        last_seen_at: time("s")?.ok_or(Unreadable)?,
        cookie_set_at: time("k")?.ok_or(Unreadable)?,
        expiry: expiry.transpose()?,
        withheld: field("w").is_some(),
        unproven: field("q").is_some()
            && field("q") == field("s")
            && field("g") == field("f")
            && field("p").is_none(),
        client: client.transpose()?,
    })
}

fn number<'a, T: FromStr<Err: std::error::Error>>(
    field: impl Fn(&str) -> Option<&'a str>,
    name: &str,
) -> Result<Option<T>, Unreadable> {
    field(name).map(|text| text.parse().map_err(unreadable)).transpose()
}

/// The name of a value's field.
pub(super) fn field_of(key: &Key) -> String {
    format!("={}", key.as_str())
}

/// A lifetime as text: `i` and seconds for idle, `a` and milliseconds since the epoch for an
/// instant, `b` and perhaps seconds for the browser's close.
pub(super) fn expiry(expiry: Expiry) -> String {
    match expiry {
        Expiry::Idle(idle) => format!("i{}", idle.as_secs()),
        Expiry::At(instant) => format!("a{}", instant.as_millis()),
        Expiry::BrowserClose(Some(idle)) => format!("b{}", idle.as_secs()),
        Expiry::BrowserClose(None) => "b".to_owned(),
    }
}

/// The lifetime that [`expiry`] wrote.
pub(super) fn parse_expiry(text: &str) -> Option<Expiry> {
    let (kind, number) = text.split_at_checked(1)?;
    let seconds = |number: &str| number.parse().ok().map(Duration::from_secs);
    Some(match kind {
        "i" => Expiry::Idle(seconds(number)?),
        "a" => Expiry::At(Timestamp::from_millis(number.parse().ok()?)),
        "b" if number.is_empty() => Expiry::BrowserClose(None),
        "b" => Expiry::BrowserClose(Some(seconds(number)?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_round_trips() {
        for (kind, text) in [
            (Expiry::Idle(Duration::from_mins(1)), "i60"),
            (Expiry::At(Timestamp::from_millis(7)), "a7"),
            (Expiry::BrowserClose(Some(Duration::from_secs(9))), "b9"),
            (Expiry::BrowserClose(None), "b"),
        ] {
            assert_eq!(expiry(kind), text);
            assert_eq!(parse_expiry(text), Some(kind));
        }
        for text in ["", "x1", "i", "i-1", "a", "é"] {
            assert_eq!(parse_expiry(text), None, "{text}");
        }
    }
}
