//! A service that can be replaced while it serves.

use std::fmt;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::body::Incoming;

use super::{Handler, Peer};
use crate::body::Body;

/// The service that stands now. A request that has begun goes on with the one that it began with.
pub struct Reloadable<H>(ArcSwap<H>);

impl<H> Reloadable<H> {
    /// This one, until it is replaced.
    pub fn new(handler: H) -> Self {
        Self(ArcSwap::from_pointee(handler))
    }

    /// Another one, from the next request on.
    pub fn replace(&self, handler: H) {
        self.0.store(std::sync::Arc::new(handler));
    }
}

impl<H: Handler> Handler for Reloadable<H> {
    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let handler = self.0.load_full();
        handler.handle(request, peer).await
    }
}

impl<H> fmt::Debug for Reloadable<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable")
    }
}
