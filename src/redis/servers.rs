//! The servers of a deployment, called by key.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::Cause;
use super::cluster::Cluster;
use super::config::Address;
use super::connection::{Connection, Reply};
use super::deployment::{Deployment, Layout};
use super::dial::Role;
use super::error::CallError;
use super::replicate::CallMode;
use super::request::{Request, Script};
use super::slot::slot_of;
use crate::tasks::Tasks;

/// The servers of a deployment.
#[derive(Debug)]
pub(crate) enum Servers {
    /// A single server, or the primary.
    One(Arc<Connection>),
    /// Each node serves its own keys.
    Cluster(Arc<Cluster>),
}

impl Servers {
    pub(crate) fn new(deployment: &Deployment, tasks: Tasks) -> Self {
        match &deployment.layout {
            Layout::One(locator) => {
                let dialer = Arc::clone(&deployment.dialer);
                let notices = Arc::clone(&deployment.notices);
                Self::One(Connection::new(dialer, locator.clone(), Role::Primary, notices, tasks))
            }
            Layout::Cluster(nodes) => Self::Cluster(Cluster::new(deployment, nodes, tasks)),
        }
    }

    /// Returns the slot of a key. Without a cluster all keys share one.
    pub(crate) fn slot_of(&self, key: &str) -> u16 {
        match self {
            Self::One(_) => 0,
            Self::Cluster(_) => slot_of(key),
        }
    }

    /// Sends a request about `key`.
    pub(crate) async fn call(
        &self,
        key: &str,
        request: Request<'_>,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        match self {
            Self::One(connection) => connection.call(request, mode, deadline).await,
            Self::Cluster(cluster) => cluster.call(key, request, mode, deadline).await,
        }
    }

    /// Sends a command that changes nothing; again if the connection closed.
    pub(crate) async fn ask(
        &self,
        key: &str,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let request = Request::One(command);
        let reply = match self.call(key, request, CallMode::Shared, deadline).await {
            Err(CallError::Closed(_)) => self.call(key, request, CallMode::Shared, deadline).await,
            reply => reply,
        };
        reply.map(|reply| reply.value)
    }

    /// Runs a script, and loads it if the server does not know it. `call` is made by [`Script::on`].
    pub(crate) async fn run(
        &self,
        script: &Script,
        key: &str,
        call: &Cmd,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        match self.call(key, Request::One(call), mode, deadline).await {
            Err(error) if error.server_error() == Some(redis::ServerErrorKind::NoScript) => {
                // Nothing has run, so sending it again is safe.
                let spelled = script.with_text(call);
                self.call(key, Request::One(&spelled), mode, deadline).await
            }
            reply => reply,
        }
    }

    /// Closes the connection to the owner of a key, after a reply that does not match its request.
    pub(crate) fn discard(&self, key: &str) {
        match self {
            Self::One(connection) => connection.discard(),
            Self::Cluster(cluster) => {
                if let Some(owner) = cluster.owner_of(key) {
                    cluster.connection(&owner).discard();
                }
            }
        }
    }

    /// Lists the nodes that hold keys, in order; a single server has no name.
    pub(crate) async fn nodes(&self, deadline: Instant) -> Result<Vec<Option<Address>>, Cause> {
        match self {
            Self::One(_) => Ok(vec![None]),
            Self::Cluster(cluster) => {
                let owners = cluster.owners(deadline).await?;
                Ok(owners.into_iter().map(Some).collect())
            }
        }
    }

    /// Sends a request to one of the [nodes](Self::nodes).
    pub(crate) async fn call_at(
        &self,
        node: Option<&Address>,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        match (self, node) {
            (Self::Cluster(cluster), Some(node)) => cluster.call_at(node, request, deadline).await,
            (Self::Cluster(_), None) => {
                Err(CallError::NotSent("a node of a cluster has a name".into()))
            }
            (Self::One(connection), _) => {
                connection.call(request, CallMode::Shared, deadline).await.map(|reply| reply.value)
            }
        }
    }

    /// Returns which of the [nodes](Self::nodes) has a key, as far as is known.
    pub(crate) fn node_of(&self, key: &str) -> Option<Address> {
        match self {
            Self::One(_) => None,
            Self::Cluster(cluster) => cluster.owner_of(key),
        }
    }
}
