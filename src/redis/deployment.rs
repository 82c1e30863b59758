//! A deployment, shared by all workers of a process.

use std::fmt;
use std::sync::Arc;

use super::Cause;
use super::config::{Address, Config, Topology};
use super::dial::Dialer;
use super::notices::Notices;
use super::replicate::Replicas;
use super::sentinel::Sentinels;
use crate::tasks::Tasks;

/// A deployment of Redis, shared by all workers of a process, without connections.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) layout: Layout,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) notices: Arc<Notices>,
}

/// The servers of a deployment.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    One(Locator),
    Cluster(Vec<Address>),
}

/// The address of a server: fixed, or found by sentinels.
#[derive(Clone, Debug)]
pub(crate) enum Locator {
    Fixed(Address),
    Elected(Arc<Sentinels>),
}

impl Deployment {
    /// Creates a deployment, without connecting.
    pub(crate) fn new(config: &Config) -> Self {
        let layout = match config.topology.clone() {
            Topology::Cluster { nodes } => Layout::Cluster(nodes),
            Topology::Server(address) => Layout::One(Locator::Fixed(address)),
            Topology::Sentinel { sentinels, service } => {
                Layout::One(Locator::Elected(Arc::new(Sentinels::new(sentinels, service))))
            }
        };
        let replicas = Arc::new(Replicas::new());
        if matches!(layout, Layout::One(Locator::Elected(_))) {
            replicas.mark_all();
        }
        Self {
            dialer: Arc::new(Dialer::new(config, Arc::clone(&replicas))),
            layout,
            replicas,
            notices: Arc::default(),
        }
    }

    /// Returns the same deployment for a runtime that ends before the others. What is known of the servers is
    /// shared; connections, and what sentinels announce, are not.
    #[must_use]
    pub(crate) fn apart(&self) -> Self {
        let layout = match &self.layout {
            Layout::One(Locator::Elected(sentinels)) => {
                Layout::One(Locator::Elected(Arc::new(sentinels.unsubscribed())))
            }
            other => other.clone(),
        };
        Self { layout, ..self.clone() }
    }

    /// Returns what is known of replicas.
    pub(crate) fn replicas(&self) -> Arc<Replicas> {
        Arc::clone(&self.replicas)
    }

    /// Returns the log of the deployment.
    pub(crate) fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    /// Subscribes to the sentinels until shutdown: every connection leaves an old primary when they announce another.
    /// Call it once, in a runtime that lives as long as the connections. Does nothing without sentinels.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn follow(&self, tasks: &Tasks) {
        if let Layout::One(Locator::Elected(sentinels)) = &self.layout {
            sentinels.follow(&self.dialer, tasks);
        }
    }
}

impl Locator {
    /// Returns the current address.
    pub(crate) async fn find(&self, dialer: &Dialer) -> Result<Address, Cause> {
        match self {
            Self::Fixed(address) => Ok(address.clone()),
            Self::Elected(sentinels) => sentinels.primary(dialer).await,
        }
    }

    /// Returns the address that sentinels announce, if any.
    pub(crate) fn announced(&self) -> Option<Address> {
        match self {
            Self::Fixed(_) => None,
            Self::Elected(sentinels) => sentinels.announced(),
        }
    }

    /// Returns whether sentinels announce another server than this one.
    pub(crate) fn is_superseded(&self, address: &Address) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Elected(sentinels) => sentinels.announce_other_than(address),
        }
    }

    /// Completes when sentinels announce another server than this one.
    pub(crate) async fn announced_other_than(&self, address: Option<&Address>) {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Elected(sentinels) => drop(sentinels.announced_other_than(address).await),
        }
    }

    /// Records that connections are made to this address from now on.
    pub(crate) fn found(&self, address: &Address) {
        match self {
            Self::Fixed(_) => {}
            Self::Elected(sentinels) => sentinels.found(address),
        }
    }

    /// Completes when calls go to another address than this one.
    pub(crate) async fn moved_from(&self, address: &Address) -> Address {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Elected(sentinels) => sentinels.moved_from(address).await,
        }
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => write!(f, "{address}"),
            Self::Elected(sentinels) => write!(f, "{sentinels}"),
        }
    }
}
