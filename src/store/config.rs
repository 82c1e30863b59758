//! What a store is told.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::redis::config::{self as redis, Password, Tls, Topology};

/// What a store is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which one it is.
    pub backend: Backend,
    /// For one answer of the store; more than nothing, at most a minute.
    pub timeout: Duration,
    /// What becomes of requests while it is away, unless their route says otherwise.
    pub on_error: OnError,
    /// How many bytes of records, about, are held in the process; `None` holds none.
    pub cache: Option<usize>,
}

/// The stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// In this process, gone at exit.
    Memory,
    /// A database file.
    Sqlite {
        /// Absolute, where the configuration came from a file or the environment. Its directory is
        /// not made by the store.
        path: PathBuf,
    },
    /// A file for each session.
    File {
        /// Absolute, as the path of a database file. It is made where it is missing, its parent is not.
        directory: PathBuf,
    },
    /// Redis or Valkey, shared with other instances.
    Redis(Box<Redis>),
    /// None: each session lives sealed in its client's cookie.
    Cookies,
}

/// A deployment of Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Its servers, and how one finds the one to ask.
    pub topology: Topology,
    /// The user of its access list; `None` is the default user.
    pub user: Option<String>,
    /// The password of that user.
    pub password: Option<Password>,
    /// The password of the sentinels, whose user is the default one.
    pub sentinel_password: Option<Password>,
    /// The number of the database; 0 in a cluster.
    pub database: u32,
    /// `None` speaks without TLS.
    pub tls: Option<Tls>,
    /// What our keys begin with: no braces, which would move a cluster's hash tag, no control
    /// characters; at most 256 bytes, and possibly empty.
    pub key_prefix: String,
    /// Whether a destroy waits for a replica.
    pub durable_destroy: DurableDestroy,
}

/// Whether a destroy waits until one replica has it, so that no failover brings the session back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableDestroy {
    /// If there are replicas: always with sentinels; in a cluster for slots that have had one since the
    /// start; with one server if it has had one since the start.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What becomes of requests while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// A request that presents a session is answered with 503.
    Fail,
    /// Every request goes through without a session.
    Anonymous,
}

impl Redis {
    /// Returns what the client needs.
    pub(crate) fn servers(&self) -> redis::Config {
        redis::Config {
            topology: self.topology.clone(),
            user: self.user.clone(),
            password: self.password.clone(),
            sentinel_password: self.sentinel_password.clone(),
            database: self.database,
            tls: self.tls.clone(),
        }
    }
}

impl Backend {
    /// Whether what a cache in the process holds can be kept coherent. In a cluster that would take
    /// a connection to each primary, and word of every failover before it comes about.
    pub fn can_be_cached(&self) -> bool {
        match self {
            Self::Memory | Self::Sqlite { .. } | Self::File { .. } => true,
            Self::Redis(redis) => !matches!(redis.topology, Topology::Cluster { .. }),
            Self::Cookies => false,
        }
    }

    /// Whether other instances may use the same sessions, so that all need the same session keys.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_) | Self::Cookies)
    }
}
