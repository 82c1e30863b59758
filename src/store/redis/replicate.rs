//! Changes that a failover must not undo: waited for until a replica has them.
//!
//! `WAIT` blocks the connection that it is sent on, and is about that connection's own writes, so
//! such a change has a connection to itself (`link.rs`). What is not confirmed in time is done all
//! the same; it is only said.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tokio::time::{Instant, timeout_at};

use crate::store::Replicated;
use crate::store::config::DurableDestroy;

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Among all others.
    Shared,
    /// By itself, and waited for as this has it.
    Replicated(DurableDestroy),
}

/// So long before the deadline the wait ends, that its answer can still be told.
const MARGIN: Duration = Duration::from_millis(20);

/// Waits until a replica has what was written on this connection.
pub(super) async fn confirm(
    connection: &mut MultiplexedConnection,
    durable: DurableDestroy,
    deadline: Instant,
) -> Replicated {
    let has_replicas = match durable {
        DurableDestroy::Off => false,
        DurableDestroy::On => true,
        DurableDestroy::Auto => {
            match timeout_at(deadline, cmd("ROLE").query_async::<Value>(connection)).await {
                Ok(Ok(answer)) => names_replicas(&answer),
                // Not known, so not confirmed either.
                Ok(Err(_)) | Err(_) => return Replicated::No,
            }
        }
    };
    if !has_replicas {
        return Replicated::NotAsked;
    }
    let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN);
    // 0 would be without end.
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut wait = cmd("WAIT");
    wait.arg(1).arg(millis);
    match timeout_at(deadline, wait.query_async::<i64>(connection)).await {
        Ok(Ok(replicas)) if replicas > 0 => Replicated::Yes,
        Ok(Ok(_) | Err(_)) | Err(_) => Replicated::No,
    }
}

/// `ROLE` of a primary: its role, its offset, its replicas.
fn names_replicas(answer: &Value) -> bool {
    matches!(answer, Value::Array(parts)
        if matches!(parts.get(2), Some(Value::Array(replicas)) if !replicas.is_empty()))
}
