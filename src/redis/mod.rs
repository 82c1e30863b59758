//! A Redis client for one server, for a primary that sentinels elect, or for a cluster.
//!
//! Every worker has one multiplexed connection to each server, shared by its calls, and up to 64 more for
//! calls that wait for a replica. A connection reconnects by itself after time-outs, refused writes and
//! failovers, which the connection manager of the `redis` crate does not. This module knows no session.

mod cluster;
pub mod config;
mod connection;
mod deployment;
mod dial;
mod error;
mod notices;
mod replicate;
mod request;
mod sentinel;
mod servers;
mod slot;
#[cfg(test)]
pub(crate) mod tests;
mod unusable;

use std::error::Error;

pub(crate) use connection::Reply;
pub(crate) use deployment::{Deployment, Layout, Locator};
pub(crate) use dial::{CONNECT_TIMEOUT, Role};
pub(crate) use error::{CallError, ErrorReply, is_demoted, is_denied, whole};
pub(crate) use notices::Notices;
pub(crate) use replicate::{CallMode, Confirmed, Replicas, WaitPolicy};
pub(crate) use request::{Request, Script};
pub(crate) use servers::Servers;

/// The cause of a failure to connect or call.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;
