//! Times and durations as people write them.

use std::fmt;

use crate::time::Timestamp;

/// A duration in its largest unit, rounded: `3 minutes`, `14 days`.
pub(super) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    // A unit is used from the first value that rounds to one of it: 59 min 59 s is one hour.
    let (unit, name) =
        UNITS.into_iter().find(|(unit, _)| seconds + unit / 120 >= *unit).unwrap_or((1, "second"));
    let count = (seconds + unit / 2) / unit;
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

/// A point in time as HTML: how far it is from now, with the date and time as a tooltip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relative {
    pub(super) time: Timestamp,
    pub(super) now: Timestamp,
}

impl fmt::Display for Relative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, now } = *self;
        let (past, future) = (now.since(time).as_secs(), time.since(now).as_secs());
        write!(f, "<time datetime='{time}' title='{}'>", date(time))?;
        match (past, future) {
            (0, 0) => f.write_str("just now")?,
            (_, 0) => write!(f, "{} ago", duration(past))?,
            _ => write!(f, "in {}", duration(future))?,
        }
        f.write_str("</time>")
    }
}

/// Returns a date and time to the minute: `2026-11-20 11:03 UTC`.
pub(super) fn date(time: Timestamp) -> String {
    let text = time.to_string();
    let (day, clock) = text.split_once('T').unwrap_or((&text, ""));
    format!("{day} {} UTC", clock.get(..5).unwrap_or(clock))
}

/// Formats a time of the session API relative to now; text that is not a time stays as it is.
pub(super) fn relative(text: &str, now: Timestamp) -> String {
    match Timestamp::parse_rfc3339(text) {
        Some(time) => Relative { time, now }.to_string(),
        None => crate::html::Text(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_rounded_unit() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (150, "3 minutes"),
            (3_599, "1 hour"),
            (7_000, "2 hours"),
            (14 * 86_400 - 1, "14 days"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn times_are_relative_to_now() {
        let now = Timestamp::parse_rfc3339("2026-11-20T11:03:12Z").unwrap();
        assert_eq!(date(now), "2026-11-20 11:03 UTC");
        for (text, shown) in [
            ("2026-11-20T11:03:12Z", ">just now<"),
            ("2026-11-20T11:00:12Z", ">3 minutes ago<"),
            ("2026-12-04T11:03:12Z", ">in 14 days<"),
            ("<soon>", "&lt;soon&gt;"),
        ] {
            assert!(relative(text, now).contains(shown), "{text}");
        }
    }
}
