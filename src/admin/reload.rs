//! The last reload of the configuration, if it failed.

use std::sync::{Mutex, PoisonError};

use crate::time::Timestamp;

/// A reload that failed: the running configuration was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FailedReload {
    pub(super) at: Timestamp,
    /// At most [`MAX_CAUSE`] characters on one line.
    pub(super) cause: String,
}

/// The last reload.
#[derive(Debug, Default)]
pub(super) struct LastReload(Mutex<Option<FailedReload>>);

/// The page shows as much of a cause. The log has all of it.
const MAX_CAUSE: usize = 300;

impl LastReload {
    pub(super) fn succeeded(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps the cause of a failure. A configuration may have several errors, one per line.
    pub(super) fn failed(&self, causes: &str, at: Timestamp) {
        let failed = FailedReload { at, cause: abridged(causes) };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
    }

    pub(super) fn failure(&self) -> Option<FailedReload> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the first line, cut if it is long, and the number of the others.
fn abridged(causes: &str) -> String {
    let mut lines = causes.lines();
    let first = lines.next().unwrap_or_default();
    let mut cause: String = first.chars().take(MAX_CAUSE).collect();
    if cause.len() < first.len() {
        cause.push('…');
    }
    match lines.count() {
        0 => cause,
        1 => format!("{cause} (and 1 more error)"),
        more => format!("{cause} (and {more} more errors)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_abridged() {
        assert_eq!(abridged("a.toml:1:2: wrong"), "a.toml:1:2: wrong");
        assert_eq!(abridged("one\ntwo"), "one (and 1 more error)");
        assert_eq!(abridged("one\ntwo\nthree"), "one (and 2 more errors)");
        let long = "é".repeat(MAX_CAUSE);
        assert_eq!(abridged(&long), long);
        assert_eq!(abridged(&format!("{long}é")), format!("{long}…"));
    }
}
