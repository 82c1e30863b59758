//! Network vocabulary: host names, addresses, schemes, trusted proxies, sockets, PEM files and file descriptors.

pub(crate) mod descriptors;
pub(crate) mod host;
pub(crate) mod ip;
pub(crate) mod pem;
pub mod scheme;
pub(crate) mod socket;
pub mod trust;
