//! Rows, entries, and the statements for them.

use rusqlite::types::{FromSql, Value};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::fault::{Fault, Kind};
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::policy::{Expired, Policy};
use crate::session::record::{Client, Entry, Expiry, Key, Meta, Principal, Record, Values};
use crate::store::encode::{self, Past};
use crate::store::{Page, Swept, Want};
use crate::time::Timestamp;

/// Number of rows in a batch of a sweep.
const SWEEP_BATCH: i64 = 500;

/// The columns of an entry without its values, in the order in which [`entry_of`] reads them.
macro_rules! columns {
    () => {
        "ended, ends_at, version, generation, generation_since, previous_until, floor, login_at, \
         principal, created_at, last_seen_at, cookie_set_at, expiry, withheld, client_address, \
         client_user_agent, unproven_at, past, held"
    };
}

const LOAD: &str = concat!("SELECT ", columns!(), " FROM sessions WHERE id = ?1");
const LOAD_VALUES: &str = concat!("SELECT ", columns!(), ", json FROM sessions WHERE id = ?1");

/// Reads the entry of `id`.
pub(super) fn load(
    connection: &Connection,
    id: Id,
    want: Want<'_>,
) -> Result<Option<Entry>, Fault> {
    let statement = match want {
        Want::Meta => LOAD,
        Want::Value(_) | Want::Before(_) | Want::Values => LOAD_VALUES,
    };
    let mut statement = connection.prepare_cached(statement)?;
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
        cookie_set_at, expiry, withheld, client_address, client_user_agent, unproven_at, past, held, json) = \
        (excluded.ended, excluded.ends_at, excluded.version, excluded.generation, \
        excluded.generation_since, excluded.previous_until, excluded.floor, excluded.login_at, \
        excluded.principal, excluded.created_at, excluded.last_seen_at, excluded.cookie_set_at, \
        excluded.expiry, excluded.withheld, excluded.client_address, excluded.client_user_agent, \
        excluded.unproven_at, excluded.past, excluded.held, excluded.json)";
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
        "INSERT INTO sessions (id, {columns}, json) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {on_conflict}",
        columns = columns!()
    ))?;
    let written = match entry {
        Entry::Ended { until } => {
            let mut columns = vec![Value::Null; 21];
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
            Past::of(meta).to_text(),
            meta.held.as_ref().map(|held| held.as_str()),
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
         previous_until = ?5, last_seen_at = ?6, cookie_set_at = ?7, unproven_at = ?8, past = ?9 \
         WHERE id = ?1",
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
        Past::of(meta).to_text(),
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
        "SELECT {columns}, id FROM sessions WHERE {filter} id > ?1 AND ended IS NOT 1 \
         AND length(id) = {length} ORDER BY id LIMIT ?2",
        columns = columns!(),
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

/// Counts expired rows by their index alone, so it includes a tombstone at its end.
pub(super) fn expired(connection: &Connection, now: Timestamp) -> Result<u64, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM sessions WHERE ends_at <= ?1")?;
    let count: i64 = statement.query_row([now.as_millis()], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Removes a batch of expired rows. A tombstone is still valid at its end.
pub(super) fn sweep(
    connection: &Connection,
    now: Timestamp,
    policy: &Policy,
) -> Result<Swept, Fault> {
    let mut statement = connection.prepare_cached(concat!(
        "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions \
         WHERE ends_at <= ?1 AND (ended = 0 OR ends_at < ?1) LIMIT ?2) RETURNING ",
        columns!()
    ))?;
    let mut rows = statement.query([now.as_millis(), SWEEP_BATCH])?;
    let mut swept = Swept::default();
    while let Some(row) = rows.next()? {
        match entry_of(row) {
            Ok(Entry::Live(record)) => swept.session(policy.expired(&record.meta)),
            Ok(Entry::Ended { .. }) => swept.tombstone(),
            // An unreadable row is not a tombstone, and expires like any other.
            Err(fault) if fault.kind() == Kind::Corrupt => swept.session(Expired::Idle),
            Err(fault) => return Err(fault),
        }
    }
    swept.more = swept.entries >= SWEEP_BATCH.unsigned_abs();
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

/// Reads the columns of a row in turn. To find them by name takes longer than the query.
struct Columns<'a> {
    row: &'a Row<'a>,
    next: usize,
}

impl Columns<'_> {
    fn take<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        let index = self.next;
        self.next += 1;
        self.row.get(index)
    }

    fn time(&mut self) -> rusqlite::Result<Timestamp> {
        self.take().map(Timestamp::from_millis)
    }

    fn maybe_time(&mut self) -> rusqlite::Result<Option<Timestamp>> {
        self.take::<Option<i64>>().map(|millis| millis.map(Timestamp::from_millis))
    }
}

/// Builds the entry of a row, without values.
fn entry_of(row: &Row<'_>) -> Result<Entry, Fault> {
    let mut columns = Columns { row, next: 0 };
    let (is_tombstone, ends_at) = (columns.take()?, columns.time()?);
    if is_tombstone {
        return Ok(Entry::Ended { until: ends_at });
    }
    let mut meta = Meta {
        version: columns.take::<i64>()?.cast_unsigned(),
        generation: columns.take()?,
        generation_since: columns.time()?,
        previous_until: columns.maybe_time()?,
        floor: columns.take()?,
        login_at: columns.maybe_time()?,
        principal: principal_of(columns.take()?)?,
        created_at: columns.time()?,
        last_seen_at: columns.time()?,
        cookie_set_at: columns.time()?,
        expiry: expiry_of(columns.take()?)?,
        withheld: columns.take()?,
        client: client_of(columns.take()?, columns.take()?)?.map(Box::new),
        unproven: false,
        principal_since: 0,
        former_principal: None,
        id_counter: 0,
        unpresented: false,
        held: None,
    };
    meta.unproven = columns.maybe_time()? == Some(meta.last_seen_at)
        && meta.generation == meta.floor
        && meta.principal.is_none();
    if let Some(text) = columns.take::<Option<String>>()? {
        Past::parse(&text).ok_or_else(Fault::unreadable)?.add_to(&mut meta);
    }
    if let Some(text) = columns.take::<Option<String>>()? {
        meta.held = Some(encode::parse_held(&text).ok_or_else(Fault::unreadable)?);
    }
    Ok(Entry::Live(Record { meta, values: Values::new() }))
}

fn principal_of(name: Option<String>) -> Result<Option<Principal>, Fault> {
    name.map(|name| Principal::new(&name).ok_or_else(Fault::unreadable)).transpose()
}

fn expiry_of(text: Option<String>) -> Result<Option<Expiry>, Fault> {
    text.map(|text| encode::parse_expiry(&text).ok_or_else(Fault::unreadable)).transpose()
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
