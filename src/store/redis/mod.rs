//! Records in Redis, shared by any number of instances.
//!
//! One hash per session at `<prefix>s:{<id>}` (its fields: `fields.rs`), which Redis removes by
//! itself when it expires. Every change is one script on that one key.
//!
//! A sorted set per principal at `<prefix>p:{<principal>}`, the index, lists their sessions with the end of
//! each. It is a superset of the truth: it has a session before the record names the principal, and until
//! after the record's end. Its ends are later than the records', and a record holds the index's, so that a
//! touch seldom needs to write it.
//!
//! A sorted set at `<prefix>keys` has the fingerprints of the instances' session keys (`keys.rs`).
//!
//! An instance of the store has one connection to each server, and belongs to one runtime: one for
//! each worker.

mod arguments;
mod calls;
mod deployment;
mod error;
mod fields;
mod held;
mod keys;
mod list;
mod merge;
mod probe;
mod survey;
mod tracking;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::time::{Instant, timeout_at};

use self::arguments::Common;
use self::calls::{Answered, Computed, ValuesChange};
pub use self::deployment::Deployment;
use self::fields::{FIELDS, Indexed, Unreadable};
use self::merge::{MAX_WAITING, MERGE_ATTEMPTS};
pub(crate) use self::survey::{Survey, SurveyError};
pub use self::tracking::{LEASE, track};
use super::{
    Answer, Backend, Created, Error, KnownKeys, Page, Store, Swept, Unproven, Want, encode,
};
use crate::log::limited;
use crate::redis::config::Address;
use crate::redis::{
    CallError, CallMode, Confirmed, Notices, Replicas, Reply, Request, Script, Servers, WaitPolicy,
};
use crate::session::id::Id;
use crate::session::key_ring::Fingerprint;
use crate::session::patch::{Applied, Change, ExpiryChange, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Meta, Principal, Record};
use crate::tasks::Tasks;
use crate::time::Timestamp;
use crate::turns::{Turn, Turns};

/// Number of attempts of a change that the index was not ready for.
const ATTEMPTS: usize = 4;

/// The Redis store.
#[derive(Debug)]
pub struct Redis {
    servers: Servers,
    prefix: String,
    timeout: Duration,
    wait: WaitPolicy,
    replicas: Arc<Replicas>,
    notices: Arc<Notices>,
    /// The sessions into whose values is merged, of all workers.
    merging: Arc<Turns<Id>>,
    scripts: Scripts,
}

#[derive(Debug)]
struct Scripts {
    create: Script,
    patch: Script,
    values: Script,
    record_use: Script,
    remove: Script,
    index: Script,
}

/// The parts of the scripts that change a session.
const PRELUDE: &str = include_str!("prelude.lua");
const JSON: &str = include_str!("json.lua");
const PATCH: &str = include_str!("patch.lua");
const USE: &str = include_str!("use.lua");
const VALUES: &str = include_str!("values.lua");

/// The session was never as a change needed it, within [`ATTEMPTS`] or [`MERGE_ATTEMPTS`].
#[derive(Debug, thiserror::Error)]
#[error("the session's principal, or the values to merge into, kept changing")]
struct Unsettled;

/// A reply is about another session than its request.
#[derive(Debug, thiserror::Error)]
#[error("Redis answered another question")]
struct Crossed;

impl Crossed {
    fn of_read(self) -> Error {
        Error::Unavailable(self.into())
    }

    fn of_write(self) -> Error {
        Error::OutcomeUnknown(self.into())
    }
}

impl Redis {
    /// Creates a store on a deployment, which connects at the first call. `tasks` run the reconnections.
    pub fn new(deployment: &Deployment, tasks: Tasks) -> Self {
        Self {
            servers: Servers::new(&deployment.servers, tasks),
            prefix: deployment.prefix.clone(),
            timeout: deployment.timeout,
            wait: deployment.wait,
            replicas: deployment.servers.replicas(),
            notices: deployment.servers.notices(),
            merging: Arc::clone(&deployment.merging),
            scripts: Scripts {
                create: Script::new(include_str!("create.lua")),
                patch: script(&[Common::NAMES, arguments::Patch::NAMES], &[PRELUDE, JSON, PATCH]),
                record_use: script(&[Common::NAMES, arguments::Use::NAMES], &[PRELUDE, USE]),
                values: script(&[arguments::ValuesChange::NAMES], &[JSON, VALUES]),
                remove: Script::new(include_str!("remove.lua")),
                index: Script::new(include_str!("index.lua")),
            },
        }
    }

