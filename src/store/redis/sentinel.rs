//! Which server is the primary now: the sentinels say.
//!
//! As the guidelines for clients of Redis Sentinel have it: one sentinel after the other is asked,
//! the one that answers is asked first the next time, and what they say is checked against the
//! server's own role (`dial.rs`), since a sentinel may not have noticed yet.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::PushInfo;
use redis::aio::SendError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::dial::{Dialer, Role};
use crate::store::Cause;
use crate::store::config::Address;

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
    pub(super) fn new(addresses: Vec<Address>, service: String) -> Self {
        let current = watch::Sender::new(None);
        Self { addresses, service, first: AtomicUsize::new(0), current }
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
        let mut current = self.current.subscribe();
        loop {
            let now = current.borrow_and_update().clone();
            match now {
                Some(now) if now != *address => return now,
                Some(_) | None => {}
            }
            if current.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
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

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the primary {} of the sentinels", self.service)
    }
}
