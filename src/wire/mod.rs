//! The JSON of patches, sessions and problems. No other module knows it.

mod malformed;
mod patch;
mod problem;
mod session;
mod values;

pub(crate) use malformed::Malformed;
pub use patch::{element, expiry, increment, patch, patches, value, values};
pub(crate) use problem::Problem;
pub(crate) use session::{DestroyedObject, SessionObject, View};
pub(crate) use values::{ValuesObject, keys_header, values_header, values_within};
