//! Which server is the primary now: the sentinels say.
//!
//! One task per sentinel subscribes to it ([`Sentinels::follow`]), because a sentinel announces a
//! failover when it hears of it itself, which may be seconds after the one that led it. What the
//! sentinels say is ordered by the configuration epoch, so one that was cut off leads nobody back
//! to an old primary. As long as none is subscribed to, they are asked one after the other, the
//! one that answered first (guidelines for clients of Redis Sentinel), and the server's own role
//! is checked (`dial.rs`).

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
use crate::tasks::Tasks;

/// For one sentinel; some may be gone without a word.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// For one answer on a subscribed connection. It is kept through a moment of load.
const BEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two questions on a subscribed connection: they show that it is alive, and find what was
/// changed without an announcement.
const BEAT: Duration = Duration::from_secs(1);

/// Between two attempts to subscribe.
const PAUSE: Duration = Duration::from_secs(1);

/// What a sentinel publishes when the primary is another: the first by the one that leads the
/// failover, as soon as the replica is promoted; the second by each, when its configuration changes.
const CHANNELS: [&str; 2] = ["+promoted-slave", "+switch-master"];

/// The sentinels of one primary.
#[derive(Debug)]
pub(crate) struct Sentinels {
    addresses: Vec<Address>,
    service: String,
    first: AtomicUsize,
    heard: Mutex<Heard>,
    known: watch::Sender<Known>,
}

/// Where the primary is.
#[derive(Clone, Debug, Default)]
struct Known {
    /// As the sentinels say that are subscribed to.
    announced: Option<Address>,
    /// Where the last connection was made.
    reached: Option<Address>,
}

/// What each sentinel has said, in the order of the addresses.
#[derive(Debug)]
struct Heard {
    sentinels: Vec<Hearing>,
    /// How often one of them has changed its view.
    changes: u64,
    /// Whether the log says that none is subscribed to.
    logged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hearing {
    /// No attempt has ended yet.
    Pending,
    /// The last attempt failed, or its connection ended.
    Lost,
    Subscribed {
        view: View,
        changed: u64,
    },
}

/// A sentinel's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    /// The configuration epoch: the higher one is the later one, whoever says it.
    epoch: u64,
    primary: Address,
}

/// No sentinel could say where the primary is.
#[derive(Debug, thiserror::Error)]
#[error("no sentinel knows the primary of {service}; the last one: {last}")]
struct Unknown {
    service: String,
    last: Cause,
}

#[derive(Debug, thiserror::Error)]
#[error("{0} does not know it")]
struct NoSuchService(Address);

impl Sentinels {
    pub(crate) fn new(addresses: Vec<Address>, service: String) -> Self {
        let heard =
            Heard { sentinels: vec![Hearing::Pending; addresses.len()], changes: 0, logged: false };
        Self {
            addresses,
            service,
            first: AtomicUsize::new(0),
            heard: Mutex::new(heard),
            known: watch::Sender::default(),
        }
    }

    /// The same sentinels, of which nothing was heard.
    pub(crate) fn unheard(&self) -> Self {
        Self::new(self.addresses.clone(), self.service.clone())
    }

    /// Where the primary is: as announced, or as the first sentinel says that answers.
    pub(crate) async fn primary(&self, dialer: &Dialer) -> Result<Address, Cause> {
        if let Some(announced) = self.announced() {
            return Ok(announced);
        }
        let first = self.first.load(Ordering::Relaxed);
        let numbered = self.addresses.iter().enumerate();
        let mut last: Cause = "none was asked".into();
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

    /// Where the sentinels say that the primary is; `None` while none is subscribed to.
    pub(crate) fn announced(&self) -> Option<Address> {
        self.known.borrow().announced.clone()
    }

    /// Whether the sentinels announce another primary than this one.
    pub(crate) fn announce_other_than(&self, address: &Address) -> bool {
        self.known.borrow().announced.as_ref().is_some_and(|announced| announced != address)
    }

    /// Completes when the sentinels announce another primary than this one.
    pub(crate) async fn announced_other_than(&self, address: Option<&Address>) -> Address {
        self.becomes(|known| known.announced.clone(), address).await
    }

    /// Tells everybody that calls go to this address from now on.
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
                // Nobody can tell any more.
                return std::future::pending().await;
            }
        }
    }

    async fn ask(&self, dialer: &Dialer, sentinel: &Address) -> Result<Address, Cause> {
        let deadline = Instant::now() + ASK_TIMEOUT;
        let unheard = |_: PushInfo| Ok::<_, SendError>(());
        let asked = async {
            let mut connection = dialer.dial(sentinel, Role::Sentinel, unheard, deadline).await?;
            self.address(&mut connection, sentinel).await
        };
        timeout_at(deadline, asked).await?
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
    /// Subscribes to each sentinel until the drain, so that an old primary is left as soon as
    /// another is promoted. Until the old one learns of it, which may be 10 seconds later, it takes
    /// writes that are lost.
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

    /// Subscribes to one sentinel, and asks it for its view whenever it publishes something and
    /// every [`BEAT`], until the connection ends.
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
            // What was announced before the subscription is asked for, too.
            let view = timeout(BEAT_TIMEOUT, self.view(&mut connection, sentinel)).await??;
            self.hear(number, sentinel, view);
            let _ = timeout(BEAT, published.notified()).await;
        }
    }

    /// The epoch is asked for first: between the two answers only the address may change, and then
    /// an announcement follows.
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
            // The access list of the sentinel keeps it from us: then the latest change counts.
            Err(error) if is_answer(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let primary = self.address(connection, sentinel).await?;
        Ok(View { epoch: epoch.unwrap_or(0), primary })
    }

    fn hear(&self, number: usize, sentinel: &Address, view: View) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.set(number, view) {
            debug!(%sentinel, "subscribed to a sentinel");
        }
        if std::mem::take(&mut heard.logged) {
            info!(%sentinel, service = self.service, "subscribed to a sentinel again");
        }
        self.announce(heard.latest());
    }

    fn lose(&self, number: usize, sentinel: &Address, cause: &Cause) {
        let cause = whole(&**cause);
        debug!(%sentinel, cause, "cannot subscribe to a sentinel");
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.lose(number) && !std::mem::replace(&mut heard.logged, true) {
            warn!(
                service = self.service,
                cause, "cannot subscribe to any sentinel; a failover is noticed late"
            );
        }
        self.announce(heard.latest());
    }

    /// Called with the lock held, so that what is announced last is what was heard last.
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

