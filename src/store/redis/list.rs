//! Lists: of a principal by its index, of all sessions by `SCAN`. No request needs them.

use std::collections::BTreeMap;

use redis::{Value, cmd, from_redis_value, pipe};
use tokio::time::Instant;

use super::fields::{self, Unreadable, unreadable};
use super::{Redis, error, hmget};
use crate::log::limited;
use crate::redis::config::Address;
use crate::redis::{CallError, Request};
use crate::session::id::Id;
use crate::session::record::{Entry, Principal};
use crate::store::{Error, Page};
use crate::time::Timestamp;

/// A member of an index, ordered by its end, then by its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    ends: Timestamp,
    name: String,
}

impl Member {
    fn parse(cursor: &str) -> Option<Self> {
        let (ends, name) = cursor.split_once('.')?;
        Some(Self { ends: Timestamp::from_millis(ends.parse().ok()?), name: name.to_owned() })
    }

    fn cursor(&self) -> String {
        format!("{}.{}", self.ends.as_millis(), self.name)
    }
}

impl Redis {
    /// Ends only grow, so a session that is used in the meantime is listed twice rather than never.
    pub(super) async fn list_of(
        &self,
        principal: &Principal,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        let deadline = self.deadline();
        let after = cursor.and_then(Member::parse);
        let (members, next) = match self.members(principal, after, limit, deadline).await {
            Err(Error::Corrupt(cause)) => {
                // The next log-in of the principal replaces it.
                limited!(error, "unreadable_index", %principal, cause, "index of a principal cannot be read");
                return Ok(Page::default());
            }
            members => members?,
        };
        let ids: Vec<Id> = members.iter().filter_map(|member| Id::parse(&member.name)).collect();
        let (now, found) = self.entries(&ids, deadline).await?;
        let mut page = Page { next, ..Page::default() };
        let mut over = Vec::new();
        for (id, entry) in ids.into_iter().zip(found) {
            match entry {
                Err(Unreadable) => page.unreadable.push(id),
                Ok(Some(Entry::Live(record)))
                    if record.meta.principal.as_ref() == Some(principal) =>
                {
                    page.sessions.push((id, record.meta));
                }
                // Before its end, the record may be about to be written.
                Ok(None) => over.extend(
                    members
                        .iter()
                        .find(|member| member.name == id.to_string() && member.ends < now)
                        .map(|member| &member.name),
                ),
                _ => {}
            }
        }
        if !over.is_empty() {
            let key = self.index_key(principal);
            let mut remove = cmd("ZREM");
            remove.arg(&key).arg(over);
            self.ask(&key, &remove, deadline).await?;
        }
        Ok(page)
    }

    /// Returns at most `limit` members of an index after one, and the start of the next page.
    async fn members(
        &self,
        principal: &Principal,
        after: Option<Member>,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<Member>, Option<String>), Error> {
        let start = after.as_ref().map_or(0, |after| after.ends.as_millis());
        let key = self.index_key(principal);
        let batch = limit.saturating_add(1);
        let mut members: Vec<Member> = Vec::new();
        let mut offset = 0;
        loop {
            let mut command = cmd("ZRANGEBYSCORE");
            command
                .arg(&key)
                .arg(start)
                .arg("+inf")
                .arg("WITHSCORES")
                .arg("LIMIT")
                .arg(offset)
                .arg(batch);
            let rows: Vec<(Value, f64)> =
                from_redis_value(self.ask(&key, &command, deadline).await?).map_err(unreadable)?;
            let count = rows.len();
            for (name, score) in rows {
                // Other members are not ours.
                let Ok(Some(name)) = fields::text(&name) else { continue };
                // The scores were written as integers.
                let Ok(ends) = format!("{score:.0}").parse() else { continue };
                let ends = Timestamp::from_millis(ends);
                members.push(Member { ends, name: name.to_owned() });
            }
            // Several may end in the last millisecond of the previous page.
            members.retain(|member| after.as_ref().is_none_or(|after| member > after));
            if members.len() > limit {
                members.truncate(limit);
                let next = members.last().map(Member::cursor);
                return Ok((members, next));
            }
            if count < batch {
                return Ok((members, None));
            }
            offset += count;
        }
    }

