//! The admin service, on a listener of its own:
//!
//! * `GET /live`: 200 as long as the process answers.
//! * `GET /ready`: 200 if requests should come here, else 503: from the start until the store was
//!   read and written once, from the announcement of a drain on, and while a store on this machine's
//!   disk cannot be read or written. A store over the network that fails later fails for all
//!   instances, and takes none of them out. If every route with sessions says
//!   `on_error = "anonymous"`, only the drain counts.
//! * `GET /ready?store`: 200 if the store can be read and written now, else 503.
//! * `GET /metrics`: the counters, in the `OpenMetrics` text format.

pub mod config;
mod readiness;

use std::sync::Arc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::Body;
use crate::net::host::OwnNames;
use crate::server::{Address, Handler, Peer, Tasks};
use crate::sessions::{Probed, Sessions};

pub use self::readiness::Readiness;

/// The admin service.
#[derive(Debug)]
pub struct Admin {
    sessions: Sessions,
    readiness: Arc<Readiness>,
    tasks: Tasks,
    own_names: OwnNames,
}

impl Admin {
    /// A service that probes the store of `sessions`, and asks `tasks` whether a drain is near. Over TCP
    /// it answers to `own_names`, except at the paths that probes and Prometheus ask for, which tell
    /// nothing that is worth more to a page in a browser.
    pub fn new(
        sessions: Sessions,
        readiness: Arc<Readiness>,
        tasks: Tasks,
        own_names: OwnNames,
    ) -> Self {
        Self { sessions, readiness, tasks, own_names }
    }

    async fn ready(&self, query: Option<&str>) -> Response<Body> {
        if self.tasks.is_shutdown_announced() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        let asks_store = |query: &str| query.split('&').any(|part| part == "store");
        let failed = if query.is_some_and(asks_store) {
            match self.readiness.store_works(&self.sessions, &self.tasks).await {
                Probed { read: true, write: true } => None,
                Probed { read: false, .. } => Some("the store cannot be read\n"),
                Probed { .. } => Some("the store cannot be written\n"),
            }
        } else if self.readiness.is_ready(&self.sessions, &self.tasks).await {
            None
        } else {
            Some("the store cannot be read or written\n")
        };
        match failed {
            None => text(StatusCode::OK, "ready\n"),
            Some(failed) => text(StatusCode::SERVICE_UNAVAILABLE, failed),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let mut response = text(StatusCode::OK, self.sessions.shared().metrics.text());
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }
}

impl Handler for Admin {
    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let is_open = matches!(request.uri().path(), "/live" | "/ready" | "/metrics");
        let is_tcp = matches!(*peer.listener, Address::Tcp(_));
        if is_tcp && !is_open && !self.own_names.admit(request.uri(), request.headers()) {
            return text(
                StatusCode::MISDIRECTED_REQUEST,
                "this listener does not answer to the host name of the request; see [admin] hosts\n",
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD work here\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready(request.uri().query()).await,
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "here are /live, /ready and /metrics\n"),
        }
    }
}

fn text(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
