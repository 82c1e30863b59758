//! What the admin listener is told.

use crate::server::Address;

/// What the admin listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where operators reach it.
    pub address: Address,
}