    /// A page has the result of one `SCAN` of one node; the surplus goes into the cursor.
    pub(super) async fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, Error> {
        let deadline = self.deadline();
        let nodes = self.nodes(deadline).await?;
        let mut at = match cursor.and_then(Scan::parse) {
            Some(at) => at,
            None => Scan { node: nodes.first().cloned().flatten(), ..Scan::default() },
        };
        if at.rest.is_empty() {
            self.scan(&mut at, limit, deadline).await?;
        }
        let rest = at.rest.split_off(limit.min(at.rest.len()));
        let ids = std::mem::replace(&mut at.rest, rest);
        let (_, found) = self.entries(&ids, deadline).await?;
        let mut page = Page::default();
        for (id, entry) in ids.into_iter().zip(found) {
            match entry {
                Ok(Some(Entry::Live(record))) => page.sessions.push((id, record.meta)),
                Ok(Some(Entry::Ended { .. }) | None) => {}
                Err(Unreadable) => page.unreadable.push(id),
            }
        }
        // In order, so that a node which joins or leaves in the meantime moves no other.
        let following = nodes.into_iter().find(|node| *node > at.node);
        let next = match following {
            _ if !at.is_over() => Some(at),
            Some(node) => Some(Scan { node, ..Scan::default() }),
            None => None,
        };
        page.next = next.map(|at| at.to_text());
        Ok(page)
    }

    async fn scan(&self, at: &mut Scan, count: usize, deadline: Instant) -> Result<(), Error> {
        let mut command = cmd("SCAN");
        command.arg(&at.cursor).arg("MATCH").arg(glob(&self.prefix)).arg("COUNT").arg(count);
        let node = at.node.as_ref();
        let answer = self.servers.call_at(node, Request::One(&command), deadline).await;
        let answer = answer.map_err(error::of_read)?;
        let (next, keys): (String, Vec<Value>) = from_redis_value(answer).map_err(unreadable)?;
        at.cursor = next;
        at.rest = keys.iter().filter_map(fields::id_of).collect();
        Ok(())
    }

    /// Returns the entries of these ids, without values, and the servers' time.
    async fn entries(
        &self,
        ids: &[Id],
        deadline: Instant,
    ) -> Result<(Timestamp, Vec<Found>), Error> {
        let mut by_node: BTreeMap<Option<Address>, Vec<(usize, Id)>> = BTreeMap::new();
        for (number, id) in ids.iter().enumerate() {
            by_node.entry(self.servers.node_of(&self.key(id))).or_default().push((number, *id));
        }
        let mut entries = BTreeMap::new();
        // The earliest of their times, so that a clock ahead expires nothing too soon.
        let mut now = Timestamp::MAX;
        for (node, ids) in by_node {
            let (time, found) = self.entries_at(node.as_ref(), &ids, deadline).await?;
            now = now.min(time);
            entries.extend(ids.into_iter().map(|(number, _)| number).zip(found));
        }
        Ok((now, entries.into_values().collect()))
    }

