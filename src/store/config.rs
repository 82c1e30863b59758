//! The settings of a store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::health::Location;
use crate::redis::config::{self as redis, Password, Tls, Topology};

/// The settings of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) backend: StoreKind,
    /// The deadline of a call: above zero, at most a minute.
    pub(crate) timeout: Duration,
    /// The treatment of requests while it is unavailable, unless their route has its own.
    pub(crate) on_error: OnError,
    /// The approximate size of the cache in bytes; `None` for no cache.
    pub(crate) cache: Option<usize>,
}

/// The kinds of stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// In this process; lost at exit.
    Memory,
    /// A database file.
    Sqlite {
        /// Absolute if it comes from the configuration. The store does not create its directory.
        path: PathBuf,
    },
    /// A file for each session.
    File {
        /// Absolute if it comes from the configuration. It is created if it is missing; its parent is not.
        directory: PathBuf,
    },
    /// Redis or Valkey, shared with other instances.
    Redis(Box<Redis>),
    /// No store: each session is sealed in its client's cookie.
    Cookies,
}

/// A deployment of Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Its servers.
    pub topology: Topology,
    /// The user of its access list; `None` is the default user.
    pub user: Option<String>,
    /// The password of that user.
    pub password: Option<Password>,
    /// The password of the sentinels, whose user is the default one.
    pub sentinel_password: Option<Password>,
    /// The number of the database; 0 in a cluster.
    pub database: u32,
    /// `None` connects without TLS.
    pub tls: Option<Tls>,
    /// The prefix of our keys: no braces, which would move a cluster's hash tag, and no control characters; at
    /// most 256 bytes, and possibly empty.
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

/// The treatment of requests while the store is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnError {
    /// A request with a session gets 503.
    Fail,
    /// Every request passes without a session.
    Anonymous,
}

impl Redis {
    /// Returns the settings of the client.
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

impl StoreKind {
    /// Returns the name of the kind, for operators.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite { .. } => "SQLite",
            Self::File { .. } => "files",
            Self::Redis(_) => "Redis",
            Self::Cookies => "cookies",
        }
    }

    /// Returns the path of the data, if it is on a disk of this machine.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Sqlite { path } | Self::File { directory: path } => Some(path),
            Self::Memory | Self::Redis(_) | Self::Cookies => None,
        }
    }

    /// Returns where its failures come from.
    pub(crate) fn location(&self) -> Location {
        match self {
            Self::Memory | Self::Cookies => Location::Process,
            Self::Sqlite { .. } | Self::File { .. } => Location::Disk,
            Self::Redis(_) => Location::Network,
        }
    }

    /// Returns whether a cache in the process can be kept coherent. In a cluster that would take a connection to
    /// each primary, and notice of every failover before it happens.
    pub(crate) fn can_be_cached(&self) -> bool {
        match self {
            Self::Memory | Self::Sqlite { .. } | Self::File { .. } => true,
            Self::Redis(redis) => !matches!(redis.topology, Topology::Cluster { .. }),
            Self::Cookies => false,
        }
    }

    /// Returns whether other instances may use the same sessions, so that all need the same session keys.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_) | Self::Cookies)
    }
}
