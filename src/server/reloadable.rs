//! A handler that can be replaced while it serves.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;

use super::{Handler, Peer};
use crate::body::Body;

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
    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        // A guard would be cheaper, but takes one of the few that each thread has for as long as the request lasts.
        let handler = self.0.load_full();
        handler.handle(request, peer).await
    }
}

impl<H> fmt::Debug for Reloadable<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable")
    }
}
