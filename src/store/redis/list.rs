//! Lists: of one principal by its index, of all by `SCAN`. Not on the way of any request.

use redis::{Value, from_redis_value, pipe};
use tokio::time::Instant;

use super::fields::{self, Unreadable, unreadable};
use super::link::{Request, Trouble};
use super::{Redis, hmget};
use crate::session::id::Id;
use crate::session::record::{Entry, Meta, Principal};
use crate::store::{Error, Page};
use crate::time::Timestamp;

/// A member of an index, as it stands there: by its end, then by its text.
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
    /// Ends only grow, so a session that is used meanwhile comes twice rather than never.
    pub(super) async fn list_of(
        &self,
        principal: &Principal,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, Error> {
        let deadline = self.deadline();
        let after = cursor.and_then(Member::parse);
        let (members, next) = self.members(principal, after, limit, deadline).await?;
        let ids: Vec<Id> = members.iter().filter_map(|member| Id::parse(&member.name)).collect();
        let (now, found) = self.entries(&ids, deadline).await?;
        let mut page = Page { sessions: Vec::new(), next };
        let mut over = Vec::new();
        for (id, entry) in ids.into_iter().zip(found) {
            match entry {
                Some(Entry::Live(record)) if record.meta.principal.as_ref() == Some(principal) => {
                    page.sessions.push((id, record.meta));
                }
                // While its end has not come, the record may be about to be written.
                None => over.extend(
                    members
                        .iter()
                        .find(|member| member.name == id.to_string() && member.ends < now)
                        .map(|member| &member.name),
                ),
                _ => {}
            }
        }
        if !over.is_empty() {
            let mut remove = redis::cmd("ZREM");
            remove.arg(self.index_key(principal)).arg(over);
            self.ask(&remove, deadline).await?;
        }
        Ok(page)
    }

    /// At most `limit` members of an index after one, and where the next page begins.
    async fn members(
        &self,
        principal: &Principal,
        after: Option<Member>,
        limit: usize,
        deadline: Instant,
    ) -> Result<(Vec<Member>, Option<String>), Error> {
        let start = after.as_ref().map_or(0, |after| after.ends.as_millis());
        let batch = limit.saturating_add(1);
        let mut members: Vec<Member> = Vec::new();
        let mut offset = 0;
        loop {
            let mut command = redis::cmd("ZRANGEBYSCORE");
            command
                .arg(self.index_key(principal))
                .arg(start)
                .arg("+inf")
                .arg("WITHSCORES")
                .arg("LIMIT")
                .arg(offset)
                .arg(batch);
            let rows: Vec<(String, f64)> =
                from_redis_value(self.ask(&command, deadline).await?).map_err(unreadable)?;
            let count = rows.len();
            for (name, score) in rows {
                // Written as an integer, and read as one.
                let ends = format!("{score:.0}").parse().map_err(unreadable)?;
                members.push(Member { ends: Timestamp::from_millis(ends), name });
            }
            // Several may end in the millisecond in which the page before has stopped.
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

    /// A page is what one `SCAN` finds; what is too much for it goes into the cursor.
    pub(super) async fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, Error> {
        let deadline = self.deadline();
        let (mut scan, rest) = match cursor.and_then(|cursor| cursor.split_once('~')) {
            Some((scan, rest)) => (scan.to_owned(), rest),
            None => ("0".to_owned(), ""),
        };
        let mut ids: Vec<Id> = rest.split(',').filter_map(Id::parse).collect();
        if ids.is_empty() {
            (scan, ids) = self.scan(&scan, limit, deadline).await?;
        }
        let rest = ids.split_off(limit.min(ids.len()));
        let (_, found) = self.entries(&ids, deadline).await?;
        let sessions: Vec<(Id, Meta)> = ids
            .into_iter()
            .zip(found)
            .filter_map(|(id, entry)| match entry {
                Some(Entry::Live(record)) => Some((id, record.meta)),
                _ => None,
            })
            .collect();
        let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
        let is_last = scan == "0" && rest.is_empty();
        Ok(Page { sessions, next: (!is_last).then(|| format!("{scan}~{}", rest.join(","))) })
    }

    async fn scan(
        &self,
        from: &str,
        count: usize,
        deadline: Instant,
    ) -> Result<(String, Vec<Id>), Error> {
        let mut command = redis::cmd("SCAN");
        command.arg(from).arg("MATCH").arg(glob(&self.prefix)).arg("COUNT").arg(count);
        let answer = self.ask(&command, deadline).await?;
        let (next, keys): (String, Vec<Value>) = from_redis_value(answer).map_err(unreadable)?;
        let ids = keys.iter().map(fields::id_of);
        let ids: Result<Vec<Option<Id>>, Unreadable> = ids.collect();
        Ok((next, ids?.into_iter().flatten().collect()))
    }

    /// What stands under these ids, without values, and the server's time.
    async fn entries(
        &self,
        ids: &[Id],
        deadline: Instant,
    ) -> Result<(Timestamp, Vec<Option<Entry>>), Error> {
        let mut requests = pipe();
        requests.cmd("TIME");
        for id in ids {
            requests.add_command(hmget(&self.key(id)));
        }
        let answer = self.link.call(Request::Several(&requests), deadline).await;
        let mut answers = fields::array(answer.map_err(Trouble::of_read)?)?.into_iter();
        let time = answers.next().ok_or(Unreadable)?;
        let (seconds, _): (i64, i64) = from_redis_value(time).map_err(unreadable)?;
        let entries = answers.map(|answer| fields::entry_of_hmget(answer, None));
        let entries: Result<Vec<Option<Entry>>, Unreadable> = entries.collect();
        Ok((Timestamp::from_millis(seconds * 1000), entries?))
    }
}

/// The pattern of the keys of sessions.
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
