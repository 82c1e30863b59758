//! The limit on sessions that one client address creates within a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::net::trust::customer;
use crate::time::Timestamp;

/// The counts of all workers: one for each IPv4 address or IPv6 /64 network that has created a
/// session within the last minute, at most [`AddressCounts::MAX`] of them.
#[derive(Debug, Default)]
pub(crate) struct AddressCounts(Mutex<HashMap<IpAddr, Count>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    /// The end of the minute that began with the first session.
    ends_at: Timestamp,
    sessions: u32,
}

impl Count {
    /// Returns whether the minute is still running.
    fn is_running(&self, now: Timestamp) -> bool {
        // The upper bound is for a clock that was set back: no count may last longer than a minute.
        now < self.ends_at && self.ends_at <= now + MINUTE
    }
}

const MINUTE: Duration = Duration::from_mins(1);

impl AddressCounts {
    /// The maximum number of addresses that are counted at the same time.
    const MAX: usize = 65_536;

    /// Counts one more session of `address`.
    ///
    /// # Errors
    /// The address has created `limit` sessions in its minute; the error is the rest of that minute.
    pub(super) fn count(
        &self,
        address: IpAddr,
        limit: u32,
        now: Timestamp,
    ) -> Result<(), Duration> {
        let address = customer(address);
        let mut counts = self.counts();
        if counts.len() >= Self::MAX && !counts.contains_key(&address) {
            evict(&mut counts, now);
        }
        let fresh = Count { ends_at: now + MINUTE, sessions: 0 };
        let count = counts.entry(address).or_insert(fresh);
        if !count.is_running(now) {
            *count = fresh;
        }
        if count.sessions >= limit {
            return Err(count.ends_at.since(now));
        }
        count.sessions += 1;
        Ok(())
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Evicts the counts whose minute has ended and, if more than half remain, those with the lowest
/// numbers: many addresses must not hide the one that creates most.
fn evict(counts: &mut HashMap<IpAddr, Count>, now: Timestamp) {
    counts.retain(|_, count| count.is_running(now));
    if counts.len() > AddressCounts::MAX / 2 {
        let mut sessions: Vec<u32> = counts.values().map(|count| count.sessions).collect();
        let middle = sessions.len() / 2;
        let (_, median, _) = sessions.select_nth_unstable(middle);
        let median = *median;
        counts.retain(|_, count| count.sessions > median);
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
    fn limits_sessions_per_minute() {
        let new = AddressCounts::default();
        let one = address("192.0.2.1");
        assert_eq!([(); 3].map(|()| new.count(one, 3, at(10))), [Ok(()); 3]);
        assert_eq!(new.count(one, 3, at(20)), Err(Duration::from_secs(50)));
        assert_eq!(new.count(address("192.0.2.2"), 3, at(20)), Ok(()));
        assert_eq!(new.count(one, 3, at(70)), Ok(()));
        // The clock was set back by an hour.
        assert_eq!(new.count(one, 1, at(-3600)), Ok(()));
    }

    #[test]
    fn ipv6_network_counts_as_one_client() {
        let new = AddressCounts::default();
        assert_eq!(new.count(address("2001:db8::1"), 1, at(0)), Ok(()));
        assert!(new.count(address("2001:db8::2:3"), 1, at(0)).is_err());
        assert_eq!(new.count(address("2001:db8:0:1::1"), 1, at(0)), Ok(()));
    }

    #[test]
    fn many_addresses_do_not_hide_a_busy_one() {
        let new = AddressCounts::default();
        let busy = address("192.0.2.1");
        assert_eq!([(); 2].map(|()| new.count(busy, 2, at(0))), [Ok(()); 2]);
        for number in 0..200_000 {
            let other = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
            assert_eq!(new.count(other, 2, at(1)), Ok(()));
            assert!(new.counts().len() <= AddressCounts::MAX);
        }
        assert!(new.count(busy, 2, at(2)).is_err());
    }
}
