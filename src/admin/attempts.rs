//! The limit on wrong tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::net::trust::customer;
use crate::time::Timestamp;

/// The wrong tokens of the last minute, by IPv4 address or IPv6 /64 network; clients of a Unix socket are one.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Option<IpAddr>, Failures>>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    /// The end of the minute that began with the first one.
    ends_at: Timestamp,
    count: u32,
}

impl Failures {
    fn is_running(&self, now: Timestamp) -> bool {
        // The upper bound is for a clock that was set back.
        now < self.ends_at && self.ends_at <= now + MINUTE
    }
}

const MINUTE: Duration = Duration::from_mins(1);

impl Attempts {
    /// Wrong tokens that a client may send in a minute. After that, right ones are refused too: otherwise the limit would
    /// say which are wrong, and not limit the guesses.
    pub(super) const LIMIT: u32 = 5;

    /// Clients that are counted at the same time. While there are more, further ones are refused.
    const MAX: usize = 1000;

    /// Checks whether a client may send another token.
    ///
    /// # Errors
    /// It may not for this duration.
    pub(super) fn check(&self, client: Option<IpAddr>, now: Timestamp) -> Result<(), Duration> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = clients.get(&client.map(customer));
        match failures.filter(|failures| failures.is_running(now)) {
            Some(failures) if failures.count >= Self::LIMIT => Err(failures.ends_at.since(now)),
            Some(_) => Ok(()),
            None if clients.len() < Self::MAX => Ok(()),
            None => {
                clients.retain(|_, failures| failures.is_running(now));
                if clients.len() < Self::MAX { Ok(()) } else { Err(MINUTE) }
            }
        }
    }

    /// Counts a wrong token.
    pub(super) fn failed(&self, client: Option<IpAddr>, now: Timestamp) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Failures { ends_at: now + MINUTE, count: 0 };
        let failures = clients.entry(client.map(customer)).or_insert(fresh);
        if !failures.is_running(now) {
            *failures = fresh;
        }
        failures.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_client_may_fail_five_times_a_minute() {
        let attempts = Attempts::default();
        let (one, other) = (Some(Ipv4Addr::LOCALHOST.into()), None);
        let start = Timestamp::from_millis(1_000_000);
        for _ in 0..Attempts::LIMIT {
            assert_eq!(attempts.check(one, start), Ok(()));
            attempts.failed(one, start);
        }
        let later = start + Duration::from_secs(50);
        assert_eq!(attempts.check(one, later), Err(Duration::from_secs(10)));
        assert_eq!(attempts.check(other, later), Ok(()));
        assert_eq!(attempts.check(one, start + MINUTE), Ok(()));
        assert_eq!(
            attempts.check(one, Timestamp::from_millis(0)),
            Ok(()),
            "the clock was set back"
        );
    }

    #[test]
    fn the_number_of_clients_is_bounded() {
        let attempts = Attempts::default();
        let now = Timestamp::from_millis(0);
        let client = |number: u32| Some(Ipv4Addr::from(number).into());
        for number in 0..u32::try_from(Attempts::MAX).expect("a small number") {
            attempts.failed(client(number), now);
        }
        assert_eq!(attempts.check(client(5), now), Ok(()));
        assert_eq!(attempts.check(client(5000), now), Err(MINUTE));
        assert_eq!(attempts.check(client(5000), now + MINUTE), Ok(()));
    }
}
