//! How many sessions each client address has created within a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::debug;

use super::exchange::Exchange;
use super::{Failure, Sessions};
use crate::metrics::Event;
use crate::net::trust::customer;
use crate::time::Timestamp;

/// The counts, of all workers: one for each IPv4 address or /64 network of IPv6 that has created a
/// session within the last minute, at most [`NewSessions::MAX`] of them.
#[derive(Debug, Default)]
pub struct NewSessions(Mutex<HashMap<IpAddr, Count>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    /// When the minute is over that began with the first session.
    ends_at: Timestamp,
    sessions: u32,
}

impl Count {
    /// A clock that was set back leaves none that lasts longer than it should.
    fn runs(&self, now: Timestamp) -> bool {
        now < self.ends_at && self.ends_at <= now + MINUTE
    }
}

const MINUTE: Duration = Duration::from_mins(1);

impl NewSessions {
    /// The most addresses that are counted at the same time.
    pub const MAX: usize = 65_536;

    /// Counts one more session of `address`.
    ///
    /// # Errors
    /// The address has created `limit` within its minute; the error says how long that still lasts.
    fn count(&self, address: IpAddr, limit: u32, now: Timestamp) -> Result<(), Duration> {
        let address = customer(address);
        let mut counts = self.counts();
        if counts.len() >= Self::MAX && !counts.contains_key(&address) {
            make_room(&mut counts, now);
        }
        let fresh = Count { ends_at: now + MINUTE, sessions: 0 };
        let count = counts.entry(address).or_insert(fresh);
        if !count.runs(now) {
            *count = fresh;
        }
        if count.sessions >= limit {
            return Err(count.ends_at.since(now));
        }
        count.sessions += 1;
        Ok(())
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the minutes that are over, and if those are few, the half with the lowest counts: so many
/// addresses do not hide the one that creates most.
fn make_room(counts: &mut HashMap<IpAddr, Count>, now: Timestamp) {
    counts.retain(|_, count| count.runs(now));
    if counts.len() > NewSessions::MAX / 2 {
        let mut sessions: Vec<u32> = counts.values().map(|count| count.sessions).collect();
        let middle = sessions.len() / 2;
        let (_, median, _) = sessions.select_nth_unstable(middle);
        let median = *median;
        counts.retain(|_, count| count.sessions > median);
    }
}

impl Sessions {
    /// Counts a session that a request is about to create.
    ///
    /// # Errors
    /// Its client's address has created as many as it may. A client whose address is not known is
    /// not counted.
    pub(super) fn count_new(&self, exchange: &Exchange) -> Result<(), Failure> {
        let shared = &self.shared;
        let Some((limit, address)) = shared.policy.new_sessions_per_address.zip(exchange.address)
        else {
            return Ok(());
        };
        shared.new_sessions.count(address, limit, shared.clock.now()).map_err(|retry_after| {
            shared.metrics.event(Event::TooManyNewSessions);
            debug!(%address, limit, "too many new sessions from one address");
            Failure::TooManyNewSessions { retry_after }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_creates_so_many_in_a_minute() {
        let new = NewSessions::default();
        let one = address("192.0.2.1");
        assert_eq!([(); 3].map(|()| new.count(one, 3, at(10))), [Ok(()); 3]);
        assert_eq!(new.count(one, 3, at(20)), Err(Duration::from_secs(50)));
        assert_eq!(new.count(address("192.0.2.2"), 3, at(20)), Ok(()));
        assert_eq!(new.count(one, 3, at(70)), Ok(()));
        // The clock was set back by an hour.
        assert_eq!(new.count(one, 1, at(-3600)), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let new = NewSessions::default();
        assert_eq!(new.count(address("2001:db8::1"), 1, at(0)), Ok(()));
        assert!(new.count(address("2001:db8::2:3"), 1, at(0)).is_err());
        assert_eq!(new.count(address("2001:db8:0:1::1"), 1, at(0)), Ok(()));
    }

    #[test]
    fn many_addresses_hide_no_busy_one() {
        let new = NewSessions::default();
        let busy = address("192.0.2.1");
        assert_eq!([(); 2].map(|()| new.count(busy, 2, at(0))), [Ok(()); 2]);
        for number in 0..200_000 {
            let other = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
            assert_eq!(new.count(other, 2, at(1)), Ok(()));
            assert!(new.counts().len() <= NewSessions::MAX);
        }
        assert!(new.count(busy, 2, at(2)).is_err());
    }
}
