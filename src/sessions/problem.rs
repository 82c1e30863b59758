//! Problem details (RFC 9457) of errors of sessions and of the store: the stable code of each.

use super::failure::Failure;
use crate::session::patch::Refusal;
use crate::store::Error as StoreError;
use crate::wire::Problem;

/// The code if the request has ended, or the instance that forwarded it is gone.
pub(crate) const REQUEST_GONE: &str = "request_gone";

/// The code if there is no value with a key.
pub(crate) const NO_SUCH_VALUE: &str = "no_such_value";

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let detail = failure.to_string();
        match failure {
            Failure::Refused(refusal) => refused(&refusal, detail),
            Failure::ResponseCommitted => Self::new(409, "response_committed", detail),
            Failure::AmbiguousCookie => Self::new(409, "ambiguous_cookie", detail),
            Failure::TooManySessions => Self::new(409, "too_many_sessions", detail),
            Failure::TooManyNewSessions { retry_after } => Self {
                retry_after: Some(retry_after),
                ..Self::new(503, "too_many_new_sessions", detail)
            },
            Failure::NoSuchSession => Self::new(404, "no_such_session", detail),
            Failure::OtherInstance => Self::new(410, REQUEST_GONE, detail),
            Failure::NoStore => Self::new(501, "not_supported", detail),
            Failure::NotLoaded => Self::new(503, "store_unavailable", detail),
            Failure::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error {
            StoreError::Unavailable(_) => Self::new(503, "store_unavailable", detail),
            StoreError::Full(_) => Self::new(503, "store_full", detail),
            StoreError::OutcomeUnknown(_) => Self::new(504, "outcome_unknown", detail),
            StoreError::Corrupt(_) => Self::internal(),
        }
    }
}

fn refused(refusal: &Refusal, detail: String) -> Problem {
    match refusal {
        Refusal::Gone | Refusal::Ended => Problem::new(409, "session_gone", detail),
        Refusal::Rotated | Refusal::OtherPrincipal => Problem::new(409, "session_rotated", detail),
        Refusal::VersionMoved | Refusal::ValueMoved => Problem::new(412, "version_moved", detail),
        Refusal::ValueExists => Problem::new(412, "value_exists", detail),
        Refusal::NoSuchValue => Problem::new(404, NO_SUCH_VALUE, "there is no value with this key"),
        Refusal::NotAnInteger(_) => Problem::new(422, "not_an_integer", detail),
        Refusal::OutOfRange(_) => Problem::new(422, "out_of_range", detail),
        Refusal::NotAnArray(_) => Problem::new(422, "not_an_array", detail),
        Refusal::NotAnObject(_) => Problem::new(422, "not_an_object", detail),
        Refusal::TooManyValues => Problem::new(413, "too_many_values", detail),
        Refusal::TooLarge => Problem::new(413, "session_too_large", detail),
    }
}
