//! Settings of the admin service.

use crate::server::Address;

/// Settings of the admin service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The address of its listener.
    pub(crate) address: Address,
    /// Host names at which it is served over TCP, besides IP addresses, `localhost` and the hosts of the API.
    pub(crate) hosts: Vec<String>,
}
