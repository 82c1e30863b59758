//! Sessions as fields of a hash.
//!
//! The fields of a record are told in `encode.rs`. These are Redis's own:
//!
//! | field | holds |
//! | --- | --- |
//! | `id` | the session's id |
//! | `n`, `b` | how many values there are, and their size |
//! | `e` | when the record ends, which is the key's time to live |
//! | `i` | until when the index of the principal has the session |
//! | `+` | the scripts', while they add |

use redis::Value;

use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values, size_of};
use crate::store::encode;
pub(super) use crate::store::encode::{Unreadable, unreadable};
use crate::time::Timestamp;

/// The fields that make an entry without values; in this order the scripts answer them.
pub(super) const FIELDS: [&str; 17] =
    ["m", "v", "g", "gs", "pu", "f", "l", "p", "c", "s", "k", "x", "w", "q", "ca", "cu", ID];

/// The field of the session's own id, by which an answer is known to be about it.
const ID: &str = "id";

/// For whom, and until when, the index has a session.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    pub(super) principal: Principal,
    pub(super) until: Timestamp,
}

/// All fields of a record that ends at `ends_at`.
pub(super) fn fields_of(
    id: Id,
    record: &Record,
    ends_at: Timestamp,
    indexed: Option<&Indexed>,
) -> Vec<(String, String)> {
    let Record { meta, values } = record;
    let mut fields = encode::meta_fields(meta);
    fields.push((ID, id.to_string()));
    fields.push(("n", values.len().to_string()));
    fields.push(("b", size_of(values).to_string()));
    fields.push(("e", ends_at.as_millis().to_string()));
    fields.extend(indexed.map(|indexed| ("i", indexed.until.as_millis().to_string())));
    let meta = fields.into_iter().map(|(name, text)| (name.to_owned(), text));
    let values = values.iter().map(|(key, text)| (encode::field_of(key), text.to_string()));
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

pub(super) fn instant(value: &Value) -> Result<Option<Timestamp>, Unreadable> {
    let millis = text(value)?.map(|text| text.parse().map_err(unreadable)).transpose()?;
    Ok(millis.map(Timestamp::from_millis))
}

/// Whether an answer can be the one about this session. On a connection on which one answer too
/// many has come, each would be taken for the next question's, and one visitor be served as another.
pub(super) fn is_about(answer: &Value, id: Id) -> bool {
    // What is no id was never written there, and makes the record unreadable.
    let named = |value: &Value| !matches!(text(value), Ok(Some(name)) if Id::parse(name).is_some_and(|named| named != id));
    match answer {
        Value::Map(pairs) => {
            let own = pairs.iter().find(|(name, _)| matches!(text(name), Ok(Some(ID))));
            own.is_none_or(|(_, value)| named(value))
        }
        // A script tells the fields beside others.
        Value::Array(parts) => match parts.iter().find_map(told_fields) {
            Some(fields) => fields.get(FIELDS.len() - 1).is_none_or(named),
            None => parts.get(FIELDS.len() - 1).is_none_or(named),
        },
        _ => false,
    }
}

/// Whether an `HMGET` of [`FIELDS`] names this session.
pub(super) fn names(answer: &Value, id: Id) -> bool {
    match answer {
        Value::Array(parts) => parts.get(FIELDS.len() - 1).is_some_and(
            |value| matches!(text(value), Ok(Some(name)) if Id::parse(name) == Some(id)),
        ),
        _ => false,
    }
}

/// What a script says beside the key that it was about, which has to be this one.
pub(super) fn count_of(answer: &Value, key: &str) -> Option<i64> {
    match answer {
        Value::Array(parts) => match parts.as_slice() {
            [name, Value::Int(count)] if text(name).is_ok_and(|name| name == Some(key)) => {
                Some(*count)
            }
            _ => None,
        },
        _ => None,
    }
}

fn told_fields(part: &Value) -> Option<&Vec<Value>> {
    match part {
        Value::Array(fields) if fields.len() == FIELDS.len() => Some(fields),
        _ => None,
    }
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
    if let Some(id) = meta.last()
        && text(id)?.is_some_and(|id| Id::parse(id).is_none())
    {
        return Err(Unreadable);
    }
    Ok(Some(Entry::Live(Record { meta: meta_of(meta)?, values: Values::new() })))
}

fn meta_of(fields: &[Value]) -> Result<Meta, Unreadable> {
    let texts: Vec<Option<&str>> = fields.iter().map(text).collect::<Result<_, _>>()?;
    let names = FIELDS.iter().skip(1);
    encode::meta_of(|name| {
        names.clone().zip(&texts).find(|(at, _)| **at == name).and_then(|(_, text)| *text)
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

/// Returns the id in the name of a session's key, if there is one.
pub(super) fn id_of(name: &Value) -> Option<Id> {
    let name = text(name).ok().flatten()?;
    Id::parse(name.trim_end_matches('}').rsplit('{').next()?)
}
