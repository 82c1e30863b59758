//! Cloakroom: a sidecar reverse proxy that gives sessions to web sites that have none.

pub mod metrics;
pub mod random;
pub mod secret;
pub mod session;
pub mod sessions;
pub mod store;
pub mod time;
