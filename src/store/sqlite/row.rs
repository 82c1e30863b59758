//! Rows, entries, and the statements for them.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::fault::{Fault, Kind};
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::record::{Client, Entry, Key, Meta, Principal, Record, Values};
use crate::store::encode;
use crate::store::{Page, Want};
use crate::time::Timestamp;

/// Number of rows that one step of a sweep removes.
const SWEEP: i64 = 500;

const COLUMNS: &str = "ended, ends_at, version, generation, generation_since, previous_until, \
     floor, login_at, principal, created_at, last_seen_at, cookie_set_at, expiry, withheld, \
     client_address, client_user_agent, unproven_at";

/// Reads the entry of `id`.
pub(super) fn load(
    connection: &Connection,
    id: Id,
    want: Want<'_>,
) -> Result<Option<Entry>, Fault> {
    let columns = match want {
        Want::Meta => format!("SELECT {COLUMNS} FROM sessions WHERE id = ?1"),
        Want::Value(_) | Want::Before(_) | Want::Values => {
            format!("SELECT {COLUMNS}, json FROM sessions WHERE id = ?1")
        }
    };
    let mut statement = connection.prepare_cached(&columns)?;
    let mut rows = statement.query([id.as_bytes()])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let mut entry = entry_of(row)?;
    if let Entry::Live(record) = &mut entry
        && want != Want::Meta
    {
        record.values = want.select(values_of(row.get_ref("json")?.as_str().map_err(unreadable)?)?);
    }
    Ok(Some(entry))
}

/// Inserts an entry; returns whether the id was free.
pub(super) fn insert(
    connection: &Connection,
    id: Id,
    entry: &Entry,
    over_at: Timestamp,
) -> Result<bool, Fault> {
    let made = write(connection, id, entry, over_at, "ON CONFLICT DO NOTHING")?;
    Ok(made == 1)
}

/// Replaces an entry.
pub(super) fn put(
    connection: &Connection,
    id: Id,
    entry: &Entry,
    over_at: Timestamp,
) -> Result<(), Fault> {
    let instead = "ON CONFLICT (id) DO UPDATE SET (ended, ends_at, version, generation, \
        generation_since, previous_until, floor, login_at, principal, created_at, last_seen_at, \
        cookie_set_at, expiry, withheld, client_address, client_user_agent, unproven_at, json) = \
        (excluded.ended, excluded.ends_at, excluded.version, excluded.generation, \
        excluded.generation_since, excluded.previous_until, excluded.floor, excluded.login_at, \
        excluded.principal, excluded.created_at, excluded.last_seen_at, excluded.cookie_set_at, \
        excluded.expiry, excluded.withheld, excluded.client_address, excluded.client_user_agent, \
        excluded.unproven_at, excluded.json)";
    write(connection, id, entry, over_at, instead)?;
    Ok(())
}

fn write(
    connection: &Connection,
    id: Id,
    entry: &Entry,
    over_at: Timestamp,
    on_conflict: &str,
) -> Result<usize, Fault> {
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO sessions (id, {COLUMNS}, json) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {on_conflict}"
    ))?;
    let written = match entry {
        Entry::Ended { until } => {
            let mut columns = vec![Value::Null; 19];
            for (column, value) in columns.iter_mut().zip([
                Value::Blob(id.as_bytes().to_vec()),
                Value::Integer(1),
                Value::Integer(until.as_millis()),
            ]) {
                *column = value;
            }
            statement.execute(rusqlite::params_from_iter(columns))?
        }
        Entry::Live(Record { meta, values }) => statement.execute(params![
            id.as_bytes(),
            false,
            over_at.as_millis(),
            meta.version.cast_signed(),
            meta.generation,
            meta.generation_since.as_millis(),
            meta.previous_until.map(Timestamp::as_millis),
            meta.floor,
            meta.login_at.map(Timestamp::as_millis),
            meta.principal.as_ref().map(Principal::as_str),
            meta.created_at.as_millis(),
            meta.last_seen_at.as_millis(),
            meta.cookie_set_at.as_millis(),
            meta.expiry.map(encode::expiry),
            meta.withheld,
            address(meta),
            meta.client.as_ref().map(|client| &*client.user_agent),
            unproven_at(meta),
            object_of(values),
        ])?,
    };
    Ok(written)
}

