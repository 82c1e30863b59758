//! Outcomes of reading a body.

use crate::metrics::ResponseEnd;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was read to its end.
    Complete,
    /// It was truncated, malformed or too large.
    Broken,
    /// Its sender was silent for too long, or too slow.
    Idle,
    /// It was interrupted; see [`Body::interruptible`](super::Body::interruptible).
    Interrupted,
    /// Its receiver did not read for too long.
    Stalled,
    /// It was aborted at the drain's deadline.
    Drained,
    /// It was dropped before its end: its receiver is gone.
    Dropped,
}

impl End {
    /// Returns how a response with this end is logged and counted.
    pub(crate) fn reason(self) -> ResponseEnd {
        match self {
            Self::Complete => ResponseEnd::Complete,
            Self::Broken => ResponseEnd::Broken,
            Self::Idle => ResponseEnd::Idle,
            Self::Interrupted => ResponseEnd::SessionEnded,
            Self::Stalled => ResponseEnd::Stalled,
            Self::Drained => ResponseEnd::Drained,
            Self::Dropped => ResponseEnd::Dropped,
        }
    }
}

/// Why the rest of a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender was silent for longer than the idle timeout, or slower than the minimum rate.
    #[error("the body's sender was silent for too long, or too slow")]
    Idle,
    /// It exceeds the limit set by [`Body::with_limit`](super::Body::with_limit).
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It was interrupted; see [`Body::interruptible`](super::Body::interruptible).
    #[error("the body was interrupted")]
    Interrupted,
    /// The connection closed mid-body, or the body is malformed.
    #[error("the body was truncated or is malformed")]
    Broken(#[source] hyper::Error),
}

impl BodyError {
    pub(super) fn end(&self) -> End {
        match self {
            Self::Idle => End::Idle,
            Self::Interrupted => End::Interrupted,
            Self::TooLarge | Self::Broken(_) => End::Broken,
        }
    }
}

/// Why a body could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// It exceeds the limit.
    #[error("the body is larger than allowed")]
    TooLarge,
    /// It did not end by the deadline, or its sender was silent for too long.
    #[error("the body took too long")]
    TimedOut,
    /// The connection closed mid-body, or the body is malformed.
    #[error(transparent)]
    Broken(BodyError),
}

impl From<BodyError> for CollectError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Idle => Self::TimedOut,
            BodyError::TooLarge => Self::TooLarge,
            broken @ (BodyError::Broken(_) | BodyError::Interrupted) => Self::Broken(broken),
        }
    }
}
