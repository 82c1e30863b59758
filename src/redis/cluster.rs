//! A cluster: a connection to each node that owns slots, and the slot map.
//!
//! Every command is about one key. It is sent to the owner of the key's slot, and follows redirections (`MOVED`,
//! `ASK`, `TRYAGAIN`; Redis cluster specification, "Redirection and resharding"). The map is refreshed when a
//! node redirects, times out, or reports that the cluster is down; so a promoted replica is found even if its
//! frozen primary never replies. (The cluster client of the `redis` crate does not refresh after time-outs.)
//!
//! Any node reports the map, replicas too. A map without owners is not used: as long as no node reports
//! another one, calls fail, and so does [`Cluster::owners`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::{ServerErrorKind, Value, cmd};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::Cause;
use super::config::Address;
use super::connection::{Connection, Reply};
use super::deployment::{Deployment, Locator};
use super::dial::{Dialer, Role};
use super::error::{CallError, ErrorReply, whole};
use super::notices::Notices;
use super::replicate::{CallMode, Replicas};
use super::request::Request;
use super::slot::{SlotMap, redirected, slot_of};
use crate::random;
use crate::tasks::Tasks;

/// Maximum number of redirections; a slot that moves causes one or two.
const HOPS: usize = 8;

/// Pause after `TRYAGAIN`: while a slot moves, its keys may be on neither node for a moment.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Minimum interval between refreshes of the map.
const REFRESH_EVERY: Duration = Duration::from_millis(200);

/// Deadline for one node's reply about the map; the next node is tried then.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(300);

/// Name in the log of a cluster without a map.
const WHOLE: &str = "the cluster's slot map";

pub(crate) struct Cluster {
    me: Weak<Self>,
    dialer: Arc<Dialer>,
    seeds: Vec<Address>,
    replicas: Arc<Replicas>,
    notices: Arc<Notices>,
    tasks: Tasks,
    state: Mutex<State>,
    /// Number of refreshes, successful or not.
    refreshed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    map: Arc<SlotMap>,
    /// Why the last refresh failed, if it did.
    unmapped: Option<Arc<str>>,
    connections: HashMap<Address, Arc<Connection>>,
    refreshing: Refreshing,
}

#[derive(Default, PartialEq, Eq)]
enum Refreshing {
    /// `Since` is the time of the last refresh.
    #[default]
    Idle,
    Since(Instant),
    Running,
}

/// The next node for a command.
enum Hop {
    Owner,
    Moved(Address),
    Ask(Address),
}

/// The map has no owner for a slot.
#[derive(Debug, thiserror::Error)]
#[error("no node of the cluster is known to own slot {0}")]
struct Unowned(u16);

/// The nodes ask to try again until the deadline.
#[derive(Debug, thiserror::Error)]
#[error("the cluster is moving slot {0}")]
struct Moving(u16);

/// No node reports a map with owners.
#[derive(Debug, thiserror::Error)]
#[error("no node of the cluster reports the owners of slots; the last one: {0}")]
struct Unmapped(Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error("the cluster's nodes redirect to each other")]
struct Circle;

