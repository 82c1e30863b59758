//! Addresses and sockets: host names, schemes, trusted proxies, PEM files, file descriptors.

pub(crate) mod descriptors;
pub(crate) mod host;
pub mod pem;
pub mod scheme;
pub(crate) mod socket;
pub mod trust;
