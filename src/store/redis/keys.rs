//! The session keys of a deployment's instances: fingerprints in a sorted set at `<prefix>keys`, each with the
//! time since when every instance that started had it.

use super::fields::{Unreadable, array, text};
use super::survey::denial;
use super::{Redis, error};
use crate::redis::{CallMode, Script, whole};
use crate::session::key_ring::Fingerprint;
use crate::store::{Error, KnownKey, KnownKeys};
use crate::time::Timestamp;

impl Redis {
    pub(super) async fn announce_keys(
        &self,
        own: &[Fingerprint],
        now: Timestamp,
    ) -> Result<KnownKeys, Error> {
        let script = Script::new(include_str!("keys.lua"));
        let key = format!("{}keys", self.prefix);
        let mut command = script.on(&key);
        command.arg(now.as_millis());
        for fingerprint in own {
            command.arg(fingerprint.to_string());
        }
        let deadline = self.deadline();
        match self.servers.run(&script, &key, &command, CallMode::Shared, deadline).await {
            Ok(reply) => Ok(known(reply.value).unwrap_or_else(|error| denied(&error))),
            Err(trouble) => match error::of_write(trouble) {
                Error::Corrupt(cause) => Ok(denied(&*cause)),
                error => match denial(&error) {
                    Some(cause) => Ok(KnownKeys::Denied(cause)),
                    None => Err(error),
                },
            },
        }
    }
}

/// The key of the set has another type.
fn denied(cause: &dyn std::error::Error) -> KnownKeys {
    KnownKeys::Denied(whole(cause))
}

/// Reads alternating fingerprints and scores.
fn known(answer: redis::Value) -> Result<KnownKeys, Unreadable> {
    let parts = array(answer)?;
    let mut keys = Vec::with_capacity(parts.len() / 2);
    for pair in parts.chunks(2) {
        let [name, score] = pair else { return Err(Unreadable) };
        let fingerprint = text(name)?.and_then(Fingerprint::parse).ok_or(Unreadable)?;
        let since = text(score)?.and_then(|score| score.parse().ok()).ok_or(Unreadable)?;
        keys.push(KnownKey { fingerprint, since: Timestamp::from_millis(since) });
    }
    Ok(KnownKeys::Known(keys))
}
