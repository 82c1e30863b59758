//! The settings of a deployment: its servers, and how to log in to them.

use std::fmt;
use std::path::PathBuf;

use crate::secret::Secret;

/// How to reach the servers of a deployment.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) topology: Topology,
    /// The user of the access list; `None` is the default user.
    pub(crate) user: Option<String>,
    /// The password of that user.
    pub(crate) password: Option<Password>,
    /// The password of the sentinels, whose user is the default one.
    pub(crate) sentinel_password: Option<Password>,
    /// The number of the database; 0 in a cluster.
    pub(crate) database: u32,
    /// `None` connects without TLS.
    pub(crate) tls: Option<Tls>,
}

/// The servers of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Server(Address),
    /// A primary and its replicas; sentinels elect the primary.
    Sentinel {
        /// The sentinels: at least one.
        sentinels: Vec<Address>,
        /// The name of the primary's service.
        service: String,
    },
    /// A cluster.
    Cluster {
        /// Some of its nodes: at least one.
        nodes: Vec<Address>,
    },
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// On the network.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A password that may change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// From the environment or the configuration itself.
    Fixed(Secret),
    /// A file that is read for each connection, so that a new password needs no restart.
    File(PathBuf),
}

/// TLS to a server. The files are read for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The CA certificates to trust, in PEM; `None` for those of the system.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) client: Option<ClientCertificate>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Password {
    /// Reads the password; an error says what is wrong with its file.
    pub(crate) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Fixed(secret) => Ok(secret.clone()),
            Self::File(path) => Secret::read(path),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
