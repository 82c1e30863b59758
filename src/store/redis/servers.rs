//! The servers of a deployment, as the store calls them: by key.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::deployment::{Deployment, Layout};
use super::dial::Role;
use super::link::{Link, Told};
use super::replicate::Manner;
use super::request::{Request, Script};
use super::slot::slot_of;
use super::trouble::Trouble;
use crate::store::Error;
use crate::store::config::Address;
use crate::tasks::Tasks;

/// The servers of a deployment.
#[derive(Debug)]
pub(super) enum Servers {
    /// One takes all commands.
    One(Arc<Link>),
    /// Each takes those about its own keys.
    Cluster(Arc<Cluster>),
}

impl Servers {
    pub(super) fn new(deployment: &Deployment, tasks: Tasks) -> Self {
        match &deployment.layout {
            Layout::One(place) => {
                let dialer = Arc::clone(&deployment.dialer);
                let notices = Arc::clone(&deployment.notices);
                Self::One(Link::new(dialer, place.clone(), Role::Primary, notices, tasks))
            }
            Layout::Cluster(nodes) => Self::Cluster(Cluster::new(deployment, nodes, tasks)),
        }
    }

    /// Returns the slot of a key. Without a cluster all keys share one, so that what is learned of
    /// one key's slot holds for all.
    pub(super) fn slot_of(&self, key: &str) -> u16 {
        match self {
            Self::One(_) => 0,
            Self::Cluster(_) => slot_of(key),
        }
    }

    /// Sends a request about `key`.
    pub(super) async fn call(
        &self,
        key: &str,
        request: Request<'_>,
        manner: Manner<'_>,
        deadline: Instant,
    ) -> Result<Told, Trouble> {
        match self {
            Self::One(link) => link.call(request, manner, deadline).await,
            Self::Cluster(cluster) => cluster.call(key, request, manner, deadline).await,
        }
    }

    /// Sends a command that changes nothing; once more where the connection ended under it.
    pub(super) async fn ask(
        &self,
        key: &str,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Value, Error> {
        let request = Request::One(command);
        let told = match self.call(key, request, Manner::Shared, deadline).await {
            Err(Trouble::Cut(_)) => self.call(key, request, Manner::Shared, deadline).await,
            told => told,
        };
        told.map(|told| told.value).map_err(Trouble::of_read)
    }

    /// Runs a script; a server that does not know it is told it. `call` is made by [`Script::on`].
    pub(super) async fn run(
        &self,
        script: &Script,
        key: &str,
        call: &Cmd,
        manner: Manner<'_>,
        deadline: Instant,
    ) -> Result<Told, Trouble> {
        match self.call(key, Request::One(call), manner, deadline).await {
            Err(trouble) if trouble.answered() == Some(redis::ServerErrorKind::NoScript) => {
                let spelled = script.spelled_out(call);
                self.call(key, Request::One(&spelled), manner, deadline).await
            }
            told => told,
        }
    }

    /// Leaves the connection to the node that has a key: what comes on it answers other questions.
    pub(super) fn distrust(&self, key: &str) {
        match self {
            Self::One(link) => link.distrust(),
            Self::Cluster(cluster) => {
                if let Some(owner) = cluster.owner_of(key) {
                    cluster.link(&owner).distrust();
                }
            }
        }
    }

    /// The nodes that hold keys, in order: one, without a name, where there is no cluster.
    pub(super) async fn nodes(&self, deadline: Instant) -> Result<Vec<Option<Address>>, Error> {
        match self {
            Self::One(_) => Ok(vec![None]),
            Self::Cluster(cluster) => {
                let owners = cluster.owners(deadline).await.map_err(Error::Unavailable)?;
                Ok(owners.into_iter().map(Some).collect())
            }
        }
    }

    /// Sends a request to one of the [nodes](Self::nodes).
    pub(super) async fn call_at(
        &self,
        node: Option<&Address>,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Value, Trouble> {
        match (self, node) {
            (Self::Cluster(cluster), Some(node)) => cluster.call_at(node, request, deadline).await,
            (Self::Cluster(_), None) => Err(Trouble::NotSent("a cluster's node has a name".into())),
            (Self::One(link), _) => {
                link.call(request, Manner::Shared, deadline).await.map(|told| told.value)
            }
        }
    }

    /// Which of the [nodes](Self::nodes) has a key, as far as is known.
    pub(super) fn node_of(&self, key: &str) -> Option<Address> {
        match self {
            Self::One(_) => None,
            Self::Cluster(cluster) => cluster.owner_of(key),
        }
    }
}
