//! The time of a line: RFC 3339 in UTC with microseconds.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::time::Clock;

/// What the times of one second share, such as `2026-11-20T11:03:12`.
type Second = [u8; 19];

thread_local! {
    /// The last second of a line, counted from the epoch, and its text.
    static LAST: Cell<(u64, Second)> = const { Cell::new((u64::MAX, [0; 19])) };
}

/// The current time, for the lines of events.
#[derive(Debug)]
pub(super) struct Time;

impl FormatTime for Time {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(32);
        push(&mut text);
        writer.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Appends the current time.
pub(super) fn push(line: &mut Vec<u8>) {
    push_nanoseconds(line, Clock::System.nanoseconds());
}

fn push_nanoseconds(line: &mut Vec<u8>, now: u64) {
    let now = Duration::from_nanos(now);
    let (mut second, mut text) = LAST.get();
    if second != now.as_secs() {
        second = now.as_secs();
        let whole = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(second));
        text = whole.to_string().as_bytes().first_chunk().copied().unwrap_or_default();
        LAST.set((second, text));
    }
    line.extend_from_slice(&text);
    line.push(b'.');
    // Seven digits, of which the last six count: so they have leading zeros.
    let mut number = itoa::Buffer::new();
    let micros = number.format(1_000_000 + now.subsec_micros()).as_bytes();
    line.extend_from_slice(micros.split_first().map_or(&[], |(_, digits)| digits));
    line.push(b'Z');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_is_that_of_humantime(seconds in 0_u64..3, start: u32, nanoseconds in 0_u64..1_000_000_000) {
            for second in u64::from(start)..=u64::from(start) + seconds {
                let now = second * 1_000_000_000 + nanoseconds;
                let mut text = Vec::new();
                push_nanoseconds(&mut text, now);
                let expected = humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_nanos(now));
                prop_assert_eq!(String::from_utf8(text).unwrap(), expected.to_string());
            }
        }
    }
}
