//! A check of a deployment at the start: does its access list allow all commands, does it evict sessions, and what time does it have?

use std::time::Duration;

use redis::{cmd, from_redis_value};

use super::error::{self, Refusal};
use super::{Deployment, Redis};
use crate::random;
use crate::redis::Request;
use crate::session::id::Id;
use crate::session::patch::{Authority, Change, Op, Patch, Proof, Tombstone, Use};
use crate::session::policy::Policy;
use crate::session::record::{Expiry, Key, Meta, Principal, Record, Values};
use crate::store::{Error, Want};
use crate::tasks::Tasks;
use crate::time::Timestamp;

/// Lifetime of the session that the survey creates, and of its entry in the index.
const PROBE_LASTS: Duration = Duration::from_secs(1);

/// The result of a survey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// The policy by which it evicts sessions if its memory is full; `None` if it keeps them, as far as it reports.
    pub(crate) evicts: Option<String>,
    /// The difference of our clock and its own, in milliseconds: positive if ours is ahead.
    pub(crate) ahead: Option<i64>,
}

/// Why a survey failed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The access list refuses a command.
    #[error("Redis refuses a command that is needed: {0}")]
    Denied(String),
    /// It did not reply, or is not ready.
    #[error("the check of Redis failed")]
    Away(#[source] Error),
}

impl Deployment {
    /// Creates, changes, uses and removes a session, and asks for the eviction policy and the time.
    pub(crate) async fn survey(
        &self,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Survey, SurveyError> {
        let store = Redis::new(self, Tasks::new());
        if let Err(error) = store.probe(policy, now).await {
            let plain = store.probe_plainly().await.err();
            return Err(match plain.as_ref().and_then(denial) {
                Some(reply) => SurveyError::Denied(reply),
                None => SurveyError::of(error),
            });
        }
        let ahead = store.time_of_server().await.map(|time| now.as_millis() - time);
        Ok(Survey { evicts: store.eviction().await, ahead })
    }
}

impl Redis {
    async fn probe(&self, policy: &Policy, now: Timestamp) -> Result<(), Error> {
        let id = Id::from_bytes(random::bytes());
        let mut meta = Meta::new(0, now);
        meta.expiry = Some(Expiry::Idle(PROBE_LASTS));
        meta.principal = Principal::new("cloakroom survey");
        self.create_record(id, &Record { meta, values: Values::new() }, policy).await?;
        let patch = Key::new("probe").map(|key| Patch::of(Op::Increment(key, 1)));
        let change = Change {
            patch: &patch.unwrap_or_default(),
            condition: None,
            authority: Authority::Service(0),
            policy,
            now,
            touches: true,
            tombstone: Tombstone::None,
            held_keys: None,
            known: None,
        };
        // The result does not matter: by another clock the session may have expired.
        let _ = self.change(id, change, Want::Values).await?;
        let used =
            Use { generation: 1, touches: true, sets_cookie: false, proves: Proof::None, now };
        self.write_use(id, used, policy).await?;
        self.load_entry(id, Want::Values).await?;
        self.load_entry(id, Want::Meta).await?;
        self.remove_session(id).await?;
        Ok(())
    }

    /// Runs each command of the scripts by itself, because Redis 7.0 does not report which one it refused in a
    /// script.
    async fn probe_plainly(&self) -> Result<(), Error> {
        let key = self.key("survey");
        let deadline = self.deadline();
        let commands: [(&str, &[&str]); 15] = [
            ("EXISTS", &[]),
            ("HSET", &["+", "1"]),
            ("HGET", &["+"]),
            ("HMGET", &["+"]),
            ("HGETALL", &[]),
            ("HEXISTS", &["+"]),
            ("HSTRLEN", &["+"]),
            ("HINCRBY", &["+", "1"]),
            ("HDEL", &["+"]),
            ("ZADD", &["1", "survey"]),
            ("ZSCORE", &["survey"]),
            ("ZRANGE", &["0", "0"]),
            ("ZREM", &["survey"]),
            ("PEXPIREAT", &["1"]),
            ("DEL", &[]),
        ];
        for (name, arguments) in commands {
            let mut command = cmd(name);
            command.arg(&key).arg(arguments);
            self.ask(&key, &command, deadline).await?;
        }
        Ok(())
    }

    /// Returns the policy of the first node that evicts; `None` if none does, or does not report it.
    async fn eviction(&self) -> Option<String> {
        let policies = self.info("memory", "maxmemory_policy:").await?;
        policies.into_iter().find(|policy| policy != "noeviction")
    }

    /// Returns the clock of the first node, in milliseconds since the epoch; `None` if it does not report it.
    pub(super) async fn time_of_server(&self) -> Option<i64> {
        let times = self.info("server", "server_time_usec:").await?;
        times.first()?.parse::<i64>().ok().map(|microseconds| microseconds / 1000)
    }

    /// Asks every node for a field of INFO.
    async fn info(&self, section: &str, field: &str) -> Option<Vec<String>> {
        let deadline = self.deadline();
        let mut info = cmd("INFO");
        info.arg(section);
        let mut found = Vec::new();
        for node in self.nodes(deadline).await.ok()? {
            let answer = self.servers.call_at(node.as_ref(), Request::One(&info), deadline).await;
            let text: String = from_redis_value(answer.map_err(error::of_read).ok()?).ok()?;
            found.push(text.lines().find_map(|line| line.strip_prefix(field))?.to_owned());
        }
        Some(found)
    }
}

impl SurveyError {
    fn of(error: Error) -> Self {
        match denial(&error) {
            Some(reply) => Self::Denied(reply),
            None => Self::Away(error),
        }
    }
}

/// Returns the refusal of the access list, if that is the cause.
pub(super) fn denial(error: &Error) -> Option<String> {
    let cause = match error {
        Error::Unavailable(cause) | Error::Corrupt(cause) => cause,
        Error::OutcomeUnknown(_) | Error::Full(_) => return None,
    };
    let refusal = cause.downcast_ref::<Refusal>()?;
    refusal.denial().map(error::text_of)
}
