//! What the admin listener is told.

use crate::server::Address;

/// What the admin listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where operators reach it.
    pub address: Address,
    /// Names that it answers to over TCP, besides IP addresses, `localhost` and the hosts of the API.
    pub hosts: Vec<String>,
}
