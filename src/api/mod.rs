//! The session API: how upstreams read and write the session of the request that they handle, and
//! back offices any session. It has a listener of its own and does not know the public proxy.

pub mod config;
