//! Errors of the stores on disk. One fault may be reported to a whole group, so it can be cloned.

use std::error::Error as Cause;
use std::fmt;
use std::sync::Arc;

use super::Error;

/// An [`Error`] that can be reported to several callers.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    kind: Kind,
    cause: Arc<dyn Cause + Send + Sync>,
}

/// The kind of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unavailable,
    OutcomeUnknown,
    Full,
    /// The record cannot be read.
    Corrupt,
    /// The file that holds all records is damaged: none of its records is reliable.
    Damaged,
}

impl Fault {
    pub(super) fn new(kind: Kind, cause: impl Cause + Send + Sync + 'static) -> Self {
        Self { kind, cause: Arc::new(cause) }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let cause = Box::new(fault.cause);
        match fault.kind {
            Kind::Unavailable | Kind::Damaged => Self::Unavailable(cause),
            Kind::OutcomeUnknown => Self::OutcomeUnknown(cause),
            Kind::Full => Self::Full(cause),
            Kind::Corrupt => Self::Corrupt(cause),
        }
    }
}
