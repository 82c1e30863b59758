//! The public proxy's rules for heads: which requests are taken, where they go, and which header
//! fields pass in either direction.
//!
//! Everything here is a pure function over a head, in place; none of it reads a clock, does I/O or
//! knows a session. The order of a request is: [`request::check`], [`request::settle_target`],
//! [`path::names_api`], [`route::Matcher::find`], [`via::Via::append`], [`request::count_hop`],
//! [`request::clean`], [`forwarded::rewrite`]; only then are our own fields added, so that nothing a
//! client sends can take them away again. Of a response: [`response::take_patches`],
//! [`response::clean`], [`caching::protect`], and then our Set-Cookie.

pub mod caching;
pub mod config;
pub mod forwarded;
pub mod hop;
mod host;
mod list;
pub mod names;
pub mod path;
pub mod request;
pub mod response;
pub mod route;
pub mod trailers;
pub mod via;
