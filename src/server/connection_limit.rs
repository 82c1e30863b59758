//! The limit on open connections: in total, and per client address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::streams::Stalled;
use crate::net::trust::{Trust, customer};

/// Limit on the open connections of all listeners that share it. A clone is the same limit.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    open: Arc<Semaphore>,
    max: usize,
    stalled: Stalled,
    per_address: Option<Arc<PerAddress>>,
}

/// A connection's share of the limit, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    _open: OwnedSemaphorePermit,
    _counted: Option<Counted>,
}

#[derive(Debug)]
struct PerAddress {
    max: usize,
    /// Proxies: many clients share their addresses.
    exempt: Trust,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that counts against the limit of its address.
#[derive(Debug)]
struct Counted {
    address: IpAddr,
    limit: Arc<PerAddress>,
}

/// The address has as many open connections as it may have.
struct AddressLimitReached;

impl ConnectionLimit {
    /// Allows `max` open connections, and as many stalled HTTP/2 streams.
    pub fn new(max: usize) -> Self {
        let (open, stalled) = (Arc::new(Semaphore::new(max)), Stalled::new(max));
        Self { open, max, stalled, per_address: None }
    }

    /// Also allows each address only `max` connections. An IPv6 /64 counts as one address, since a provider assigns
    /// at least that to each customer; addresses in `exempt` are not counted.
    #[must_use]
    pub(crate) fn with_per_address_limit(self, max: usize, exempt: Trust) -> Self {
        let per_address = PerAddress { max, exempt, open: Mutex::default() };
        Self { per_address: Some(Arc::new(per_address)), ..self }
    }

    /// Returns whether fewer than an eighth of the connections are free.
    pub(super) fn is_scarce(&self) -> bool {
        self.open.available_permits().saturating_mul(8) < self.max
    }

    /// Returns the count of stalled HTTP/2 streams.
    pub(super) fn stalled(&self) -> Stalled {
        self.stalled.clone()
    }

    /// Waits until one more connection may be open.
    pub(super) async fn ready(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.open).acquire_owned().await
    }

    /// Returns `None` if no more connections may be open.
    pub(super) fn try_ready(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.open).try_acquire_owned().ok()
    }

    /// Counts a connection against the limit of its address. Returns `None` if that is reached.
    pub(super) fn admit(
        &self,
        open: OwnedSemaphorePermit,
        address: Option<IpAddr>,
    ) -> Option<ConnectionPermit> {
        let counted = match (&self.per_address, address) {
            (Some(limit), Some(address)) => limit.count(address).ok()?,
            (None, _) | (_, None) => None,
        };
        Some(ConnectionPermit { _open: open, _counted: counted })
    }
}

impl PerAddress {
    /// Returns `None` for an exempt address.
    fn count(self: &Arc<Self>, address: IpAddr) -> Result<Option<Counted>, AddressLimitReached> {
        if self.exempt.contains(address) {
            return Ok(None);
        }
        let address = customer(address);
        let mut open = self.open();
        let count = open.entry(address).or_insert(0);
        if *count >= self.max {
            return Err(AddressLimitReached);
        }
        *count += 1;
        drop(open);
        Ok(Some(Counted { address, limit: Arc::clone(self) }))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.limit.open();
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
    async fn limit_per_address_exempts_proxies() {
        let exempt = Trust::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let limit = ConnectionLimit::new(100).with_per_address_limit(2, exempt);
        let admit = async |address: &str| {
            let open = limit.ready().await.expect("a free connection");
            limit.admit(open, Some(address.parse().expect("an address")))
        };
        let first = admit("192.0.2.1").await.expect("a permit");
        let _second = admit("192.0.2.1").await.expect("a permit");
        assert!(admit("192.0.2.1").await.is_none());
        assert!(admit("192.0.2.2").await.is_some());
        drop(first);
        assert!(admit("192.0.2.1").await.is_some());
        let _of_one_network = [admit("2001:db8::1").await, admit("2001:db8::2").await]
            .map(|permit| permit.expect("a permit"));
        assert!(admit("2001:db8::3").await.is_none());
        assert!(admit("2001:db8:0:1::3").await.is_some());
        let proxy = [admit("10.0.0.1").await, admit("10.0.0.1").await, admit("10.0.0.1").await];
        assert!(proxy.iter().all(Option::is_some));
        assert_eq!(limit.per_address.expect("a limit").open().len(), 2);
    }
}