    /// Sends a command that changes nothing.
    async fn ask(&self, key: &str, command: &Cmd, deadline: Instant) -> Result<Value, Error> {
        self.servers.ask(key, command, deadline).await.map_err(error::of_read)
    }

    /// Lists the nodes that hold keys; a single server has no name.
    async fn nodes(&self, deadline: Instant) -> Result<Vec<Option<Address>>, Error> {
        self.servers.nodes(deadline).await.map_err(Error::Unavailable)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn key(&self, id: impl Display) -> String {
        format!("{}s:{{{id}}}", self.prefix)
    }

    fn index_key(&self, principal: &Principal) -> String {
        format!("{}p:{{{principal}}}", self.prefix)
    }

    /// Writes a session into the index, until some time after its end.
    async fn index(
        &self,
        id: Id,
        needed: Indexed,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Indexed, Error> {
        let Indexed { principal, until: ends } = needed;
        let until = ends + ends.since(now) / 8;
        let script = &self.scripts.index;
        let key = self.index_key(&principal);
        let mut command = script.on(&key);
        command.arg(until.as_millis()).arg(id.to_string());
        let answer = self.write(script, &key, &command, CallMode::Shared, deadline).await;
        // The session has not changed yet, whatever the outcome of this.
        answer.map_err(error::of_read)?;
        Ok(Indexed { principal, until })
    }

    async fn load_entry(&self, id: Id, want: Want<'_>) -> Result<Option<Entry>, Error> {
        let deadline = self.deadline();
        let key = self.key(id);
        let (command, of) = match want {
            Want::Values => {
                let mut command = cmd("HGETALL");
                command.arg(&key);
                (command, None)
            }
            Want::Meta => (hmget(&key), None),
            Want::Value(of) | Want::Before(of) => {
                let mut command = hmget(&key);
                command.arg(encode::field_of(of));
                (command, Some(of))
            }
        };
        let answer = self.ask(&key, &command, deadline).await?;
        self.check(id, &answer).map_err(Crossed::of_read)?;
        Ok(match answer {
            Value::Map(_) => fields::entry_of_hgetall(answer)?,
            answer => fields::entry_of_hmget(answer, of)?,
        })
    }

    /// Checks that a reply is about a session; otherwise closes its connection.
    fn check(&self, id: Id, answer: &Value) -> Result<(), Crossed> {
        if fields::is_about(answer, id) { Ok(()) } else { Err(self.crossed(id)) }
    }

    /// Returns the number of sessions that a script has changed, after the same check.
    fn count(&self, id: Id, answer: &Value) -> Result<i64, Crossed> {
        fields::count_of(answer, &self.key(id)).ok_or_else(|| self.crossed(id))
    }

    fn crossed(&self, id: Id) -> Crossed {
        limited!(error, "crossed_reply", session = %id, "response does not match the request; closing the Redis connection");
        self.servers.discard(&self.key(id));
        Crossed
    }

    async fn create_record(
        &self,
        id: Id,
        record: &Record,
        policy: &Policy,
    ) -> Result<Created, Error> {
        let deadline = self.deadline();
        let ends_at = policy.ends_at(&record.meta);
        let indexed = match record.meta.principal.clone() {
            None => None,
            Some(principal) => {
                let needed = Indexed { principal, until: ends_at };
                let now = record.meta.last_seen_at;
                Some(self.index(id, needed, now, deadline).await?)
            }
        };
        let script = &self.scripts.create;
        let key = self.key(id);
        let mut command = script.on(&key);
        command.arg(ends_at.as_millis());
        for (name, text) in fields::fields_of(id, record, ends_at, indexed.as_ref()) {
            command.arg(name).arg(text);
        }
        let reply = self.write(script, &key, &command, CallMode::Shared, deadline).await;
        let answer = reply.map_err(error::of_write)?.value;
        self.notices.taken();
        match self.count(id, &answer).map_err(Crossed::of_write)? {
            0 => Ok(Created::Exists),
            _ => Ok(Created::Done),
        }
    }

    async fn change(
        &self,
        id: Id,
        change: Change<'_>,
        want: Want<'_>,
    ) -> Result<Result<Applied, Refusal>, Error> {
        let deadline = self.deadline();
        let key = self.key(id);
        if let Some(values) = ValuesChange::of(change, want)
            && let Some(applied) = self.change_values(id, &key, values, deadline).await?
        {
            return Ok(Ok(applied));
        }
        let script = &self.scripts.patch;
        let mode =
            if change.patch.only_destroys() { self.destroy_mode(&key) } else { CallMode::Shared };
        let mut indexed = None;
        // A log-in always needs the index; its end is guessed, mostly right.
        if let Some(needed) = guess(change) {
            indexed = Some(self.index(id, needed, change.now, deadline).await?);
        }
        let mut computed = Computed::of(change);
        let (_turn, attempts) = if computed.is_empty() {
            (None, ATTEMPTS)
        } else {
            (Some(self.merge_turn(id, deadline).await?), MERGE_ATTEMPTS)
        };
        for _ in 0..attempts {
            let mut command = script.on(&key);
            calls::patch_arguments(&mut command, change, want, indexed.as_ref(), &computed);
            let reply = self.write(script, &key, &command, mode, deadline).await;
            let reply = reply.map_err(error::of_write)?;
            if !change.patch.only_destroys() {
                self.notices.taken();
            }
            self.check(id, &reply.value).map_err(Crossed::of_write)?;
            match calls::patched(reply.value, change, &computed)? {
                Answered::Done(answer) => {
                    let replicated = reply.confirmed.into();
                    return Ok(answer.map(|applied| Applied { replicated, ..applied }));
                }
                Answered::Index(needed) => {
                    indexed = Some(self.index(id, needed, change.now, deadline).await?);
                }
                Answered::Moved(values) => {
                    if let Err(refusal) = computed.learn(&values)? {
                        return Ok(Err(refusal));
                    }
                }
            }
        }
        Err(Error::Unavailable(Unsettled.into()))
    }

    /// Waits for the turn of a change with a merge.
    async fn merge_turn(&self, id: Id, deadline: Instant) -> Result<Turn<Id>, Error> {
        let turn = timeout_at(deadline, self.merging.wait(id, MAX_WAITING)).await;
        let turn = turn.map_err(|_elapsed| {
            Error::Unavailable("other changes of the session were not done in time".into())
        })?;
        turn.map_err(|full| Error::Unavailable(full.into()))
    }

    /// Makes a change that [`ValuesChange`] covers; `None` if nothing has changed, because `patch.lua` decides.
    async fn change_values(
        &self,
        id: Id,
        key: &str,
        values: ValuesChange<'_>,
        deadline: Instant,
    ) -> Result<Option<Applied>, Error> {
        let script = &self.scripts.values;
        let mut command = script.on(key);
        values.add_to(&mut command);
        let reply = self.write(script, key, &command, CallMode::Shared, deadline).await;
        let answer = reply.map_err(error::of_write)?.value;
        let Some(parts) = fields::parts_about(&answer, key) else {
            return Err(self.crossed(id).of_write());
        };
        let applied = values.applied(parts)?;
        // A script that changes nothing shows nothing of what the server accepts.
        if applied.is_some() {
            self.notices.taken();
        }
        Ok(applied)
    }

    async fn write_use(&self, id: Id, used: Use, policy: &Policy) -> Result<Option<Entry>, Error> {
        let deadline = self.deadline();
        let script = &self.scripts.record_use;
        let key = self.key(id);
        let mut indexed = None;
        for _ in 0..ATTEMPTS {
            let mut command = script.on(&key);
            calls::use_arguments(&mut command, used, policy, indexed.as_ref());
            let reply = self.write(script, &key, &command, CallMode::Shared, deadline).await;
            let answer = reply.map_err(error::of_write)?.value;
            self.notices.taken();
            self.check(id, &answer).map_err(Crossed::of_write)?;
            match calls::used(answer)? {
                Answered::Done(entry) => return Ok(entry),
                Answered::Moved(_) => return Err(Unreadable.into()),
                Answered::Index(needed) => {
                    indexed = Some(self.index(id, needed, used.now, deadline).await?);
                }
            }
        }
        Err(Error::Unavailable(Unsettled.into()))
    }

    async fn remove_session(&self, id: Id) -> Result<Option<Replicated>, Error> {
        let script = &self.scripts.remove;
        let key = self.key(id);
        let command = script.on(&key);
        let (mode, deadline) = (self.destroy_mode(&key), self.deadline());
        let reply = self.write(script, &key, &command, mode, deadline).await;
        let reply = reply.map_err(error::of_write)?;
        let removed = self.count(id, &reply.value).map_err(Crossed::of_write)?;
        Ok((removed == 1).then_some(reply.confirmed.into()))
    }

    /// Runs a script that changes something, and logs it if changes are refused. The caller logs that they are
    /// accepted again, because a full server still accepts what frees memory.
    async fn write(
        &self,
        script: &Script,
        key: &str,
        command: &Cmd,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let reply = self.servers.run(script, key, command, mode, deadline).await;
        if let Some(refusal) = reply.as_ref().err().and_then(error::refuses_changes) {
            self.notices.refused(&refusal.server, error::text_of(&refusal.error));
        }
        reply
    }

    fn destroy_mode(&self, key: &str) -> CallMode<'_> {
        self.replicas.mode(self.wait, self.servers.slot_of(key))
    }
}

/// Guesses the end of a session that logs in, without its record.
fn guess(change: Change<'_>) -> Option<Indexed> {
    let principal = change.patch.log_in().cloned()?;
    let mut meta = Meta::new(0, change.now);
    if let Some(ExpiryChange::Own(expiry)) = change.patch.expiry {
        meta.expiry = Some(expiry);
    }
    Some(Indexed { principal, until: change.policy.ends_at(&meta) })
}

/// Makes a script that changes a session: the declaration of its arguments, and its parts.
fn script(arguments: &[&[&str]], parts: &[&str]) -> Script {
    Script::new(arguments::locals(arguments) + &parts.concat())
}

fn hmget(key: &str) -> Cmd {
    // With the field of a value. No name of ours has more than two bytes.
    let mut command = Cmd::with_capacity(FIELDS.len() + 3, 2 * FIELDS.len() + key.len() + 64);
    command.arg("HMGET").arg(key).arg(&FIELDS);
    command
}

impl From<Confirmed> for Replicated {
    fn from(confirmed: Confirmed) -> Self {
        match confirmed {
            Confirmed::Yes => Self::Yes,
            Confirmed::No => Self::No,
            Confirmed::NotAsked => Self::NotAsked,
        }
    }
}

impl From<Unreadable> for Error {
    fn from(unreadable: Unreadable) -> Self {
        Self::Corrupt(unreadable.into())
    }
}

impl Backend for Redis {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        Box::pin(self.load_entry(id, want))
    }