    async fn entries_at(
        &self,
        node: Option<&Address>,
        ids: &[(usize, Id)],
        deadline: Instant,
    ) -> Result<(Timestamp, Vec<Found>), Error> {
        let mut requests = pipe();
        requests.ignore_errors().cmd("TIME");
        for (_, id) in ids {
            requests.add_command(hmget(&self.key(id)));
        }
        let answer = self.servers.call_at(node, Request::Several(&requests), deadline).await;
        let answers = match answer {
            Ok(answer) => fields::array(answer)?,
            Err(CallError::Refused(_)) => return self.entries_one_by_one(ids, deadline).await,
            Err(trouble) => return Err(error::of_read(trouble)),
        };
        // E.g. a slot has moved since the map was read: each is requested by itself.
        if answers.iter().any(is_refused) {
            return self.entries_one_by_one(ids, deadline).await;
        }
        let mut answers = answers.into_iter();
        let time = answers.next().ok_or(Unreadable)?;
        let (seconds, _): (i64, i64) = from_redis_value(time).map_err(unreadable)?;
        let answers: Vec<(Id, Value)> = ids.iter().map(|(_, id)| *id).zip(answers).collect();
        // If one reply names its session, the replies are not shifted: one that names another session is of a
        // record that was copied.
        let aligned = answers.iter().any(|(id, answer)| fields::names(answer, *id));
        let entries = answers.into_iter().map(|(id, answer)| match answer {
            Value::ServerError(_) => Ok(Err(Unreadable)),
            answer if aligned && !fields::is_about(&answer, id) => Ok(Err(Unreadable)),
            answer => {
                self.check(id, &answer).map_err(|crossed| Error::Unavailable(crossed.into()))?;
                Ok(fields::entry_of_hmget(answer, None))
            }
        });
        let entries = entries.collect::<Result<_, Error>>()?;
        Ok((Timestamp::from_millis(seconds * 1000), entries))
    }

    async fn entries_one_by_one(
        &self,
        ids: &[(usize, Id)],
        deadline: Instant,
    ) -> Result<(Timestamp, Vec<Found>), Error> {
        let mut entries = Vec::with_capacity(ids.len());
        for (_, id) in ids {
            let key = self.key(id);
            let answer = match self.ask(&key, &hmget(&key), deadline).await {
                Err(Error::Corrupt(_)) => {
                    entries.push(Err(Unreadable));
                    continue;
                }
                answer => answer?,
            };
            self.check(*id, &answer).map_err(|crossed| Error::Unavailable(crossed.into()))?;
            entries.push(fields::entry_of_hmget(answer, None));
        }
        // Without the servers' time, none of them counts as expired.
        Ok((Timestamp::from_millis(0), entries))
    }
}

/// The entry of an id, if it can be read.
type Found = Result<Option<Entry>, Unreadable>;

/// Returns whether a server has refused a command for another reason than the content of its key.
fn is_refused(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() != "WRONGTYPE")
}

/// The progress of a list of all sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scan {
    node: Option<Address>,
    /// The cursor of `SCAN`; `0` at the start and after the end.
    cursor: String,
    /// Ids that were found and not listed yet.
    rest: Vec<Id>,
}

impl Default for Scan {
    fn default() -> Self {
        Self { node: None, cursor: "0".to_owned(), rest: Vec::new() }
    }
}

impl Scan {
    /// Writes `host:port~cursor~id,id`, without host unless in a cluster.
    fn parse(text: &str) -> Option<Self> {
        let (rest, ids) = text.rsplit_once('~')?;
        let (node, cursor) = rest.rsplit_once('~')?;
        let node = match node.rsplit_once(':') {
            Some((host, port)) => {
                Some(Address::Tcp { host: host.to_owned(), port: port.parse().ok()? })
            }
            None => None,
        };
        let rest = ids.split(',').filter_map(Id::parse).collect();
        Some(Self { node, cursor: cursor.to_owned(), rest })
    }

    fn to_text(&self) -> String {
        let node = match &self.node {
            Some(Address::Tcp { host, port }) => format!("{host}:{port}"),
            Some(Address::Unix(_)) | None => String::new(),
        };
        let rest: Vec<String> = self.rest.iter().map(ToString::to_string).collect();
        format!("{node}~{}~{}", self.cursor, rest.join(","))
    }

    /// Returns whether all of this node has been listed.
    fn is_over(&self) -> bool {
        self.cursor == "0" && self.rest.is_empty()
    }
}

/// Returns the pattern of the keys of sessions.
fn glob(prefix: &str) -> String {
    let mut pattern = String::new();
    for char in prefix.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern + "s:{*}"
}
