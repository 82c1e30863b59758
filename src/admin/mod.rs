//! What operators reach: whether the process lives and is ready, and its metrics. It has a listener
//! of its own.

pub mod config;
