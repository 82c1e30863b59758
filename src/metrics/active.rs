//! The sessions that requests have used lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::label::{Label as _, label};
use crate::time::Timestamp;

label! {
    /// A time in which a session was used.
    pub(crate) Within as "within" {
        FiveMinutes = "5m",
        Hour = "1h",
        Day = "24h",
    }
}

impl Within {
    fn seconds(self) -> i64 {
        match self {
            Self::FiveMinutes => 300,
            Self::Hour => 3600,
            Self::Day => 24 * 3600,
        }
    }
}

/// When each session was used last, in seconds. In shards, so that workers seldom wait for each other.
#[derive(Debug, Default)]
pub(super) struct Active([Mutex<HashMap<u64, i64>>; SHARDS]);

const SHARDS: usize = 16;

/// Most sessions of a shard: a million in all, some 24 MB. More are not counted.
const MAX_IN_SHARD: usize = 1_000_000 / SHARDS;

impl Active {
    /// Notes a use. `session` is random.
    pub(super) fn used(&self, session: u64, now: Timestamp) {
        let place = usize::try_from(session % SHARDS as u64).unwrap_or_default();
        let Some(shard) = self.0.get(place) else { return };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.as_millis() / 1000;
        if let Some(last) = shard.get_mut(&session) {
            *last = now;
        } else if shard.len() < MAX_IN_SHARD {
            shard.insert(session, now);
        }
    }

    /// Counts the sessions of each time, and forgets those of none.
    pub(super) fn count(&self, now: Timestamp) -> [(Within, i64); Within::ALL.len()] {
        let now = now.as_millis() / 1000;
        let mut counts = [Within::FiveMinutes, Within::Hour, Within::Day].map(|within| (within, 0));
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, last| now - *last < Within::Day.seconds());
            for last in shard.values() {
                for (within, count) in &mut counts {
                    *count += i64::from(now - last < within.seconds());
                }
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_session_counts_once() {
        let active = Active::default();
        let start = Timestamp::from_millis(1_000_000);
        let counts =
            |after: u64| active.count(start + Duration::from_secs(after)).map(|(_, count)| count);
        active.used(1, start);
        active.used(1, start + Duration::from_secs(10));
        active.used(2, start);
        assert_eq!(counts(10), [2, 2, 2]);
        assert_eq!(counts(300), [1, 2, 2]);
        assert_eq!(counts(3600), [0, 1, 2]);
        assert_eq!(counts(24 * 3600 + 9), [0, 0, 1]);
        assert_eq!(counts(24 * 3600 + 10), [0, 0, 0]);
    }
}
