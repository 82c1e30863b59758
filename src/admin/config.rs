//! Settings of the admin service.

use std::path::PathBuf;

use crate::secret::Secret;
use crate::server::{Address, TlsConfig};

/// Settings of the admin service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The address of its listener.
    pub(crate) address: Address,
    /// TLS of its listener, if it has TLS.
    pub(crate) tls: Option<TlsConfig>,
    /// Host names at which it is served over TCP, besides IP addresses, `localhost` and the hosts of the API.
    pub(crate) hosts: Vec<String>,
    /// The token that opens all pages and permits changes.
    pub(crate) token: TokenSource,
    /// The token that opens all pages, and permits neither values nor changes.
    pub(crate) read_token: Option<Secret>,
    /// Whether the values of a session may be shown.
    pub(crate) show_values: bool,
}

/// The source of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenSource {
    None,
    /// From the configuration.
    Given(Secret),
    /// In this file, which a start creates if it is missing.
    File(PathBuf),
}

impl Config {
    /// Returns whether a token that is sent to the listener cannot be read on the network.
    pub(crate) fn is_private(&self) -> bool {
        self.tls.is_some() || self.is_local()
    }

    /// Returns whether only this machine reaches the listener.
    pub(crate) fn is_local(&self) -> bool {
        match &self.address {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }
}

/// The tokens of the admin pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Opens all pages, and permits changes.
    pub(crate) full: Option<Secret>,
    /// Opens all pages, and permits neither values nor changes.
    pub(crate) read: Option<Secret>,
}
