//! How many connections may be open: in all, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::streams::Stalled;
use crate::net::trust::{Trust, customer};

/// Room for connections, of all listeners that share it. A clone is the same room.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    all: Arc<Semaphore>,
    connections: usize,
    stalled: Stalled,
    by_address: Option<Arc<ByAddress>>,
}

/// What a connection takes up until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    _permit: OwnedSemaphorePermit,
    _counted: Option<Counted>,
}

#[derive(Debug)]
struct ByAddress {
    limit: usize,
    /// Proxies, behind whose addresses there are many.
    exempt: Trust,
    open: Mutex<HashMap<IpAddr, usize>>,
}

#[derive(Debug)]
struct Counted {
    address: IpAddr,
    among: Arc<ByAddress>,
}

impl ConnectionLimit {
    /// For so many, from anywhere. It allows as many HTTP/2 streams to stall.
    pub fn new(connections: usize) -> Self {
        let (all, stalled) = (Arc::new(Semaphore::new(connections)), Stalled::new(connections));
        Self { all, connections, stalled, by_address: None }
    }

    /// For so many from one address, or from one /64 of IPv6, which is one customer's; those of
    /// `exempt` are not counted.
    #[must_use]
    pub fn with_per_address_limit(self, limit: usize, exempt: Trust) -> Self {
        let by_address = ByAddress { limit, exempt, open: Mutex::default() };
        Self { by_address: Some(Arc::new(by_address)), ..self }
    }

    /// Returns whether fewer than an eighth of the connections are free.
    pub(super) fn is_scarce(&self) -> bool {
        self.all.available_permits().saturating_mul(8) < self.connections
    }

    /// Returns the stalled streams of its connections.
    pub(super) fn stalled(&self) -> Stalled {
        self.stalled.clone()
    }

    /// Waits for room for one more.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.all).acquire_owned().await
    }

    /// A connection's seat; `None` where its address has as many as it may have.
    pub(super) fn seat(
        &self,
        permit: OwnedSemaphorePermit,
        address: Option<IpAddr>,
    ) -> Option<Seat> {
        let counted = match (&self.by_address, address) {
            (Some(by_address), Some(address)) => by_address.count(address)?,
            _ => None,
        };
        Some(Seat { _permit: permit, _counted: counted })
    }
}

impl ByAddress {
    /// `None` where there is no room, and within where it is not counted.
    #[expect(clippy::option_option, reason = "whether it may stay, and what that is")]
    fn count(self: &Arc<Self>, address: IpAddr) -> Option<Option<Counted>> {
        if self.exempt.contains(address) {
            return Some(None);
        }
        let address = customer(address);
        let mut open = self.open();
        let count = open.entry(address).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Some(Counted { address, among: Arc::clone(self) }))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.among.open();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_has_so_many_and_a_proxy_any_number() {
        let exempt = Trust::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let room = ConnectionLimit::new(100).with_per_address_limit(2, exempt);
        let seat = async |address: &str| {
            let permit = room.permit().await.expect("room");
            room.seat(permit, Some(address.parse().expect("an address")))
        };
        let first = seat("192.0.2.1").await.expect("a seat");
        let _second = seat("192.0.2.1").await.expect("a seat");
        assert!(seat("192.0.2.1").await.is_none());
        assert!(seat("192.0.2.2").await.is_some());
        drop(first);
        assert!(seat("192.0.2.1").await.is_some());
        let _of_one = [seat("2001:db8::1").await, seat("2001:db8::2").await]
            .map(|seat| seat.expect("a seat"));
        assert!(seat("2001:db8::3").await.is_none());
        assert!(seat("2001:db8:0:1::3").await.is_some());
        let proxy: Vec<_> =
            [seat("10.0.0.1").await, seat("10.0.0.1").await, seat("10.0.0.1").await].into();
        assert!(proxy.iter().all(Option::is_some));
        assert_eq!(room.by_address.expect("a limit").open().len(), 2);
    }
}
