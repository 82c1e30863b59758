//! The integration tests: a real proxy on real sockets, an upstream that knows no sessions, and
//! clients that keep cookies as browsers do.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and knows its environment"
)]

mod api;
mod browser;
mod caches;
mod concurrency;
mod config;
mod cookies;
mod examples;
mod header_exchange;
mod rotation;
mod support;
mod tidy;

mod drain;
mod narrow_way;
