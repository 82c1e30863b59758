//! Errors in the JSON that upstreams send.

use crate::session::json::JsonError;
use crate::session::record::{Key, Principal};

/// An error in a JSON text that an upstream sent. The message is for its developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body is not valid JSON.
    #[error("the body is not JSON: {0}")]
    Json(#[from] JsonError),
    /// The lines of `X-Session-Patch`, joined by commas, are not valid JSON.
    #[error(
        "header X-Session-Patch, byte {at}: {reason}; write JSON, and text outside ASCII in it as \\uXXXX \
         or in UTF-8"
    )]
    Header {
        /// The offset of the error, in bytes.
        at: usize,
        /// The error.
        reason: String,
    },
    /// The JSON is not a patch.
    #[error("{0}")]
    Patch(String),
    /// A member is not an expiry.
    #[error(
        "an expiry is {{\"idle\": SECONDS of at least 1}}, {{\"at\": RFC 3339 instant or UNIX seconds}}, \
         {{\"browser_close\": true}} (with idle in addition if wanted), or null"
    )]
    Expiry,
    /// A member's name is not a key.
    #[error("a key is text of 1 to {max} bytes", max = Key::MAX_BYTES)]
    Key,
    /// A member is not a principal.
    #[error(
        "a principal is text of 1 to {max} bytes without control characters, and without white space at either end, \
         or null to log out",
        max = Principal::MAX_BYTES
    )]
    Principal,
    /// A member is not a 64-bit integer.
    #[error("an increment is an integer of 64 bits")]
    Increment,
    /// A member's elements to append are not an array.
    #[error("the elements to append to {:?} are an array", .0.as_str())]
    NotAnArray(Key),
    /// A member's changes to merge are not an object.
    #[error("the members to merge into {:?} are an object", .0.as_str())]
    NotAnObject(Key),
}
