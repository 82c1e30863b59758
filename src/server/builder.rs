//! hyper's connection builders, set up from [`Limits`].

use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;

use super::Limits;
use super::streams::Streams;

/// Bytes that hyper may buffer of a connection in either direction, unless a head may be larger.
const BUFFER_BYTES: usize = 64 * 1024;

/// hyper's default for the fields of a head. Up to this number, it keeps them on the stack.
const DEFAULT_MAX_HEADERS: usize = 100;

/// Concurrent requests on one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 100;

/// Interval of HTTP/2 pings, and the time that a client has to answer one.
const PING: Duration = Duration::from_secs(20);

pub(super) fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // A client that closes its side is gone; its handler is dropped.
        .half_close(false)
        // `ConnectionState` has separate limits for the wait for a request and for its head; hyper has one for both.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.saturating_add(4096).max(BUFFER_BYTES));
    // Setting it, even to the default, moves the fields to the heap.
    if limits.headers != DEFAULT_MAX_HEADERS {
        builder.max_headers(limits.headers);
    }
    builder
}

pub(super) fn http2(limits: &Limits, streams: Streams) -> http2::Builder<Streams> {
    let header_bytes = u32::try_from(limits.header_bytes.max(BUFFER_BYTES)).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(header_bytes)
        // WebSocket over a stream (RFC 8441).
        .enable_connect_protocol()
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}
