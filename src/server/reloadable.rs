//! A handler that can be replaced while it serves.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::Request;
use hyper::body::Incoming;

use super::{Handler, Peer, Responding};

/// A handler that a reload replaces. A request stays with the handler that it started with.
pub(crate) struct Reloadable<H>(ArcSwap<H>);

impl<H> Reloadable<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self(ArcSwap::from_pointee(handler))
    }

    /// Replaces the handler for all requests to come.
    pub(crate) fn replace(&self, handler: H) {
        self.0.store(Arc::new(handler));
    }
}

impl<H: Handler> Handler for Reloadable<H> {
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        self.0.load_full().handle(request, peer)
    }
}

impl<H> fmt::Debug for Reloadable<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable")
    }
}
