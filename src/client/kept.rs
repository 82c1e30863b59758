//! Connections that are kept between requests: idle HTTP/1 connections, and the shared HTTP/2 connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::http2::Http2Connection;
use super::tls::UpstreamProtocol;

/// The connections to an upstream that are kept for further requests.
#[derive(Debug)]
pub(super) struct KeptConnections {
    timeout: Duration,
    max_idle: usize,
    /// HTTP/1 connections, the least recently used first.
    idle: Mutex<VecDeque<IdleConnection>>,
    /// The HTTP/2 connection that all requests share, if there is one.
    shared: Mutex<Option<SharedConnection>>,
    /// Since the drain began, no connection is kept.
    draining: AtomicBool,
}

#[derive(Debug)]
struct IdleConnection {
    connection: Connection,
    since: Instant,
}

#[derive(Debug)]
struct SharedConnection {
    connection: Arc<Http2Connection>,
    last_used: Instant,
}

impl SharedConnection {
    fn is_expired(&self, timeout: Duration) -> bool {
        // Each request in flight has a reference of its own.
        let is_idle = Arc::strong_count(&self.connection) == 1;
        (is_idle && self.last_used.elapsed() >= timeout) || !self.connection.is_open()
    }
}

impl KeptConnections {
    /// Keeps each connection for at most `timeout` without a request, and at most `max_idle` HTTP/1 connections.
    pub(super) fn new(timeout: Duration, max_idle: usize) -> Self {
        let (idle, shared) = (Mutex::default(), Mutex::default());
        Self { timeout, max_idle, idle, shared, draining: AtomicBool::new(false) }
    }

    /// Returns the shared connection, or takes the idle one that was used last: so few stay in use, and the others
    /// expire.
    pub(super) fn take(&self, protocol: UpstreamProtocol) -> Option<Connection> {
        match protocol {
            UpstreamProtocol::Http1 => {}
            UpstreamProtocol::Http2 | UpstreamProtocol::Alpn => {
                if let Some(connection) = self.share_again() {
                    return Some(Connection::Http2(connection));
                }
            }
        }
        // Also with ALPN: the upstream may have chosen HTTP/1.
        loop {
            let IdleConnection { connection, since } = self.idle().pop_back()?;
            if since.elapsed() < self.timeout && connection.is_ready() {
                return Some(connection);
            }
        }
    }

    fn share_again(&self) -> Option<Arc<Http2Connection>> {
        let mut shared = self.shared();
        drop(shared.take_if(|shared| shared.is_expired(self.timeout)));
        let SharedConnection { connection, last_used } = shared.as_mut()?;
        *last_used = Instant::now();
        Some(Arc::clone(connection))
    }

    /// Shares a new HTTP/2 connection with the requests to come.
    pub(super) fn share(&self, connection: &Arc<Http2Connection>) {
        if !self.is_draining() {
            let connection = Arc::clone(connection);
            *self.shared() = Some(SharedConnection { connection, last_used: Instant::now() });
        }
    }

    /// Keeps a connection whose request is complete.
    pub(super) fn keep(&self, connection: Connection) {
        match connection {
            Connection::Http1(_) if self.is_draining() || self.timeout.is_zero() => {}
            Connection::Http1(_) => {
                let mut idle = self.idle();
                idle.push_back(IdleConnection { connection, since: Instant::now() });
                let excess = if idle.len() > self.max_idle { idle.pop_front() } else { None };
                // A connection is dropped outside of the lock, since that wakes its task.
                drop(idle);
                drop(excess);
            }
            // Shared since it was opened.
            Connection::Http2(_) => {}
        }
    }

    /// Closes expired connections. Returns when the next one expires at the earliest.
    pub(super) fn close_expired(&self) -> Instant {
        drop(self.shared().take_if(|shared| shared.is_expired(self.timeout)));
        let now = Instant::now();
        let mut idle = self.idle();
        let expired = idle.partition_point(|idle| now.duration_since(idle.since) >= self.timeout);
        let expired: Vec<IdleConnection> = idle.drain(..expired).collect();
        let next = idle.front().map_or(now, |oldest| oldest.since) + self.timeout;
        drop(idle);
        drop(expired);
        next
    }

    /// Closes all connections and keeps no further ones. The task of each connection calls this when the drain begins,
    /// so no connection that is kept before outlives the call.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle());
        let shared = self.shared().take();
        drop((idle, shared));
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<IdleConnection>> {
        // Nothing panics while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> MutexGuard<'_, Option<SharedConnection>> {
        // Nothing panics while it is held.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