impl Cluster {
    /// Creates a client for a deployment; `seeds` are some of its nodes.
    pub(crate) fn new(deployment: &Deployment, seeds: &[Address], tasks: Tasks) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dialer: Arc::clone(&deployment.dialer),
            seeds: seeds.to_owned(),
            replicas: Arc::clone(&deployment.replicas),
            notices: Arc::clone(&deployment.notices),
            tasks,
            state: Mutex::default(),
            refreshed: watch::Sender::new(0),
        })
    }

    /// Sends a request about `key` to the owner of its slot, and follows redirections.
    pub(crate) async fn call(
        &self,
        key: &str,
        request: Request<'_>,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Reply, CallError> {
        let slot = slot_of(key);
        let mut hop = Hop::Owner;
        for _ in 0..HOPS {
            let (address, request) = match hop {
                Hop::Owner => {
                    (self.owner(slot, deadline).await.map_err(CallError::NotSent)?, request)
                }
                Hop::Moved(address) => (address, request),
                Hop::Ask(address) => (address, request.asking()),
            };
            if let CallMode::Replicated(_) = mode {
                self.replicas.mark_if_owner_has(&address, slot);
            }
            let error = match self.connection(&address).call(request, mode, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            hop = match self.next_hop(&error, &address) {
                Some(Hop::Owner) => {
                    let pause = timeout_at(deadline, sleep(TRY_AGAIN)).await;
                    pause.map_err(|_elapsed| CallError::NotSent(Moving(slot).into()))?;
                    Hop::Owner
                }
                Some(hop) => hop,
                None => return Err(error),
            };
        }
        Err(CallError::NotSent(Circle.into()))
    }

    /// Returns the next node after an error; `None` if there is none.
    fn next_hop(&self, error: &CallError, asked: &Address) -> Option<Hop> {
        let to = |reply: &ErrorReply| {
            reply.error.redirect_node().and_then(|(to, _)| redirected(to, asked))
        };
        match (error, error.server_error()) {
            (_, Some(ServerErrorKind::TryAgain)) => Some(Hop::Owner),
            (CallError::Refused(reply), Some(ServerErrorKind::Ask)) => to(reply).map(Hop::Ask),
            (CallError::Refused(reply), Some(ServerErrorKind::Moved)) => {
                self.refresh();
                to(reply).map(Hop::Moved)
            }
            (CallError::Refused(_), Some(ServerErrorKind::ClusterDown))
            | (CallError::NotSent(_) | CallError::Closed(_) | CallError::TimedOut(_), _) => {
                self.refresh();
                None
            }
            (CallError::Refused(_), _) => None,
        }
    }

    /// Returns the owner of a slot. The first caller waits for the map.
    async fn owner(&self, slot: u16, deadline: Instant) -> Result<Address, Cause> {
        let owner = |cluster: &Self| cluster.state().map.owner(slot).cloned();
        if let Some(owner) = owner(self) {
            return Ok(owner);
        }
        self.refreshed(deadline).await?;
        match owner(self) {
            Some(owner) => Ok(owner),
            None => Err(self.unmapped().unwrap_or_else(|| Unowned(slot).into())),
        }
    }

    /// Returns all owners of slots: at least one.
    ///
    /// # Errors
    /// No node reports a map with owners.
    pub(crate) async fn owners(&self, deadline: Instant) -> Result<Vec<Address>, Cause> {
        if let Some(owners) = self.mapped_owners() {
            return Ok(owners);
        }
        self.refreshed(deadline).await?;
        self.mapped_owners().ok_or_else(|| self.unmapped().unwrap_or_else(|| "no map".into()))
    }

    fn mapped_owners(&self) -> Option<Vec<Address>> {
        let state = self.state();
        let owners = state.map.owners();
        (state.unmapped.is_none() && !owners.is_empty()).then_some(owners)
    }

    fn unmapped(&self) -> Option<Cause> {
        let cause = self.state().unmapped.clone()?;
        Some(Unmapped(cause).into())
    }

    /// Returns the owner of a key's slot, if the map has one.
    pub(crate) fn owner_of(&self, key: &str) -> Option<Address> {
        self.state().map.owner(slot_of(key)).cloned()
    }

    /// Returns the connection to a node.
    pub(crate) fn connection(&self, address: &Address) -> Arc<Connection> {
        let mut state = self.state();
        let connection = state.connections.entry(address.clone()).or_insert_with(|| {
            let (dialer, notices) = (Arc::clone(&self.dialer), Arc::clone(&self.notices));
            let locator = Locator::Fixed(address.clone());
            Connection::new(dialer, locator, Role::Node, notices, self.tasks.clone())
        });
        Arc::clone(connection)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a refresh of the map.
    async fn refreshed(&self, deadline: Instant) -> Result<(), Cause> {
        let mut refreshed = self.refreshed.subscribe();
        self.refresh();
        let changed = timeout_at(deadline, refreshed.changed()).await;
        changed.map_err(|_elapsed| "no node has reported the slot map in time")??;
        Ok(())
    }

    /// Refreshes the map, unless a refresh is running; not before [`REFRESH_EVERY`] has passed.
    fn refresh(&self) {
        let pause = {
            let mut state = self.state();
            let pause = match state.refreshing {
                Refreshing::Running => return,
                Refreshing::Idle => Duration::ZERO,
                Refreshing::Since(last) => REFRESH_EVERY.saturating_sub(last.elapsed()),
            };
            state.refreshing = Refreshing::Running;
            pause
        };
        let me = self.me.clone();
        let refreshing = async move {
            sleep(pause).await;
            let Some(cluster) = me.upgrade() else { return };
            let map = cluster.fetch_map().await;
            let mut state = cluster.state();
            state.refreshing = Refreshing::Since(Instant::now());
            match map {
                Ok(map) => {
                    let owners = map.owners();
                    for map in [&*state.map, &map] {
                        cluster.replicas.learn_map(map);
                    }
                    cluster.replicas.keep_nodes(&owners);
                    state.connections.retain(|address, _| {
                        let stays = owners.contains(address);
                        if !stays {
                            cluster.notices.forget(address);
                        }
                        stays
                    });
                    state.map = Arc::new(map);
                    state.unmapped = None;
                    cluster.notices.reachable(WHOLE);
                }
                Err(cause) => {
                    cluster.notices.unreachable(WHOLE, &cause);
                    state.unmapped = Some(cause);
                }
            }
            drop(state);
            cluster.refreshed.send_modify(|count| *count += 1);
        };
        self.tasks.run(refreshing).detach();
    }

    /// Requests the map from the nodes, reachable ones first.
    ///
    /// # Errors
    /// The error of the last one.
    async fn fetch_map(&self) -> Result<SlotMap, Arc<str>> {
        let mut nodes: Vec<(Address, Arc<Connection>)> = {
            let state = self.state();
            state
                .connections
                .iter()
                .map(|(at, connection)| (at.clone(), Arc::clone(connection)))
                .collect()
        };
        // In random order, so that a node with a wrong map is not always the first.
        nodes.sort_by_cached_key(|(_, connection)| {
            (!connection.is_reachable(), random::bytes::<4>())
        });
        let unknown = self.seeds.iter().filter(|seed| nodes.iter().all(|(at, _)| at != *seed));
        let seeds: Vec<_> = unknown.map(|seed| (seed.clone(), self.connection(seed))).collect();
        let mut last: Arc<str> = "no node is known".into();
        for (address, connection) in nodes.into_iter().chain(seeds) {
            let mut command = cmd("CLUSTER");
            command.arg("SLOTS");
            let deadline = Instant::now() + REFRESH_TIMEOUT;
            let reply = connection.call(Request::One(&command), CallMode::Shared, deadline).await;
            let cause = match reply {
                Ok(reply) => match SlotMap::parse(reply.value, &address) {
                    Some(map) => return Ok(map),
                    None => format!("{address} reports no owner of slots"),
                },
                Err(error) => format!("{address}: {}", whole(&error)),
            };
            debug!(cause, "CLUSTER SLOTS failed on this node");
            last = cause.into();
        }
        Err(last)
    }
}

impl Cluster {
    /// Sends a request to one node, without redirections.
    pub(crate) async fn call_at(
        &self,
        address: &Address,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let answer = self.connection(address).call(request, CallMode::Shared, deadline).await;
        if let Err(error) = &answer {
            self.next_hop(error, address);
        }
        answer.map(|reply| reply.value)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}
