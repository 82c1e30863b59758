//! Wall-clock times of moments that are measured by the monotonic clock.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::time::Timestamp;

/// The wall-clock times of moments. Each is computed once, at the first look, so that it stays the same at the next ones.
#[derive(Debug, Default)]
pub(super) struct Moments(Mutex<HashMap<Instant, Timestamp>>);

impl Moments {
    /// Faults begin rarely. If there are more, the next look computes their times again.
    const MAX: usize = 1000;

    /// Returns the time of a moment, in the past or the future; `now` is the current time.
    pub(super) fn time(&self, moment: Instant, now: Timestamp) -> Timestamp {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= Self::MAX {
            times.clear();
        }
        *times.entry(moment).or_insert_with(|| {
            let current = Instant::now();
            match current.checked_duration_since(moment) {
                Some(age) => now - age,
                None => now + moment.duration_since(current),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_of_a_moment_stays_the_same() {
        let (moments, now) = (Moments::default(), Timestamp::from_millis(5_000_000));
        let moment = Instant::now();
        let first = moments.time(moment, now);
        assert!(first <= now && now.since(first) < Duration::from_hours(1));
        assert_eq!(moments.time(moment, now + Duration::from_secs(1)), first);
        let later = moments.time(moment + Duration::from_hours(1), now);
        assert!(later > now && later <= now + Duration::from_hours(1));
        for number in 0..=Moments::MAX as u64 {
            moments.time(moment + Duration::from_nanos(number), now);
        }
        assert!(moments.0.lock().expect("no panic").len() <= Moments::MAX);
    }
}