fn address(meta: &Meta) -> Option<String> {
    let client = meta.client.as_ref()?;
    client.address.map(|address| address.to_string())
}

/// Returns its `last_seen_at` if it is unproven: as in `encode.rs`, an older release invalidates the mark when it
/// moves that.
fn unproven_at(meta: &Meta) -> Option<i64> {
    meta.unproven.then(|| meta.last_seen_at.as_millis())
}

/// Writes what a use changes.
pub(super) fn write_use(
    connection: &Connection,
    id: Id,
    meta: &Meta,
    ends_at: Timestamp,
) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached(
        "UPDATE sessions SET ends_at = ?2, generation = ?3, generation_since = ?4, \
         previous_until = ?5, last_seen_at = ?6, cookie_set_at = ?7, unproven_at = ?8 WHERE id = ?1",
    )?;
    statement.execute(params![
        id.as_bytes(),
        ends_at.as_millis(),
        meta.generation,
        meta.generation_since.as_millis(),
        meta.previous_until.map(Timestamp::as_millis),
        meta.last_seen_at.as_millis(),
        meta.cookie_set_at.as_millis(),
        unproven_at(meta),
    ])?;
    Ok(())
}

/// Removes the row of `id`.
pub(super) fn delete(connection: &Connection, id: Id) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached("DELETE FROM sessions WHERE id = ?1")?;
    statement.execute([id.as_bytes()])?;
    Ok(())
}

/// Removes a session, also an unreadable one, but no tombstone. Returns whether there was one.
pub(super) fn remove_session(connection: &Connection, id: Id) -> Result<bool, Fault> {
    let mut statement =
        connection.prepare_cached("DELETE FROM sessions WHERE id = ?1 AND ended IS NOT 1")?;
    Ok(statement.execute([id.as_bytes()])? == 1)
}

/// Lists a page of sessions, by id.
pub(super) fn list(
    connection: &Connection,
    principal: Option<&Principal>,
    after: Option<Id>,
    limit: usize,
) -> Result<Page, Fault> {
    // The empty blob comes before every id.
    let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
    // One more than requested shows whether there is a next page.
    let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let filter = match principal {
        Some(_) => "principal = ?3 AND",
        None => "",
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS}, id FROM sessions WHERE {filter} id > ?1 AND ended IS NOT 1 \
         AND length(id) = {length} ORDER BY id LIMIT ?2",
        length = Id::BYTES
    ))?;
    let name = principal.map(Principal::as_str);
    let mut parameters: Vec<&dyn ToSql> = vec![&after, &most];
    if let Some(name) = &name {
        parameters.push(name);
    }
    let mut rows = statement.query(&*parameters)?;
    let mut page = Page::default();
    let mut last = None;
    for read in 0.. {
        let Some(row) = rows.next()? else { break };
        if read == limit {
            page.next = last.map(|id: Id| id.to_string());
            break;
        }
        let id = Id::from_bytes(row.get("id")?);
        last = Some(id);
        match entry_of(row) {
            Ok(Entry::Live(record)) => page.sessions.push((id, record.meta)),
            Ok(Entry::Ended { .. }) => {}
            Err(fault) if fault.kind() == Kind::Corrupt => page.unreadable.push(id),
            Err(fault) => return Err(fault),
        }
    }
    Ok(page)
}

/// The result of one step of a sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swept {
    pub(super) sessions: u64,
    rows: i64,
}

impl Swept {
    /// Whether nothing is left to remove.
    pub(super) fn is_last(self) -> bool {
        self.rows < SWEEP
    }
}

