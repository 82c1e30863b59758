//! Texts that the stores on disk and on the network both write.

use std::time::Duration;

use crate::session::record::Expiry;
use crate::time::Timestamp;

/// A lifetime as text: `i` and seconds for idle, `a` and milliseconds since the epoch for an
/// instant, `b` and perhaps seconds for the browser's close.
pub(super) fn expiry(expiry: Expiry) -> String {
    match expiry {
        Expiry::Idle(idle) => format!("i{}", idle.as_secs()),
        Expiry::At(instant) => format!("a{}", instant.as_millis()),
        Expiry::BrowserClose(Some(idle)) => format!("b{}", idle.as_secs()),
        Expiry::BrowserClose(None) => "b".to_owned(),
    }
}

/// The lifetime that [`expiry`] wrote.
pub(super) fn parse_expiry(text: &str) -> Option<Expiry> {
    let (kind, number) = text.split_at_checked(1)?;
    let seconds = |number: &str| number.parse().ok().map(Duration::from_secs);
    Some(match kind {
        "i" => Expiry::Idle(seconds(number)?),
        "a" => Expiry::At(Timestamp::from_millis(number.parse().ok()?)),
        "b" if number.is_empty() => Expiry::BrowserClose(None),
        "b" => Expiry::BrowserClose(Some(seconds(number)?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_read_as_it_was_written() {
        for (kind, text) in [
            (Expiry::Idle(Duration::from_mins(1)), "i60"),
            (Expiry::At(Timestamp::from_millis(7)), "a7"),
            (Expiry::BrowserClose(Some(Duration::from_secs(9))), "b9"),
            (Expiry::BrowserClose(None), "b"),
        ] {
            assert_eq!(expiry(kind), text);
            assert_eq!(parse_expiry(text), Some(kind));
        }
        for text in ["", "x1", "i", "i-1", "a", "é"] {
            assert_eq!(parse_expiry(text), None, "{text}");
        }
    }
}
