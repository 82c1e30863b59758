//! Changes that a failover must not undo wait until a replica has confirmed them.
//!
//! `WAIT` blocks its connection and covers that connection's own writes, so such a change has a connection of
//! its own (`connection.rs`). A change that is not confirmed in time is done all the same, and reported.
//!
//! Replicas are remembered as long as the process runs: just after a failover the new primary has none, and
//! that is when the wait is needed.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value, cmd};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::config::Address;
use super::error::is_unavailable;
use super::slot::{SLOTS, SlotMap};

/// The connection that a request is sent on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CallMode<'a> {
    /// The shared one.
    Shared,
    /// One of its own, to wait for a replica.
    Replicated(Wait<'a>),
}

/// Whether a replica has confirmed a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// A replica has it.
    Yes,
    /// No replica confirmed in time; the change is done all the same.
    No,
    /// No confirmation was awaited.
    NotAsked,
}

/// Whether a change waits for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitPolicy {
    /// If the slot of its key has had a replica since the start.
    IfReplicated,
    Always,
    Never,
}

/// Whether a change of a key in one slot waits for a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait<'a> {
    /// Wait even if no replica is known.
    always: bool,
    slot: u16,
    replicas: &'a Replicas,
}

/// The slots that have had a replica since the start; without a cluster, all or none.
#[derive(Debug)]
pub(crate) struct Replicas {
    slots: Box<[AtomicU64]>,
    /// Nodes of a cluster that have reported a replica. The map omits replicas that are new or do not reply.
    nodes: Mutex<HashSet<Address>>,
    /// Whether the server refuses `ROLE` or `WAIT`.
    refused: AtomicBool,
}

/// Time between the end of the wait and the deadline, for the reply.
const MARGIN: Duration = Duration::from_millis(20);

impl Replicas {
    /// Creates a set without replicas.
    pub(crate) fn new() -> Self {
        let words = SLOTS.div_ceil(64);
        let slots = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { slots, nodes: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// Remembers that these slots have a replica.
    pub(crate) fn mark(&self, slots: RangeInclusive<u16>) {
        for slot in slots {
            if let Some(word) = self.slots.get(usize::from(slot / 64)) {
                word.fetch_or(1 << (slot % 64), Ordering::Relaxed);
            }
        }
    }

    /// Remembers that the server, or each, has a replica.
    pub(crate) fn mark_all(&self) {
        for word in &self.slots {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Records the reply to `ROLE` of a server without a cluster.
    pub(crate) fn learn(&self, role: &Value) {
        if lists_replicas(role) {
            self.mark_all();
        }
    }

    /// Records the reply to `ROLE` of a cluster's node.
    pub(crate) fn learn_of_node(&self, node: &Address, role: &Value) {
        if lists_replicas(role) {
            self.nodes().insert(node.clone());
        }
    }

    /// Records that a slot has a replica, if its owner has reported one.
    pub(crate) fn mark_if_owner_has(&self, owner: &Address, slot: u16) {
        if !self.has(slot) && self.nodes().contains(owner) {
            self.mark(slot..=slot);
        }
    }

    /// Records the slots with a replica, by a map and by what their owners have reported.
    pub(crate) fn learn_map(&self, map: &SlotMap) {
        let nodes = self.nodes();
        for (slots, owner, replicated) in map.ranges() {
            if replicated || nodes.contains(owner) {
                self.mark(slots);
            }
        }
    }

    /// Forgets nodes without slots; their slots are remembered.
    pub(crate) fn keep_nodes(&self, owners: &[Address]) {
        self.nodes().retain(|node| owners.contains(node));
    }

    fn nodes(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, slot: u16) -> bool {
        let word = self.slots.get(usize::from(slot / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (slot % 64)) != 0)
    }

    /// Returns how a change of a key in this slot is sent.
    pub(crate) fn mode(&self, policy: WaitPolicy, slot: u16) -> CallMode<'_> {
        let wait = |always| CallMode::Replicated(Wait { always, slot, replicas: self });
        match policy {
            WaitPolicy::Never => CallMode::Shared,
            WaitPolicy::IfReplicated if self.refused.load(Ordering::Relaxed) => CallMode::Shared,
            WaitPolicy::IfReplicated => wait(false),
            WaitPolicy::Always => wait(true),
        }
    }

    /// Stops waiting, and logs it once.
    fn refuse(&self, command: &str, error: &RedisError) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            warn!(
                command,
                %error,
                "a destroy does not wait for a replica: the command is refused; allow it, or set \
                 store.durable_destroy"
            );
        }
    }
}

impl Wait<'_> {
    /// Returns whether a replica is expected to confirm.
    pub(crate) fn is_expected(&self) -> bool {
        self.always || self.replicas.has(self.slot)
    }
}

