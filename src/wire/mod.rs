//! The JSON of patches, sessions, the policy and problems. No other module knows it.

mod malformed;
mod patch;
mod policy;
mod problem;
mod session;
mod values;

pub(crate) use malformed::Malformed;
pub use patch::{element, expiry, increment, patch, patches, value, values};
pub(crate) use policy::PolicyObject;
pub(crate) use problem::Problem;
pub(crate) use session::{DestroyedObject, EndedObject, SessionObject, SummaryObject, View};
pub(crate) use values::{ValuesObject, keys_header, values_header, values_within};