    fn create<'a>(&'a self, id: Id, record: &'a Record, policy: &'a Policy) -> Answer<'a, Created> {
        Box::pin(self.create_record(id, record, policy))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        Box::pin(self.change(id, change, want))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        Box::pin(self.write_use(id, used, policy))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        Box::pin(self.remove_session(id))
    }

    fn unproven(&self) -> Unproven {
        Unproven::Kept
    }
}

impl Store for Redis {
    fn list<'a>(
        &'a self,
        principal: Option<&'a Principal>,
        cursor: Option<&'a str>,
        limit: usize,
    ) -> Answer<'a, Page> {
        match principal {
            Some(principal) => Box::pin(self.list_of(principal, cursor, limit)),
            None => Box::pin(self.list_all(cursor, limit)),
        }
    }

    fn expired(&self, _now: Timestamp) -> Answer<'_, u64> {
        Box::pin(std::future::ready(Ok(0)))
    }

    /// Redis removes expired sessions by itself.
    fn sweep<'a>(&'a self, _now: Timestamp, _policy: &'a Policy) -> Answer<'a, Swept> {
        Box::pin(std::future::ready(Ok(Swept::default())))
    }

    fn exchange_keys<'a>(
        &'a self,
        own: &'a [Fingerprint],
        now: Timestamp,
    ) -> Answer<'a, KnownKeys> {
        Box::pin(self.announce_keys(own, now))
    }

    /// Every node that holds keys must reply.
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let deadline = self.deadline();
            for node in self.nodes(deadline).await? {
                let ping = cmd("PING");
                let answer = self.servers.call_at(node.as_ref(), Request::One(&ping), deadline);
                answer.await.map_err(error::of_read)?;
            }
            Ok(())
        })
    }

    /// Every node that holds keys must accept one, which it removes by itself.
    fn probe(&self, now: Timestamp) -> Answer<'_, ()> {
        Box::pin(self.write_probes(now))
    }

    fn server_time(&self) -> Answer<'_, Option<Timestamp>> {
        Box::pin(async { Ok(self.time_of_server().await.map(Timestamp::from_millis)) })
    }
}

#[cfg(test)]
mod tests;
