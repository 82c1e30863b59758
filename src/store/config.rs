//! What a store is told.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// What a store is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which one it is.
    pub backend: Backend,
    /// For one answer of the store; more than nothing, at most a minute.
    pub timeout: Duration,
    /// What becomes of requests while it is away, unless their route says otherwise.
    pub on_error: OnError,
}

/// The stores.
#[derive(Clone, Debug)]
pub enum Backend {
    /// In this process, gone at exit.
    Memory,
    /// A database file.
    Sqlite {
        /// Absolute, where the configuration came from a file or the environment. Its directory is
        /// not made by the store.
        path: PathBuf,
    },
    /// A Redis server, shared with other instances.
    Redis {
        /// Where it is.
        url: RedisUrl,
        /// What our keys begin with: no braces, which would move a cluster's hash tag, no control
        /// characters; at most 256 bytes, and possibly empty.
        key_prefix: String,
    },
}

/// Where a Redis server is: `redis://[user[:password]@]host:port/db`, taken apart and decoded.
#[derive(Clone, Debug)]
pub struct RedisUrl {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port; 6379 where none was given.
    pub port: u16,
    /// The user of its access list; `None` is the default user.
    pub user: Option<String>,
    /// The password, whether it stood in the URL or in a file.
    pub password: Option<Secret>,
    /// The number of the database; 0 where none was given.
    pub database: u32,
}

/// What becomes of requests while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// A request that presents a session is answered with 503.
    Fail,
    /// Every request goes through without a session.
    Anonymous,
}

impl Backend {
    /// Whether other instances may use the same sessions, so that all need the same session keys.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Redis { .. })
    }
}
