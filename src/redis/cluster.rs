//! The way to a cluster: a link to each node that has slots, and the map that says which.
//!
//! Every command is about one key. It goes to the node that the map names, and follows where that
//! node sends it (`MOVED`, `ASK`, `TRYAGAIN`; Redis cluster specification, "Redirection and
//! resharding"). The map is asked for again when a node redirects, does not answer, or says that
//! the cluster is down; so a promoted replica is found without its frozen primary saying anything.
//! (redis-rs's own cluster client asks nobody after time-outs.)
//!
//! Any node tells the map, a replica too. A map in which no node has slots is none: as long as no
//! node tells another one, calls fail, and so does [`Cluster::owners`].

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
use super::deployment::{Deployment, Place};
use super::dial::{Dialer, Role};
use super::error::{CallError, whole};
use super::link::{Link, Told};
use super::notices::Notices;
use super::replicate::{CallMode, Replicas};
use super::request::Request;
use super::slot::{SlotMap, redirected, slot_of};
use crate::random;
use crate::tasks::Tasks;

/// How often a command is sent on; a slot that moves sends it on once or twice.
const HOPS: usize = 8;

/// While a slot moves, its keys may be on neither side for a moment.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The map is asked for no more often than this.
const REFRESH_EVERY: Duration = Duration::from_millis(200);

/// For one node's answer about the map; another is asked next.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(300);

/// What the log calls a cluster of which no node tells the map.
const WHOLE: &str = "the cluster's slot map";

/// The way to a cluster.
pub(crate) struct Cluster {
    me: Weak<Self>,
    dialer: Arc<Dialer>,
    seeds: Vec<Address>,
    replicas: Arc<Replicas>,
    notices: Arc<Notices>,
    tasks: Tasks,
    state: Mutex<State>,
    /// How often the map was asked for, whatever came of it.
    refreshed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    map: Arc<SlotMap>,
    /// Why the last request for the map has brought none, if it has not.
    unmapped: Option<Arc<str>>,
    links: HashMap<Address, Arc<Link>>,
    refreshing: Refreshing,
}

#[derive(Default, PartialEq, Eq)]
enum Refreshing {
    /// Not before this, where it is said.
    #[default]
    Idle,
    Since(Instant),
    Running,
}

/// Whom a command is sent to next.
enum Hop {
    Owner,
    Moved(Address),
    Ask(Address),
}

/// No node is known to have the slot.
#[derive(Debug, thiserror::Error)]
#[error("no node of the cluster is known to have slot {0}")]
struct Unowned(u16);

/// No node tells a map of use.
#[derive(Debug, thiserror::Error)]
#[error("no node of the cluster tells which nodes have slots; the last one: {0}")]
struct Unmapped(Arc<str>);

#[derive(Debug, thiserror::Error)]
#[error("the cluster's nodes redirect to each other")]
struct Circle;

impl Cluster {
    /// The way to the cluster of a deployment, of which these nodes are known.
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

