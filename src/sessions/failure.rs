//! Errors of calls on a session.

use std::time::Duration;

use crate::session::patch::Refusal;
use crate::store::Error as StoreError;

/// An error of a call on a session. Nothing has changed, unless the variant says that this is not
/// known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The change was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The change needs a cookie, and the response's head has been sent.
    #[error("the response's head has been sent, so no cookie can be set any more")]
    ResponseCommitted,
    /// The request brought the cookies of two sessions.
    #[error("the request brought the cookies of two sessions")]
    AmbiguousCookie,
    /// No session has the id.
    #[error("there is no such session")]
    NoSuchSession,
    /// The principal has as many sessions as the policy allows.
    #[error("the principal has reached its limit of sessions; log one of them out")]
    TooManySessions,
    /// The client's address has created as many sessions as the policy allows.
    #[error("too many new sessions from this client's address; try again later")]
    TooManyNewSessions {
        /// Until one more may be created: at most a minute.
        retry_after: Duration,
    },
    /// The store did not answer when the request arrived.
    #[error("the store did not answer when the request arrived")]
    NotLoaded,
    /// Only the instance that forwarded the request can do this.
    #[error("only the instance that forwarded the request can do this")]
    OtherInstance,
    /// Sessions live in cookies, and the call needs one of which there is no request here.
    #[error(
        "sessions live in their clients' cookies: they cannot be listed or destroyed from here"
    )]
    NoStore,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
