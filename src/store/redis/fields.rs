//! Sessions as fields of a hash.
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
//! | `ca`, `cu` | the client's address and user agent |
//! | `n`, `b` | how many values there are, and their size |
//! | `e` | when the record ends, which is the key's time to live |
//! | `i` | until when the index of the principal has the session |
//! | `+` | the scripts', while they add |
//! | `=` and a key | that value's text |
//!
//! Times are milliseconds since the epoch, decimal. What is absent is `None`.

use redis::Value;

use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::record::{Client, Entry, Key, Meta, Principal, Record, Values, size_of};
use crate::store::encode;
use crate::time::Timestamp;

/// The fields that make an entry without values; in this order the scripts answer them.
pub(super) const FIELDS: [&str; 15] =
    ["m", "v", "g", "gs", "pu", "f", "l", "p", "c", "s", "k", "x", "w", "ca", "cu"];

/// What stands there is nothing that we wrote.
#[derive(Debug, thiserror::Error)]
#[error("a session in Redis cannot be read")]
pub(super) struct Unreadable;

/// What a parser says adds nothing to that.
pub(super) fn unreadable(_: impl std::error::Error) -> Unreadable {
    Unreadable
}

/// For whom, and until when, the index has a session.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    pub(super) principal: Principal,
    pub(super) until: Timestamp,
}

/// The name of a value's field.
pub(super) fn field(key: &Key) -> String {
    format!("={}", key.as_str())
}

/// All fields of a record that ends at `ends_at`.
pub(super) fn fields_of(
    record: &Record,
    ends_at: Timestamp,
    indexed: Option<&Indexed>,
) -> Vec<(String, String)> {
    let Record { meta, values } = record;
    let time = |time: Timestamp| Some(time.as_millis().to_string());
    let client = meta.client.as_ref();
    let present = [
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
        ("x", meta.expiry.map(encode::expiry)),
        ("w", meta.withheld.then(|| "1".to_owned())),
        ("ca", client.and_then(|client| Some(client.address?.to_string()))),
        ("cu", client.map(|client| client.user_agent.to_string())),
        ("n", Some(values.len().to_string())),
        ("b", Some(size_of(values).to_string())),
        ("e", time(ends_at)),
        ("i", indexed.and_then(|indexed| time(indexed.until))),
    ];
    let meta = present.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?)));
    let values = values.iter().map(|(key, text)| (field(key), text.to_string()));
    meta.chain(values).collect()
}

pub(super) fn text(value: &Value) -> Result<Option<&str>, Unreadable> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Unreadable),
        },
        Value::SimpleString(text) => Ok(Some(text)),
        _ => Err(Unreadable),
    }
}

fn parsed<T>(value: &Value) -> Result<Option<T>, Unreadable>
where
    T: std::str::FromStr<Err: std::error::Error>,
{
    let text = text(value)?;
    text.map(|text| text.parse().map_err(unreadable)).transpose()
}

pub(super) fn instant(value: &Value) -> Result<Option<Timestamp>, Unreadable> {
    Ok(parsed(value)?.map(Timestamp::from_millis))
}

/// What the values of [`FIELDS`] make, without values of its own.
pub(super) fn entry_of(fields: &[Value]) -> Result<Option<Entry>, Unreadable> {
    let (marker, meta) = fields.split_first().ok_or(Unreadable)?;
    if let Some(until) = instant(marker)? {
        return Ok(Some(Entry::Ended { until }));
    }
    if meta.iter().all(|field| *field == Value::Nil) {
        return Ok(None);
    }
    Ok(Some(Entry::Live(Record { meta: meta_of(meta)?, values: Values::new() })))
}

fn meta_of(fields: &[Value]) -> Result<Meta, Unreadable> {
    let (numbers, texts) = fields.split_at_checked(6).ok_or(Unreadable)?;
    let [version, generation, since, previous, floor, login] = numbers else {
        return Err(Unreadable);
    };
    let [principal, created, seen, cookie, expiry, withheld, address, user_agent] = texts else {
        return Err(Unreadable);
    };
    let principal = text(principal)?.map(|name| Principal::new(name).ok_or(Unreadable));
    let expiry = text(expiry)?.map(|text| encode::parse_expiry(text).ok_or(Unreadable));
    let client = text(user_agent)?
        .map(|user_agent| Ok(Client { address: parsed(address)?, user_agent: user_agent.into() }));
    Ok(Meta {
        version: parsed(version)?.ok_or(Unreadable)?,
        generation: parsed(generation)?.ok_or(Unreadable)?,
        generation_since: instant(since)?.ok_or(Unreadable)?,
        previous_until: instant(previous)?,
        floor: parsed(floor)?.ok_or(Unreadable)?,
        login_at: instant(login)?,
        principal: principal.transpose()?,
        created_at: instant(created)?.ok_or(Unreadable)?,
        last_seen_at: instant(seen)?.ok_or(Unreadable)?,
        cookie_set_at: instant(cookie)?.ok_or(Unreadable)?,
        expiry: expiry.transpose()?,
        withheld: text(withheld)?.is_some(),
        client: client.transpose()?,
    })
}

/// What an `HMGET` of [`FIELDS`], and of `key`'s field where one is given, has found.
pub(super) fn entry_of_hmget(
    answer: Value,
    key: Option<&Key>,
) -> Result<Option<Entry>, Unreadable> {
    let found = array(answer)?;
    let (fields, more) = found.split_at_checked(FIELDS.len()).ok_or(Unreadable)?;
    let mut entry = entry_of(fields)?;
    if let (Some(Entry::Live(record)), Some(key), [value]) = (&mut entry, key, more)
        && let Some(text) = text(value)?
    {
        record.values.insert(key.clone(), Json::trusted(text));
    }
    Ok(entry)
}

/// What an `HGETALL` has found.
pub(super) fn entry_of_hgetall(answer: Value) -> Result<Option<Entry>, Unreadable> {
    let pairs: Vec<(Value, Value)> = match answer {
        Value::Map(pairs) => pairs,
        _ => return Err(Unreadable),
    };
    let mut fields = [const { Value::Nil }; FIELDS.len()];
    let mut values = Values::new();
    for (name, value) in pairs {
        let name = text(&name)?.ok_or(Unreadable)?;
        if let Some(key) = name.strip_prefix('=') {
            let json = Json::trusted(text(&value)?.ok_or(Unreadable)?);
            values.insert(Key::new(key).ok_or(Unreadable)?, json);
        } else if let Some((_, field)) = FIELDS.iter().zip(&mut fields).find(|(at, _)| **at == name)
        {
            *field = value;
        }
    }
    let mut entry = entry_of(&fields)?;
    if let Some(Entry::Live(record)) = &mut entry {
        record.values = values;
    }
    Ok(entry)
}

pub(super) fn array(value: Value) -> Result<Vec<Value>, Unreadable> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Unreadable),
    }
}

/// The id in the name of a session's key, where there is one.
pub(super) fn id_of(name: &Value) -> Result<Option<Id>, Unreadable> {
    Ok(text(name)?.and_then(|name| Id::parse(name.trim_end_matches('}').rsplit('{').next()?)))
}