    /// Makes a call about `key` to the node that has it, and follows redirections.
    pub(crate) async fn call(
        &self,
        key: &str,
        request: Request<'_>,
        mode: CallMode<'_>,
        deadline: Instant,
    ) -> Result<Told, CallError> {
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
            let trouble = match self.link(&address).call(request, mode, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(trouble) => trouble,
            };
            hop = match self.next_hop(&trouble, &address) {
                Some(Hop::Owner) => {
                    let pause = timeout_at(deadline, sleep(TRY_AGAIN)).await;
                    pause.map_err(|elapsed| CallError::NotSent(elapsed.into()))?;
                    Hop::Owner
                }
                Some(hop) => hop,
                None => return Err(trouble),
            };
        }
        Err(CallError::NotSent(Circle.into()))
    }

    /// Where a command goes that one node did not take; `None` where nowhere.
    fn next_hop(&self, trouble: &CallError, asked: &Address) -> Option<Hop> {
        let to = |error: &redis::RedisError| {
            error.redirect_node().and_then(|(to, _)| redirected(to, asked))
        };
        match (trouble, trouble.server_error()) {
            (_, Some(ServerErrorKind::TryAgain)) => Some(Hop::Owner),
            (CallError::Refused(error), Some(ServerErrorKind::Ask)) => to(error).map(Hop::Ask),
            (CallError::Refused(error), Some(ServerErrorKind::Moved)) => {
                self.refresh();
                to(error).map(Hop::Moved)
            }
            (CallError::Refused(_), Some(ServerErrorKind::ClusterDown))
            | (CallError::NotSent(_) | CallError::Closed(_) | CallError::TimedOut(_), _) => {
                self.refresh();
                None
            }
            (CallError::Refused(_), _) => None,
        }
    }

    /// The node that has a slot, by the map; the first caller waits for it.
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

    /// All nodes that have slots: at least one.
    ///
    /// # Errors
    /// No node tells the map, or one in which no node has slots.
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

    /// The node that the map names for a key, if it names one.
    pub(crate) fn owner_of(&self, key: &str) -> Option<Address> {
        self.state().map.owner(slot_of(key)).cloned()
    }

    /// The link to a node.
    pub(crate) fn link(&self, address: &Address) -> Arc<Link> {
        let mut state = self.state();
        let link = state.links.entry(address.clone()).or_insert_with(|| {
            let (dialer, notices) = (Arc::clone(&self.dialer), Arc::clone(&self.notices));
            let place = Place::Fixed(address.clone());
            Link::new(dialer, place, Role::Node, notices, self.tasks.clone())
        });
        Arc::clone(link)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the map was asked for.
    async fn refreshed(&self, deadline: Instant) -> Result<(), Cause> {
        let mut refreshed = self.refreshed.subscribe();
        self.refresh();
        timeout_at(deadline, refreshed.changed()).await??;
        Ok(())
    }

    /// Asks for the map, unless it is being asked for; a moment later if it just was.
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
            let map = cluster.ask_for_map().await;
            let mut state = cluster.state();
            state.refreshing = Refreshing::Since(Instant::now());
            match map {
                Ok(map) => {
                    let owners = map.owners();
                    for map in [&*state.map, &map] {
                        cluster.replicas.learn_map(map);
                    }
                    cluster.replicas.keep_nodes(&owners);
                    state.links.retain(|address, _| {
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

    /// Asks the nodes for the map, those first that seem well.
    ///
    /// # Errors
    /// What the last one said.
    async fn ask_for_map(&self) -> Result<SlotMap, Arc<str>> {
        let mut nodes: Vec<(Address, Arc<Link>)> = {
            let state = self.state();
            state.links.iter().map(|(at, link)| (at.clone(), Arc::clone(link))).collect()
        };
        // By chance, so that one which is wrong about it is not the one that is asked every time.
        nodes.sort_by_cached_key(|(_, link)| (!link.is_hopeful(), random::bytes::<4>()));
        let unknown = self.seeds.iter().filter(|seed| nodes.iter().all(|(at, _)| at != *seed));
        let seeds: Vec<_> = unknown.map(|seed| (seed.clone(), self.link(seed))).collect();
        let mut last: Arc<str> = "none was asked".into();
        for (address, link) in nodes.into_iter().chain(seeds) {
            let mut command = cmd("CLUSTER");
            command.arg("SLOTS");
            let deadline = Instant::now() + REFRESH_TIMEOUT;
            let told = link.call(Request::One(&command), CallMode::Shared, deadline).await;
            let cause = match told {
                Ok(told) => match SlotMap::parse(told.value, &address) {
                    Some(map) => return Ok(map),
                    None => format!("{address} knows no node that has slots"),
                },
                Err(trouble) => format!("{address}: {}", whole(&trouble)),
            };
            debug!(cause, "a node did not tell the slot map");
            last = cause.into();
        }
        Err(last)
    }
}

/// All nodes that have slots, and what they are asked.
impl Cluster {
    /// Sends a request to one node, which nobody redirects.
    pub(crate) async fn call_at(
        &self,
        address: &Address,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let answer = self.link(address).call(request, CallMode::Shared, deadline).await;
        if let Err(trouble) = &answer {
            self.next_hop(trouble, address);
        }
        answer.map(|told| told.value)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}
