//! Sentinels, which elect the primary.
//!
//! One task per sentinel subscribes to it ([`Sentinels::follow`]), because a sentinel announces a failover when
//! it learns of it itself, which may be seconds after the one that led it. Announcements are ordered by the
//! configuration epoch, so a sentinel that was partitioned never leads back to an old primary. Without a
//! subscription they are queried one after the other, beginning with the one that replied last (guidelines
//! for clients of Redis Sentinel), and the server's own role is checked (`dial.rs`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{PushInfo, PushKind, RedisError, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::Cause;
use super::config::Address;
use super::dial::{Dialer, Role};
use super::error::{is_answer, whole};
use super::unusable::Unusable;
use crate::tasks::Tasks;

/// Deadline for one sentinel's reply.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// Deadline for one reply on a subscribed connection, long enough for a moment of load.
const BEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval of queries on a subscribed connection. They show that it is alive, and find changes without an
/// announcement.
const BEAT: Duration = Duration::from_secs(1);

/// Pause between two attempts to subscribe.
const PAUSE: Duration = Duration::from_secs(1);

/// Channels on which sentinels publish another primary: on the first, the one that leads the failover, as soon as
/// the replica is promoted; on the second, each when its configuration changes.
const CHANNELS: [&str; 2] = ["+promoted-slave", "+switch-master"];

/// The sentinels of one primary.
#[derive(Debug)]
pub(crate) struct Sentinels {
    addresses: Vec<Address>,
    service: String,
    first: AtomicUsize,
    views: Mutex<Views>,
    known: watch::Sender<Known>,
}

/// The address of the primary.
#[derive(Clone, Debug, Default)]
struct Known {
    /// As subscribed sentinels announce it.
    announced: Option<Address>,
    /// Of the last connection.
    reached: Option<Address>,
}

/// The state of each sentinel, in the order of the addresses.
#[derive(Debug)]
struct Views {
    sentinels: Vec<SentinelState>,
    /// Number of changed views.
    changes: u64,
    /// Whether the log has a line that there is no subscription.
    logged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SentinelState {
    /// The first attempt is running.
    Pending,
    /// The last attempt failed, or its connection closed.
    Lost,
    Subscribed {
        view: View,
        changed: u64,
    },
}

/// A sentinel's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    /// The configuration epoch; a higher one is later, on whichever sentinel.
    epoch: u64,
    primary: Address,
}

/// No sentinel knows the primary.
#[derive(Debug, thiserror::Error)]
#[error("no sentinel knows the primary of {service}; the last one: {last}")]
struct Unknown {
    service: String,
    last: Cause,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} does not know the service")]
struct NoSuchService(Address);

impl Sentinels {
    pub(crate) fn new(addresses: Vec<Address>, service: String) -> Self {
        let views = Views {
            sentinels: vec![SentinelState::Pending; addresses.len()],
            changes: 0,
            logged: false,
        };
        Self {
            addresses,
            service,
            first: AtomicUsize::new(0),
            views: Mutex::new(views),
            known: watch::Sender::default(),
        }
    }

    /// Returns the same sentinels, without subscriptions.
    pub(crate) fn unsubscribed(&self) -> Self {
        Self::new(self.addresses.clone(), self.service.clone())
    }

    /// Returns the address of the primary: as announced, or by the first sentinel that replies.
    pub(crate) async fn primary(&self, dialer: &Dialer) -> Result<Address, Cause> {
        if let Some(announced) = self.announced() {
            return Ok(announced);
        }
        let first = self.first.load(Ordering::Relaxed);
        let numbered = self.addresses.iter().enumerate();
        let mut last: Cause = "no sentinel is configured".into();
        for (number, sentinel) in numbered.clone().skip(first).chain(numbered.take(first)) {
            match self.ask(dialer, sentinel).await {
                Ok(primary) => {
                    self.first.store(number, Ordering::Relaxed);
                    return Ok(primary);
                }
                Err(cause) => last = cause,
            }
        }
        Err(Unknown { service: self.service.clone(), last }.into())
    }

    /// Returns the announced address; `None` without a subscription.
    pub(crate) fn announced(&self) -> Option<Address> {
        self.known.borrow().announced.clone()
    }

    /// Returns whether the sentinels announce another primary than this one.
    pub(crate) fn announce_other_than(&self, address: &Address) -> bool {
        self.known.borrow().announced.as_ref().is_some_and(|announced| announced != address)
    }

    /// Completes when the sentinels announce another primary than this one.
    pub(crate) async fn announced_other_than(&self, address: Option<&Address>) -> Address {
        self.becomes(|known| known.announced.clone(), address).await
    }

    /// Records that connections are made to this address from now on.
    pub(crate) fn found(&self, address: &Address) {
        self.known.send_if_modified(|known| {
            let moved = known.reached.as_ref() != Some(address);
            if moved {
                known.reached = Some(address.clone());
            }
            moved
        });
    }

    /// Completes when calls go to another address than this one.
    pub(crate) async fn moved_from(&self, address: &Address) -> Address {
        let now = |known: &Known| known.announced.clone().or_else(|| known.reached.clone());
        self.becomes(now, Some(address)).await
    }

