//! The settings of a deployment: its servers, and how to log in to them.

use std::fmt;
use std::path::PathBuf;

use crate::secret::Secret;

/// How to reach the servers of a deployment.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The servers.
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
    /// A primary and its replicas; sentinels say which is the primary.
    Sentinel {
        /// Where the sentinels are: at least one.
        sentinels: Vec<Address>,
        /// The name under which they know the primary.
        service: String,
    },
    /// A cluster.
    Cluster {
        /// Some of its nodes, to ask for all: at least one.
        nodes: Vec<Address>,
    },
}

/// Where one server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// On the network.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// On this machine: a socket's path.
    Unix(PathBuf),
}

/// A password that may change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// It stays as it is: from the environment or the configuration itself.
    Fixed(Secret),
    /// It is read for each connection that is made, so that a new one needs no restart.
    File(PathBuf),
}

/// TLS to a server. The files are read for each connection that is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that are trusted, in PEM; `None` for those of the system.
    pub ca: Option<PathBuf>,
    /// What the server knows us by.
    pub client: Option<ClientCertificate>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and what leads to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Password {
    /// The password as it is now; an error says what is wrong with its file.
    pub fn read(&self) -> Result<Secret, String> {
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