impl Heard {
    /// Takes what a sentinel says. Whether it is subscribed to from now on, and was not before.
    fn set(&mut self, number: usize, view: View) -> bool {
        let Some(hearing) = self.sentinels.get_mut(number) else { return false };
        let is_new = !matches!(hearing, Hearing::Subscribed { .. });
        if !matches!(hearing, Hearing::Subscribed { view: before, .. } if *before == view) {
            self.changes += 1;
            *hearing = Hearing::Subscribed { view, changed: self.changes };
        }
        is_new
    }

    /// Forgets what a sentinel said. Whether none is subscribed to, and none may be in a moment.
    fn lose(&mut self, number: usize) -> bool {
        if let Some(hearing) = self.sentinels.get_mut(number) {
            *hearing = Hearing::Lost;
        }
        self.sentinels.iter().all(|hearing| *hearing == Hearing::Lost)
    }

    /// The primary by the highest epoch; of several, by the latest change.
    fn latest(&self) -> Option<Address> {
        let views = self.sentinels.iter().filter_map(|hearing| match hearing {
            Hearing::Subscribed { view, changed } => Some((view.epoch, changed, &view.primary)),
            Hearing::Pending | Hearing::Lost => None,
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

    fn three() -> Heard {
        Heard { sentinels: vec![Hearing::Pending; 3], changes: 0, logged: false }
    }

    #[test]
    fn the_highest_epoch_names_the_primary() {
        let mut heard = three();
        assert_eq!(heard.latest(), None);
        assert!(heard.set(0, view(7, 1)));
        assert_eq!(heard.latest(), Some(at(1)));
        // One that was cut off comes back and says what it last knew.
        assert!(heard.set(1, view(6, 2)));
        assert_eq!(heard.latest(), Some(at(1)));
        // One that leads a failover.
        heard.set(2, view(8, 3));
        assert_eq!(heard.latest(), Some(at(3)));
        assert!(!heard.set(0, view(8, 3)));
        assert!(!heard.lose(2));
        assert_eq!(heard.latest(), Some(at(3)));
        // All are set up again, and count from the start.
        heard.set(0, view(0, 4));
        heard.set(1, view(0, 4));
        assert_eq!(heard.latest(), Some(at(4)));
    }

    #[test]
    fn without_epochs_the_latest_change_counts() {
        let mut heard = three();
        for number in 0..3 {
            heard.set(number, view(0, 1));
        }
        heard.set(1, view(0, 2));
        heard.set(2, view(0, 1));
        assert_eq!(heard.latest(), Some(at(2)));
        heard.set(2, view(0, 2));
        heard.set(0, view(0, 1));
        assert_eq!(heard.latest(), Some(at(2)));
    }

    #[test]
    fn none_is_heard_once_every_attempt_has_failed() {
        let mut heard = three();
        assert!(!heard.lose(0));
        assert!(!heard.lose(1));
        assert!(heard.lose(2));
        heard.set(1, view(1, 1));
        assert!(!heard.lose(0));
        assert!(heard.lose(1));
        assert_eq!(heard.latest(), None);
    }

    #[tokio::test]
    async fn links_leave_for_what_is_announced() {
        let sentinels = Sentinels::new(vec![at(100), at(101)], "main".to_owned());
        assert!(!sentinels.announce_other_than(&at(1)));
        sentinels.hear(0, &at(100), view(1, 1));
        assert!(!sentinels.announce_other_than(&at(1)));
        sentinels.found(&at(1));
        sentinels.hear(1, &at(101), view(2, 2));
        assert!(sentinels.announce_other_than(&at(1)));
        assert_eq!(sentinels.announced_other_than(Some(&at(1))).await, at(2));
        assert_eq!(sentinels.moved_from(&at(1)).await, at(2));
        // Nobody is heard any more: nothing is known against a server.
        let cause = Cause::from("closed");
        sentinels.lose(0, &at(100), &cause);
        sentinels.lose(1, &at(101), &cause);
        assert!(!sentinels.announce_other_than(&at(1)));
        assert_eq!(sentinels.moved_from(&at(2)).await, at(1), "where a connection was made");
    }
}
