//! Which server is the primary now: the sentinels say.
//!
//! As the guidelines for clients of Redis Sentinel have it: one sentinel after the other is asked,
//! the one that answers is asked first the next time, and what they say is checked against the
//! server's own role (`dial.rs`), since a sentinel may not have noticed yet.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::SendError;
use redis::{PushInfo, PushKind, Value, from_redis_value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::dial::{Dialer, Role};
use crate::store::Cause;
use crate::store::config::Address;
use crate::tasks::Tasks;

/// For one sentinel; some may be gone without a word.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// The sentinels of one primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    service: String,
    first: AtomicUsize,
    /// Where the last connection was made that is of use.
    current: watch::Sender<Option<Address>>,
    /// Where a sentinel says that the primary is, as soon as it says so.
    announced: watch::Sender<Option<Address>>,
    followed: AtomicBool,
}

/// Between two attempts to hear a sentinel.
const PAUSE: Duration = Duration::from_secs(1);

/// A sentinel that says nothing is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(5);

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
    pub(super) fn new(addresses: Vec<Address>, service: String) -> Self {
        Self {
            addresses,
            service,
            first: AtomicUsize::new(0),
            current: watch::Sender::new(None),
            announced: watch::Sender::new(None),
            followed: AtomicBool::new(false),
        }
    }

    /// Where the primary is.
    pub(super) async fn primary(&self, dialer: &Dialer) -> Result<Address, Cause> {
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

    /// Hears the sentinels until the drain, so that an old primary is left as soon as another is
    /// promoted: until it is told so itself, which may be seconds later, it takes writes that are
    /// lost. One follows for all.
    pub(super) fn follow(self: &Arc<Self>, dialer: &Arc<Dialer>, tasks: &Tasks) {
        if self.followed.swap(true, Ordering::Relaxed) {
            return;
        }
        let (sentinels, dialer, drain) = (Arc::clone(self), Arc::clone(dialer), tasks.clone());
        let following = async move {
            let hearing = async {
                loop {
                    let Err(cause) = sentinels.hear(&dialer).await;
                    debug!(%cause, "no sentinel is heard");
                    sleep(PAUSE).await;
                }
            };
            tokio::select! {
                () = drain.draining() => {}
                () = hearing => {}
            }
        };
        tasks.run(following).detach();
    }

    /// Subscribes to what one sentinel announces, and hears it until the connection ends.
    async fn hear(self: &Arc<Self>, dialer: &Dialer) -> Result<Infallible, Cause> {
        let announced = self.announced.clone();
        let service = self.service.clone();
        let pushed = move |push: PushInfo| {
            if push.kind == PushKind::Message
                && let Some(primary) = switched(&push.data, &service)
            {
                announced.send_replace(Some(primary));
            }
            Ok::<_, SendError>(())
        };
        // One that answers; it is the first from then on.
        self.primary(dialer).await?;
        let sentinel = self.addresses.get(self.first.load(Ordering::Relaxed));
        let sentinel = sentinel.ok_or("there is no sentinel")?;
        let deadline = Instant::now() + ASK_TIMEOUT;
        let mut connection = dialer.dial(sentinel, Role::Sentinel, pushed, deadline).await?;
        let subscribed = connection.subscribe("+switch-master");
        tokio::time::timeout_at(deadline, subscribed).await??;
        // What was announced before is asked for.
        self.announced.send_replace(Some(self.primary(dialer).await?));
        loop {
            sleep(SILENCE).await;
            let ping = redis::cmd("PING");
            tokio::time::timeout(ASK_TIMEOUT, ping.query_async::<Value>(&mut connection)).await??;
        }
    }

    /// Completes when a sentinel announces another primary than this one.
    pub(super) async fn announced_other_than(&self, address: &Address) -> Address {
        other_than(&self.announced, address).await
    }

    /// Tells everybody that calls go to this address from now on.
    pub(super) fn found(&self, address: &Address) {
        self.current.send_if_modified(|current| {
            let moved = current.as_ref() != Some(address);
            if moved {
                *current = Some(address.clone());
            }
            moved
        });
    }

    /// Completes when calls go to another address than this one.
    pub(super) async fn moved_from(&self, address: &Address) -> Address {
        other_than(&self.current, address).await
    }

    async fn ask(&self, dialer: &Dialer, sentinel: &Address) -> Result<Address, Cause> {
        let deadline = Instant::now() + ASK_TIMEOUT;
        let unheard = |_: PushInfo| Ok::<_, SendError>(());
        let asked = async {
            let mut connection = dialer.dial(sentinel, Role::Sentinel, unheard, deadline).await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
            Ok(command.query_async::<Option<(String, u16)>>(&mut connection).await?)
        };
        let answer: Result<_, Cause> = tokio::time::timeout_at(deadline, asked).await?;
        let (host, port) = answer?.ok_or_else(|| NoSuchService(sentinel.clone()))?;
        Ok(Address::Tcp { host, port })
    }
}

/// Completes when another address is told than this one.
async fn other_than(told: &watch::Sender<Option<Address>>, address: &Address) -> Address {
    let is_other = |now: &Option<Address>| now.as_ref().is_some_and(|now| now != address);
    let mut told = told.subscribe();
    let other = told.wait_for(is_other).await.ok().and_then(|now| now.clone());
    match other {
        Some(other) => other,
        // Nobody can tell any more.
        None => std::future::pending().await,
    }
}

/// The primary of a service, as `+switch-master` has it: name, old host and port, new host and port.
fn switched(message: &[Value], service: &str) -> Option<Address> {
    let text: String = from_redis_value(message.last()?.clone()).ok()?;
    let mut words = text.split(' ');
    if words.next() != Some(service) {
        return None;
    }
    let (host, port) = (words.nth(2)?, words.next()?);
    Some(Address::Tcp { host: host.to_owned(), port: port.parse().ok()? })
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the primary {} of the sentinels", self.service)
    }
}