/// Runs one step of a sweep. A tombstone is still valid at its end.
pub(super) fn sweep(connection: &Connection, now: Timestamp) -> Result<Swept, Fault> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions \
         WHERE ends_at <= ?1 AND (ended = 0 OR ends_at < ?1) LIMIT ?2) RETURNING ended",
    )?;
    let mut rows = statement.query([now.as_millis(), SWEEP])?;
    let mut swept = Swept { sessions: 0, rows: 0 };
    while let Some(row) = rows.next()? {
        swept.rows += 1;
        // An unreadable row is not a tombstone, and expires like any other.
        swept.sessions += u64::from(row.get_ref(0)?.as_i64() != Ok(1));
    }
    Ok(swept)
}

/// Reads something of the file.
pub(super) fn ping(connection: &Connection) -> Result<(), Fault> {
    connection
        .prepare_cached("SELECT 1 FROM sessions LIMIT 1")?
        .query_row([], |_| Ok(()))
        .optional()?;
    Ok(())
}

/// Changes pages as a session does, and leaves nothing, or at worst a tombstone that the next sweep removes.
pub(super) fn probe(connection: &Connection, id: Id) -> Result<(), Fault> {
    let until = Timestamp::from_millis(0);
    insert(connection, id, &Entry::Ended { until }, until)?;
    delete(connection, id)
}

fn unreadable(_: impl std::error::Error) -> Fault {
    Fault::unreadable()
}

/// Builds the entry of a row, without values.
fn entry_of(row: &Row<'_>) -> Result<Entry, Fault> {
    let time = |column: &str| row.get(column).map(Timestamp::from_millis);
    let maybe_time = |column: &str| {
        row.get::<_, Option<i64>>(column).map(|millis| millis.map(Timestamp::from_millis))
    };
    if row.get("ended")? {
        return Ok(Entry::Ended { until: time("ends_at")? });
    }
    let text = |column: &str| row.get::<_, Option<String>>(column);
    let read = |text: Option<String>| text.as_deref().map(encode::parse_expiry);
    let (last_seen_at, principal) = (time("last_seen_at")?, text("principal")?);
    let (generation, floor) = (row.get("generation")?, row.get("floor")?);
    let meta = Meta {
        version: row.get::<_, i64>("version")?.cast_unsigned(),
        generation,
        generation_since: time("generation_since")?,
        previous_until: maybe_time("previous_until")?,
        floor,
        login_at: maybe_time("login_at")?,
        unproven: maybe_time("unproven_at")? == Some(last_seen_at)
            && generation == floor
            && principal.is_none(),
        principal: principal
            .map(|name| Principal::new(&name).ok_or_else(Fault::unreadable))
            .transpose()?,
        created_at: time("created_at")?,
        last_seen_at,
        cookie_set_at: time("cookie_set_at")?,
        expiry: match read(text("expiry")?) {
            Some(None) => return Err(Fault::unreadable()),
            Some(expiry) => expiry,
            None => None,
        },
        withheld: row.get("withheld")?,
        client: client_of(text("client_address")?, text("client_user_agent")?)?,
    };
    Ok(Entry::Live(Record { meta, values: Values::new() }))
}

fn client_of(address: Option<String>, user_agent: Option<String>) -> Result<Option<Client>, Fault> {
    let Some(user_agent) = user_agent else {
        return Ok(None);
    };
    let address = address.map(|address| address.parse().map_err(unreadable)).transpose()?;
    Ok(Some(Client { address, user_agent: user_agent.into() }))
}

/// Writes the values as one JSON object.
fn object_of(values: &Values) -> String {
    let mut object = String::from("{");
    for (key, text) in values {
        if object.len() > 1 {
            object.push(',');
        }
        object.push_str(Json::string(key.as_str()).as_str());
        object.push(':');
        object.push_str(text.as_str());
    }
    object.push('}');
    object
}

fn values_of(object: &str) -> Result<Values, Fault> {
    let members = Json::trusted(object).members().ok_or_else(Fault::unreadable)?;
    members
        .into_iter()
        .map(|(name, text)| Some((Key::new(&name)?, text)))
        .collect::<Option<_>>()
        .ok_or_else(Fault::unreadable)
}
