//! The text of a record's fields, for the stores on disk and on the network.
//!
//! | field | holds |
//! | --- | --- |
//! | `m` | of a tombstone, and then alone: its end |
//! | `v` | version, decimal |
//! | `g`, `gs`, `pu`, `f`, `l` | `generation`, `generation_since`, `previous_until`, `floor`, `login_at` |
//! | `p` | principal |
//! | `c`, `s`, `k` | `created_at`, `last_seen_at`, `cookie_set_at` |
//! | `x` | expiry: `i` seconds, `a` milliseconds, `b`, or `b` seconds |
//! | `w` | `1` if its cookie is withheld |
//! | `q` | if it is unproven: the same as `s` |
//! | `h` | [`Past`]: number of ids, generation of the log-in or `-`, `u` if unpresented or `-`, former principal or nothing; with spaces between |
//! | `j` | held cookies |
//! | `ca`, `cu` | the client's address and user agent |
//! | `e` | the record's end |
//! | `=` and a key | that value's text |
//!
//! `q` is valid only while it equals `s`, `g` equals `f` and there is no `p`. An older release does not know it: it
//! drops or keeps it, but moves `s` by a touch or a write that prolongs, and `g` by a renewed token. So what it
//! has seen in use does not count as unproven.
//!
//! Times are milliseconds since the epoch, decimal. Absent fields are `None`.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::session::held::Held;
use crate::session::record::{Client, Expiry, Key, Meta, Principal};
use crate::time::Timestamp;

/// A record that we did not write.
#[derive(Debug, thiserror::Error)]
#[error("a session in the store cannot be read")]
pub(super) struct Unreadable;

/// The parser's error adds nothing to that.
pub(super) fn unreadable(_: impl std::error::Error) -> Unreadable {
    Unreadable
}

/// Lists the fields of a record without its values, and without absent ones.
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
        ("h", Past::of(meta).to_text()),
        ("j", meta.held.as_ref().map(|held| held.as_str().to_owned())),
        ("ca", client.and_then(|client| Some(client.address?.to_string()))),
        ("cu", client.map(|client| client.user_agent.to_string())),
    ];
    fields.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
}

/// Builds the record without values that has these fields.
pub(super) fn meta_of<'a>(field: impl Fn(&str) -> Option<&'a str>) -> Result<Meta, Unreadable> {
    let time = |name| Ok(number(&field, name)?.map(Timestamp::from_millis));
    let principal = field("p").map(|name| Principal::new(name).ok_or(Unreadable));
    let expiry = field("x").map(|text| parse_expiry(text).ok_or(Unreadable));
    let client = field("cu").map(|user_agent| {
        Ok(Client { address: number(&field, "ca")?, user_agent: user_agent.into() })
    });
    let held = field("j").map(|text| parse_held(text).ok_or(Unreadable));
    let mut meta = Meta {
        version: number(&field, "v")?.ok_or(Unreadable)?,
        generation: number(&field, "g")?.ok_or(Unreadable)?,
        generation_since: time("gs")?.ok_or(Unreadable)?,
        previous_until: time("pu")?,
        floor: number(&field, "f")?.ok_or(Unreadable)?,
        login_at: time("l")?,
        principal: principal.transpose()?,
        principal_since: 0,
        former_principal: None,
        id_counter: 0,
        unpresented: false,
        held: held.transpose()?,
        created_at: time("c")?.ok_or(Unreadable)?,
        last_seen_at: time("s")?.ok_or(Unreadable)?,
        cookie_set_at: time("k")?.ok_or(Unreadable)?,
        expiry: expiry.transpose()?,
        withheld: field("w").is_some(),
        unproven: field("q").is_some()
            && field("q") == field("s")
            && field("g") == field("f")
            && field("p").is_none(),
        client: client.transpose()?.map(Box::new),
    };
    if let Some(text) = field("h") {
        Past::parse(text).ok_or(Unreadable)?.add_to(&mut meta);
    }
    Ok(meta)
}

