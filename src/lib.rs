//! Cloakroom: a sidecar reverse proxy that gives sessions to web sites that have none.

pub mod admin;
pub mod api;
pub mod app;
pub mod body;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod log;
pub mod metrics;
pub mod proxy;
pub mod random;
pub mod secret;
pub mod server;
pub mod session;
pub mod sessions;
mod socket;
pub mod store;
mod tasks;
pub mod time;
pub mod wire;