    /// Completes when an address is known that is not this one.
    async fn becomes(
        &self,
        of: impl Fn(&Known) -> Option<Address>,
        address: Option<&Address>,
    ) -> Address {
        let mut known = self.known.subscribe();
        loop {
            let now = of(&known.borrow_and_update());
            match now {
                Some(now) if address != Some(&now) => return now,
                Some(_) | None => {}
            }
            if known.changed().await.is_err() {
                // The sender is dropped with the sentinels.
                return std::future::pending().await;
            }
        }
    }

    async fn ask(&self, dialer: &Dialer, sentinel: &Address) -> Result<Address, Cause> {
        let deadline = Instant::now() + ASK_TIMEOUT;
        let unsubscribed = |_: PushInfo| Ok::<_, SendError>(());
        let asked = async {
            let mut connection =
                dialer.dial(sentinel, Role::Sentinel, unsubscribed, deadline).await?;
            self.address(&mut connection, sentinel).await
        };
        timeout_at(deadline, asked).await.unwrap_or_else(|_elapsed| {
            let server = sentinel.to_string();
            Err(Unusable::Silent { server, within: ASK_TIMEOUT }.into())
        })
    }

    async fn address(
        &self,
        connection: &mut MultiplexedConnection,
        sentinel: &Address,
    ) -> Result<Address, Cause> {
        let mut command = cmd("SENTINEL");
        command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let answer: Option<(String, u16)> = command.query_async(connection).await?;
        let (host, port) = answer.ok_or_else(|| NoSuchService(sentinel.clone()))?;
        Ok(Address::Tcp { host, port })
    }
}

/// Subscriptions, which outlast every connection to a server.
impl Sentinels {
    /// Subscribes to each sentinel until shutdown, so that connections leave an old primary as soon as another is
    /// promoted. Until the old one learns of it, up to 10 seconds later, it accepts writes that are lost.
    pub(crate) fn follow(self: &Arc<Self>, dialer: &Arc<Dialer>, tasks: &Tasks) {
        for (number, address) in self.addresses.iter().enumerate() {
            let (sentinels, address) = (Arc::clone(self), address.clone());
            let (dialer, drain) = (Arc::clone(dialer), tasks.clone());
            let subscribing = async move {
                loop {
                    let Err(cause) = sentinels.subscribe(number, &address, &dialer).await;
                    sentinels.lose(number, &address, &cause);
                    sleep(PAUSE).await;
                }
            };
            let until_drain = async move {
                tokio::select! {
                    () = drain.draining() => {}
                    () = subscribing => {}
                }
            };
            tasks.run(until_drain).detach();
        }
    }

    /// Subscribes to one sentinel, and queries its view whenever it publishes something, and every [`BEAT`], until
    /// the connection closes.
    async fn subscribe(
        &self,
        number: usize,
        sentinel: &Address,
        dialer: &Dialer,
    ) -> Result<Infallible, Cause> {
        let published = Arc::new(Notify::new());
        let pushed = {
            let published = Arc::clone(&published);
            move |push: PushInfo| {
                if matches!(push.kind, PushKind::Message | PushKind::Disconnection) {
                    published.notify_one();
                }
                Ok::<_, SendError>(())
            }
        };
        let deadline = Instant::now() + BEAT_TIMEOUT;
        let mut connection = dialer.dial(sentinel, Role::Sentinel, pushed, deadline).await?;
        timeout_at(deadline, connection.subscribe(&CHANNELS)).await??;
        loop {
            // Announcements from before the subscription count too.
            let view = timeout(BEAT_TIMEOUT, self.view(&mut connection, sentinel)).await??;
            self.record(number, sentinel, view);
            let _ = timeout(BEAT, published.notified()).await;
        }
    }