/// The part of a record that tells of its past. An older release does not know it, and may drop it together with
/// all values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) id_counter: u16,
    pub(super) principal_since: u32,
    pub(super) former_principal: Option<Box<Principal>>,
    pub(super) unpresented: bool,
}

impl Past {
    pub(super) fn of(meta: &Meta) -> Self {
        Self {
            id_counter: meta.id_counter,
            principal_since: meta.principal_since,
            former_principal: meta.former_principal.clone(),
            unpresented: meta.unpresented,
        }
    }

    /// Returns its text; `None` if there is nothing to tell.
    pub(super) fn to_text(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        let since = match self.principal_since {
            0 => "-".to_owned(),
            since => since.to_string(),
        };
        let former = self.former_principal.as_deref().map_or("", Principal::as_str);
        let unpresented = if self.unpresented { "u" } else { "-" };
        Some(format!("{} {since} {unpresented} {former}", self.id_counter))
    }

    pub(super) fn add_to(self, meta: &mut Meta) {
        let Self { id_counter, principal_since, former_principal, unpresented } = self;
        meta.id_counter = id_counter;
        meta.unpresented = unpresented;
        meta.principal_since = principal_since;
        meta.former_principal = former_principal;
    }

    /// Parses what [`Past::to_text`] returned.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let (counter, since, mark) = (parts.next()?, parts.next()?, parts.next()?);
        let former = parts.next()?;
        let principal_since = match since {
            "-" => 0,
            since => since.parse().ok()?,
        };
        let former_principal = match former {
            "" => None,
            name => Some(Box::new(Principal::new(name)?)),
        };
        let unpresented = match mark {
            "u" => true,
            "-" => false,
            _ => return None,
        };
        let id_counter = counter.parse().ok()?;
        Some(Self { id_counter, principal_since, former_principal, unpresented })
    }
}

fn number<'a, T: FromStr<Err: std::error::Error>>(
    field: impl Fn(&str) -> Option<&'a str>,
    name: &str,
) -> Result<Option<T>, Unreadable> {
    field(name).map(|text| text.parse().map_err(unreadable)).transpose()
}

/// Parses the text of held cookies.
pub(super) fn parse_held(text: &str) -> Option<Arc<Held>> {
    Held::parse(text).map(Arc::new)
}

/// Returns the name of a value's field.
pub(super) fn field_of(key: &Key) -> String {
    format!("={}", key.as_str())
}

/// Writes an expiry: `i` and seconds for idle, `a` and milliseconds since the epoch for a time, `b` and
/// optionally seconds for the browser's close.
pub(super) fn expiry(expiry: Expiry) -> String {
    match expiry {
        Expiry::Idle(idle) => format!("i{}", idle.as_secs()),
        Expiry::At(instant) => format!("a{}", instant.as_millis()),
        Expiry::BrowserClose(Some(idle)) => format!("b{}", idle.as_secs()),
        Expiry::BrowserClose(None) => "b".to_owned(),
    }
}

/// Reads what [`expiry`] wrote.
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
    fn past_round_trips() {
        let past = |id_counter, principal_since, former: Option<&str>| Past {
            id_counter,
            principal_since,
            former_principal: former.and_then(Principal::new).map(Box::new),
            unpresented: former.is_none(),
        };
        for (past, text) in [
            (past(0, 3, None), "0 3 u "),
            (past(u16::MAX, 0, Some("ada  é")), "65535 - - ada  é"),
            (past(0, u32::MAX, Some("-")), "0 4294967295 - -"),
        ] {
            assert_eq!(past.to_text().as_deref(), Some(text));
            assert_eq!(Past::parse(text), Some(past));
        }
        assert_eq!(Past::default().to_text(), None);
        for text in ["", "0", "0 - -", "-1 - - ", "0 x - ", "0 - x ", "65536 - - ", "0 - - a\nb"] {
            assert_eq!(Past::parse(text), None, "{text}");
        }
    }

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
