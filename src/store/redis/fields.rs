//! Sessions as fields of a hash.
//!
//! `encode.rs` describes the fields of a record. These are Redis's own:
//!
//! | field | holds |
//! | --- | --- |
//! | `id` | the session's id |
//! | `n`, `b` | number of values, and their size |
//! | `e` | end of the record, which is the key's time to live |
//! | `i` | end that the principal's index has |
//! | `+` | used by the scripts while they add |

use redis::Value;

use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values, size_of};
use crate::store::encode;
pub(super) use crate::store::encode::{Unreadable, unreadable};
use crate::time::Timestamp;

/// The fields of an entry without values, in the order of the scripts' replies.
pub(super) const FIELDS: [&str; 19] = [
    "m", "v", "g", "gs", "pu", "f", "l", "p", "c", "s", "k", "x", "w", "q", "h", "j", "ca", "cu",
    ID,
];

/// The field of the session's own id, by which a reply is matched to it.
const ID: &str = "id";

/// The principal whose index has a session, and until when.
#[derive(Clone, Debug)]
pub(super) struct Indexed {
    pub(super) principal: Principal,
    pub(super) until: Timestamp,
}

/// Lists all fields of a record that ends at `ends_at`.
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

/// Returns whether a reply can be about this session. After one reply too many on a connection, each would be
/// taken for the next request's, and one visitor served as another.
pub(super) fn is_about(answer: &Value, id: Id) -> bool {
    // Anything but an id was never written there, and makes the record unreadable.
    let named = |value: &Value| !matches!(text(value), Ok(Some(name)) if Id::parse(name).is_some_and(|named| named != id));
    match answer {
        Value::Map(pairs) => {
            let own = pairs.iter().find(|(name, _)| matches!(text(name), Ok(Some(ID))));
            own.is_none_or(|(_, value)| named(value))
        }
        // A script returns the fields among other parts.
        Value::Array(parts) => match parts.iter().find_map(returned_fields) {
            Some(fields) => fields.get(FIELDS.len() - 1).is_none_or(named),
            None => parts.get(FIELDS.len() - 1).is_none_or(named),
        },
        _ => false,
    }
}

/// Returns whether an `HMGET` of [`FIELDS`] is about this session.
pub(super) fn names(answer: &Value, id: Id) -> bool {
    match answer {
        Value::Array(parts) => parts.get(FIELDS.len() - 1).is_some_and(
            |value| matches!(text(value), Ok(Some(name)) if Id::parse(name) == Some(id)),
        ),
        _ => false,
    }
}

/// Returns what follows the key in a script's reply; `None` if the key is another one.
pub(super) fn parts_about<'a>(answer: &'a Value, key: &str) -> Option<&'a [Value]> {
    let Value::Array(parts) = answer else { return None };
    let (name, parts) = parts.split_first()?;
    text(name).is_ok_and(|name| name == Some(key)).then_some(parts)
}

/// Reads the count next to the key in a script's reply; `None` if the key is another one.
pub(super) fn count_of(answer: &Value, key: &str) -> Option<i64> {
    match parts_about(answer, key)? {
        [Value::Int(count)] => Some(*count),
        _ => None,
    }
}

fn returned_fields(part: &Value) -> Option<&Vec<Value>> {
    match part {
        Value::Array(fields) if fields.len() == FIELDS.len() => Some(fields),
        _ => None,
    }
}

/// Builds an entry from [`FIELDS`], without values.
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

/// Builds an entry from an `HMGET` of [`FIELDS`] and, if given, of `key`'s field.
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

/// Builds an entry from an `HGETALL`.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The scripts return fields by their place, without names.
    #[test]
    fn scripts_return_the_same_fields() {
        let prelude = include_str!("prelude.lua");
        let between = |start: &str, end: &str| {
            let (_, rest) = prelude.split_once(start).expect(start);
            rest.split_once(end).expect(end).0
        };
        let count: usize = between("local REPLY_FIELDS = ", " ").parse().expect("a number");
        let fields = between("local FIELDS = {", "}").split(',').map(str::trim);
        let fields: Vec<&str> = fields.map(|field| field.trim_matches('\'')).collect();
        assert_eq!(fields[..count], FIELDS);
    }
}
