//! Why a store on disk did not do it. One fault may be told to a whole group, so it can be cloned.

use std::error::Error as Cause;
use std::sync::Arc;

use super::Error;

/// An [`Error`] that can be told to several.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    kind: Kind,
    cause: Arc<dyn Cause + Send + Sync>,
}

/// Which [`Error`] it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Unavailable,
    OutcomeUnknown,
    Full,
    Corrupt,
}

impl Fault {
    pub(super) fn new(kind: Kind, cause: impl Cause + Send + Sync + 'static) -> Self {
        Self { kind, cause: Arc::new(cause) }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let cause = Box::new(fault.cause);
        match fault.kind {
            Kind::Unavailable => Self::Unavailable(cause),
            Kind::OutcomeUnknown => Self::OutcomeUnknown(cause),
            Kind::Full => Self::Full,
            Kind::Corrupt => Self::Corrupt(cause),
        }
    }
}
