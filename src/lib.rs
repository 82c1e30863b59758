//! Cloakroom: a sidecar reverse proxy that gives sessions to web sites that have none.

pub mod proxy;
pub mod random;
pub mod secret;
pub mod time;
