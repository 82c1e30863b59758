//! Probes that every node accepts a key, with the commands that sessions need anyway.

use std::time::Duration;

use super::{Redis, error};
use crate::random;
use crate::redis::CallMode;
use crate::redis::config::Address;
use crate::session::id::Id;
use crate::store::Error;
use crate::time::Timestamp;

/// Lifetime of a probe's key, which no list of sessions finds.
const PROBE_LASTS: Duration = Duration::from_secs(2);

impl Redis {
    /// Writes a key to every node, which removes it by itself.
    pub(super) async fn write_probes(&self, now: Timestamp) -> Result<(), Error> {
        let deadline = self.deadline();
        let script = &self.scripts.create;
        for node in self.nodes(deadline).await? {
            let Some((id, key)) = self.probe_key(node.as_ref()) else { continue };
            let mut command = script.on(&key);
            let ends = now + PROBE_LASTS;
            command.arg(ends.as_millis()).arg("id").arg(id.to_string());
            let reply = self.servers.run(script, &key, &command, CallMode::Shared, deadline).await;
            reply.map_err(error::of_write)?;
        }
        Ok(())
    }

    /// Returns a new key that belongs to a node. `None` if it no longer has any.
    fn probe_key(&self, node: Option<&Address>) -> Option<(Id, String)> {
        // A node with a single slot of 16,384 is missed 1 time in 400.
        (0..100_000).find_map(|_| {
            let id = Id::from_bytes(random::bytes());
            let key = format!("{}probe:{{{id}}}", self.prefix);
            (self.servers.node_of(&key).as_ref() == node).then_some((id, key))
        })
    }
}