    /// Queries the view. The epoch comes first: between the two replies only the address may change, and then an
    /// announcement follows.
    async fn view(
        &self,
        connection: &mut MultiplexedConnection,
        sentinel: &Address,
    ) -> Result<View, Cause> {
        let mut command = cmd("SENTINEL");
        command.arg("MASTER").arg(&self.service);
        let answer: Result<HashMap<String, String>, RedisError> =
            command.query_async(connection).await;
        let epoch = match answer {
            Ok(fields) => fields.get("config-epoch").and_then(|epoch| epoch.parse().ok()),
            // Refused by the sentinel's access list: the latest change counts then.
            Err(error) if is_answer(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let primary = self.address(connection, sentinel).await?;
        Ok(View { epoch: epoch.unwrap_or(0), primary })
    }

    fn record(&self, number: usize, sentinel: &Address, view: View) {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.set(number, view) {
            debug!(%sentinel, "subscribed to a sentinel");
        }
        if std::mem::take(&mut views.logged) {
            info!(%sentinel, service = self.service, "subscribed to a sentinel again");
        }
        self.announce(views.latest());
    }

    fn lose(&self, number: usize, sentinel: &Address, cause: &Cause) {
        let cause = whole(&**cause);
        debug!(%sentinel, cause, "cannot subscribe to a sentinel");
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.lose(number) && !std::mem::replace(&mut views.logged, true) {
            warn!(
                service = self.service,
                cause, "cannot subscribe to any sentinel; a failover is noticed late"
            );
        }
        self.announce(views.latest());
    }

    /// Publishes the primary. The caller holds the lock, so that the last announcement is the last one received.
    fn announce(&self, latest: Option<Address>) {
        self.known.send_if_modified(|known| {
            let moved = known.announced != latest;
            if let (true, Some(from), Some(to)) = (moved, &known.announced, &latest) {
                info!(service = self.service, %from, %to, "the sentinels announce another primary");
            }
            known.announced = latest;
            moved
        });
    }
}

impl Views {
    /// Records a sentinel's view. Returns whether its subscription is new.
    fn set(&mut self, number: usize, view: View) -> bool {
        let Some(state) = self.sentinels.get_mut(number) else { return false };
        let is_new = !matches!(state, SentinelState::Subscribed { .. });
        if !matches!(state, SentinelState::Subscribed { view: before, .. } if *before == view) {
            self.changes += 1;
            *state = SentinelState::Subscribed { view, changed: self.changes };
        }
        is_new
    }

    /// Forgets a sentinel's view. Returns whether no sentinel is subscribed to, or connecting.
    fn lose(&mut self, number: usize) -> bool {
        if let Some(state) = self.sentinels.get_mut(number) {
            *state = SentinelState::Lost;
        }
        self.sentinels.iter().all(|state| *state == SentinelState::Lost)
    }

    /// Returns the primary of the highest epoch; of several, the latest change.
    fn latest(&self) -> Option<Address> {
        let views = self.sentinels.iter().filter_map(|state| match state {
            SentinelState::Subscribed { view, changed } => {
                Some((view.epoch, changed, &view.primary))
            }
            SentinelState::Pending | SentinelState::Lost => None,
        });
        views.max().map(|(_, _, primary)| primary.clone())
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the primary {} of the sentinels", self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(epoch: u64, port: u16) -> View {
        View { epoch, primary: at(port) }
    }

    fn at(port: u16) -> Address {
        Address::Tcp { host: "server".to_owned(), port }
    }

    fn three() -> Views {
        Views { sentinels: vec![SentinelState::Pending; 3], changes: 0, logged: false }
    }

    #[test]
    fn highest_epoch_names_the_primary() {
        let mut views = three();
        assert_eq!(views.latest(), None);
        assert!(views.set(0, view(7, 1)));
        assert_eq!(views.latest(), Some(at(1)));
        // One that was partitioned returns with an old view.
        assert!(views.set(1, view(6, 2)));
        assert_eq!(views.latest(), Some(at(1)));
        // The one that leads a failover.
        views.set(2, view(8, 3));
        assert_eq!(views.latest(), Some(at(3)));
        assert!(!views.set(0, view(8, 3)));
        assert!(!views.lose(2));
        assert_eq!(views.latest(), Some(at(3)));
        // All are reset, and count from the start.
        views.set(0, view(0, 4));
        views.set(1, view(0, 4));
        assert_eq!(views.latest(), Some(at(4)));
    }

    #[test]
    fn latest_change_counts_without_epochs() {
        let mut views = three();
        for number in 0..3 {
            views.set(number, view(0, 1));
        }
        views.set(1, view(0, 2));
        views.set(2, view(0, 1));
        assert_eq!(views.latest(), Some(at(2)));
        views.set(2, view(0, 2));
        views.set(0, view(0, 1));
        assert_eq!(views.latest(), Some(at(2)));
    }

    #[test]
    fn no_subscription_after_every_attempt_failed() {
        let mut views = three();
        assert!(!views.lose(0));
        assert!(!views.lose(1));
        assert!(views.lose(2));
        views.set(1, view(1, 1));
        assert!(!views.lose(0));
        assert!(views.lose(1));
        assert_eq!(views.latest(), None);
    }

    #[tokio::test]
    async fn announcements_move_connections() {
        let sentinels = Sentinels::new(vec![at(100), at(101)], "main".to_owned());
        assert!(!sentinels.announce_other_than(&at(1)));
        sentinels.record(0, &at(100), view(1, 1));
        assert!(!sentinels.announce_other_than(&at(1)));
        sentinels.found(&at(1));
        sentinels.record(1, &at(101), view(2, 2));
        assert!(sentinels.announce_other_than(&at(1)));
        assert_eq!(sentinels.announced_other_than(Some(&at(1))).await, at(2));
        assert_eq!(sentinels.moved_from(&at(1)).await, at(2));
        // Without a subscription, no server is known to be wrong.
        let cause = Cause::from("closed");
        sentinels.lose(0, &at(100), &cause);
        sentinels.lose(1, &at(101), &cause);
        assert!(!sentinels.announce_other_than(&at(1)));
        assert_eq!(sentinels.moved_from(&at(2)).await, at(1), "where a connection was made");
    }
}