/// Waits until a replica has confirmed the writes of this connection.
pub(crate) async fn confirm(
    connection: &mut MultiplexedConnection,
    wait: Wait<'_>,
    deadline: Instant,
) -> Confirmed {
    if !wait.is_expected() {
        match timeout_at(deadline, cmd("ROLE").query_async::<Value>(connection)).await {
            Ok(Ok(answer)) if lists_replicas(&answer) => {
                wait.replicas.mark(wait.slot..=wait.slot);
            }
            Ok(Ok(_)) => return Confirmed::NotAsked,
            Ok(Err(error)) if is_unavailable(&error) => {
                wait.replicas.refuse("ROLE", &error);
                return Confirmed::NotAsked;
            }
            // Unknown counts as unconfirmed.
            Ok(Err(_)) | Err(_) => return Confirmed::No,
        }
    }
    let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN);
    // 0 would wait forever.
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut command = cmd("WAIT");
    command.arg(1).arg(millis);
    match timeout_at(deadline, command.query_async::<i64>(connection)).await {
        Ok(Ok(replicas)) if replicas > 0 => Confirmed::Yes,
        Ok(Err(error)) if !wait.always && is_unavailable(&error) => {
            wait.replicas.refuse("WAIT", &error);
            Confirmed::NotAsked
        }
        Ok(Ok(_) | Err(_)) | Err(_) => Confirmed::No,
    }
}

/// Returns whether a reply to `ROLE` lists replicas: a primary's has its role, its offset and its replicas.
fn lists_replicas(answer: &Value) -> bool {
    matches!(answer, Value::Array(parts)
        if matches!(parts.get(2), Some(Value::Array(replicas)) if !replicas.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_with_replicas_are_remembered() {
        let replicas = Replicas::new();
        let expected = |slot| match replicas.mode(WaitPolicy::IfReplicated, slot) {
            CallMode::Replicated(wait) => wait.is_expected(),
            CallMode::Shared => panic!("not refused"),
        };
        assert!(!expected(0) && !expected(SLOTS - 1));
        replicas.mark(100..=200);
        replicas.mark(SLOTS - 1..=SLOTS - 1);
        let found: Vec<u16> = (0..SLOTS).filter(|slot| expected(*slot)).collect();
        let wanted: Vec<u16> = (100..=200).chain([SLOTS - 1]).collect();
        assert_eq!(found, wanted);
        replicas.mark_all();
        assert!((0..SLOTS).all(expected));
    }

    #[test]
    fn replicas_of_a_node_mark_its_slots() {
        let replicas = Replicas::new();
        let at = |port| Address::Tcp { host: "node".to_owned(), port };
        let named = Value::Array(vec![Value::Nil, Value::Nil, Value::Array(vec![Value::Nil])]);
        replicas.learn_of_node(&at(1), &named);
        replicas.learn_of_node(&at(2), &Value::Nil);
        replicas.mark_if_owner_has(&at(1), 7);
        replicas.mark_if_owner_has(&at(2), 8);
        assert!(replicas.has(7) && !replicas.has(8));
        let node = |port| Value::Array(vec![Value::BulkString(b"node".to_vec()), Value::Int(port)]);
        let row =
            |first, last, port| Value::Array(vec![Value::Int(first), Value::Int(last), node(port)]);
        let rows = Value::Array(vec![row(0, 9, 1), row(10, 19, 2)]);
        replicas.learn_map(&SlotMap::parse(rows, &at(3)).expect("a map"));
        assert!((0..10).all(|slot| replicas.has(slot)));
        assert!((10..20).all(|slot| !replicas.has(slot)));
        replicas.keep_nodes(&[at(2)]);
        replicas.mark_if_owner_has(&at(1), 30);
        assert!(!replicas.has(30));
    }

    #[test]
    fn only_roles_that_list_replicas_count() {
        let role = |replicas: Vec<Value>| {
            let name = Value::BulkString(b"master".to_vec());
            Value::Array(vec![name, Value::Int(1), Value::Array(replicas)])
        };
        let known = Replicas::new();
        known.learn(&role(Vec::new()));
        known.learn(&Value::Nil);
        assert!(!known.has(0));
        known.learn(&role(vec![Value::Nil]));
        assert!(known.has(0));
        known.learn(&role(Vec::new()));
        assert!(known.has(0), "it was seen before");
    }
}
