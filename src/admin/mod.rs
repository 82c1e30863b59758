//! What operators reach, on a listener of its own:
//!
//! * `GET /live`: 200 as long as the process answers.
//! * `GET /ready`: 200 where requests may come: the store answers, and no drain has begun or is about
//!   to; else 503.
//! * `GET /metrics`: the counters, as Prometheus reads them.

pub mod config;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::Body;
use crate::server::{Handler, Peer, Tasks};
use crate::sessions::Sessions;

/// The admin service.
#[derive(Debug)]
pub struct Admin {
    sessions: Sessions,
    tasks: Tasks,
}

impl Admin {
    /// A service that asks `sessions` whether the store answers, and `tasks` whether a drain is near.
    pub fn new(sessions: Sessions, tasks: Tasks) -> Self {
        Self { sessions, tasks }
    }

    async fn ready(&self) -> Response<Body> {
        if self.tasks.is_leaving() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        match self.sessions.ping().await {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n"),
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
    async fn handle(&self, request: Request<Incoming>, _peer: Peer) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD work here\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready().await,
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
