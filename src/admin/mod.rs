//! The admin service, on a listener of its own:
//!
//! * `GET /live`: 200 while the process responds.
//! * `GET /ready`: 200 if this instance should receive requests, else 503: from the start until the store was read and
//!   written once, from the announcement of a drain on, and while a store on a disk of this machine cannot be read or
//!   written. A store over the network that fails later fails for all instances, so it takes none of them out. If every
//!   route with sessions has `on_error = "anonymous"`, only the drain counts.
//! * `GET /ready?store`: 200 if the store can be read and written now, else 503.
//! * `GET /metrics`: metrics in the `OpenMetrics` text format.

pub(crate) mod config;
mod readiness;

use std::sync::Arc;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::Body;
use crate::net::host::OwnNames;
use crate::server::{Address, Handler, Peer, Responding, Tasks};
use crate::sessions::{Probed, Sessions};

pub(crate) use self::readiness::Readiness;

/// The admin service.
#[derive(Debug)]
pub(crate) struct Admin {
    sessions: Sessions,
    readiness: Arc<Readiness>,
    tasks: Tasks,
    own_names: OwnNames,
}

impl Admin {
    /// Creates a service that probes the store of `sessions`, and reports the drain of `tasks`. Over TCP other paths are
    /// served only at `own_names`. Probes and Prometheus may use any name, and their paths have no secrets that a page in a
    /// browser could read (DNS rebinding).
    pub(crate) fn new(
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
        let is_store_check = |query: &str| query.split('&').any(|part| part == "store");
        let failed = if query.is_some_and(is_store_check) {
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
        let shared = self.sessions.shared();
        shared.metrics.count_active_sessions(shared.clock.now());
        let mut response = text(StatusCode::OK, shared.metrics.text());
        let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }
}

impl Handler for Admin {
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        Box::pin(async move {
            let is_open = matches!(request.uri().path(), "/live" | "/ready" | "/metrics");
            let is_tcp = matches!(*peer.listener, Address::Tcp(_));
            if is_tcp && !is_open && !self.own_names.admit(request.uri(), request.headers()) {
                return text(
                    StatusCode::MISDIRECTED_REQUEST,
                    "the host name of the request is not one of this listener; see [admin] hosts\n",
                );
            }
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                let mut response =
                    text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                return response;
            }
            match request.uri().path() {
                "/live" => text(StatusCode::OK, "live\n"),
                "/ready" => self.ready(request.uri().query()).await,
                "/metrics" => self.metrics(),
                _ => {
                    text(StatusCode::NOT_FOUND, "not found; paths are /live, /ready and /metrics\n")
                }
            }
        })
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
