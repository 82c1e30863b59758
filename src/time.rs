//! Points in time, and the one place that reads the clock.
//!
//! Everything else takes `now` as an argument, so that tests move time by hand.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

/// The least difference of the clocks of two machines that an operator has to look at.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// A point in time, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The last millisecond of the year 9999, the maximum of RFC 3339.
    pub(crate) const MAX: Self = Self(253_402_300_799_999);

    /// Creates a timestamp from milliseconds since the epoch, clamped to the range from 1970 to [`Self::MAX`].
    pub(crate) fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(0, Self::MAX.0))
    }

    /// Returns the milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns the duration since `earlier`, or zero if that is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Parses an RFC 3339 timestamp with any offset. Returns `None` if it is invalid or outside 1970 to 9999.
    pub(crate) fn parse_rfc3339(text: &str) -> Option<Self> {
        let instant = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let millis = i64::try_from(instant.unix_timestamp_nanos().div_euclid(1_000_000)).ok()?;
        (0..=Self::MAX.0).contains(&millis).then_some(Self(millis))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(millis))
    }
}

/// Writes RFC 3339 in UTC with milliseconds: `2026-11-20T11:03:12.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = OffsetDateTime::from_unix_timestamp(self.0.div_euclid(1_000))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            instant.year(),
            u8::from(instant.month()),
            instant.day(),
            instant.hour(),
            instant.minute(),
            instant.second(),
            self.0.rem_euclid(1_000),
        )
    }
}

/// Source of the current time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's wall clock.
    #[default]
    System,
    /// A clock for tests, in milliseconds since the epoch, that only [`Clock::advance`] moves.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Creates a manual clock that is set to `now`.
    pub fn manual(now: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(now.0)))
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        Timestamp::default() + self.since_epoch()
    }

    /// Returns the current time in nanoseconds since the epoch, as precise as the system has it. Collectors of spans order
    /// those of several machines by it.
    pub(crate) fn nanoseconds(&self) -> u64 {
        u64::try_from(self.since_epoch().as_nanos()).unwrap_or(u64::MAX)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn since_epoch(&self) -> Duration {
        match self {
            Self::System => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Self::Manual(millis) => {
                let now = Timestamp::from_millis(millis.load(Ordering::Relaxed));
                now.since(Timestamp::default())
            }
        }
    }

    /// Moves a manual clock forward. Has no effect on the system clock.
    pub fn advance(&self, duration: Duration) {
        if let Self::Manual(millis) = self {
            let step = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(step, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_round_trip_as_rfc_3339() {
        let instant = Timestamp::from_millis(1_795_172_592_007);
        assert_eq!(instant.to_string(), "2026-11-20T11:03:12.007Z");
        assert_eq!(Timestamp::parse_rfc3339(&instant.to_string()), Some(instant));
        assert_eq!(Timestamp::parse_rfc3339("2026-11-20T12:03:12.007+01:00"), Some(instant));
        assert_eq!(Timestamp::parse_rfc3339("2026-11-20"), None);
        assert_eq!(Timestamp::parse_rfc3339("1969-12-31T23:59:59Z"), None);
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn sums_stay_in_range() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::default() - Duration::MAX, Timestamp::default());
    }
}
