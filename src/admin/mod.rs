//! The admin service, on a listener of its own:
//!
//! * `GET /live`: 200 while the process responds.
//! * `GET /ready`: 200 if this instance should receive requests, else 503: from the start until the store was read and
//!   written once, from the announcement of a drain on, and while a store on a disk of this machine cannot be read or
//!   written. A store over the network that fails later fails for all instances, so it takes none of them out. If every
//!   route with sessions has `on_error = "anonymous"`, only the drain counts.
//! * `GET /ready?store`: 200 if the store can be read and written now, else 503.
//! * `GET /metrics`: metrics in the `OpenMetrics` text format.
//! * Pages for operators, as HTML and as JSON (`pages`). Those about sessions need a token (`guard`).

mod attempts;
mod audit;
pub(crate) mod config;
mod cookies;
mod end;
mod findings;
mod graph;
mod guard;
mod history;
mod keys;
mod list;
mod logins;
mod moments;
mod now;
mod now_html;
mod page;
mod pages;
mod problem;
mod rates;
mod readiness;
mod reload;
mod response;
mod route;
mod routing;
mod search;
mod session;
mod slow;
mod summary;
mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tracing::info;

use crate::body::Body;
use crate::metrics::Metrics;
use crate::net::host::OwnNames;
use crate::server::{Address, Handler, Peer, Responding, Tasks};
use crate::session::key_ring::Fingerprint;
use crate::sessions::{ComparedKeys, Probed, Sessions};
use crate::time::Timestamp;

use config::{Config, Tokens};
use guard::{Availability, GuardState};
use history::History;
use keys::Comparison;
use moments::Moments;
use pages::Pages;
use reload::LastReload;

pub(crate) use self::readiness::Readiness;
pub(crate) use self::routing::Routing;

/// The admin service.
#[derive(Debug)]
pub(crate) struct Admin {
    base: Arc<Base>,
    pages: Pages,
}

/// What the service has for as long as the process runs.
#[derive(Debug)]
pub(crate) struct Base {
    readiness: Arc<Readiness>,
    /// The tasks whose drain is reported.
    tasks: Tasks,
    /// The names at which pages are served over TCP. Probes and Prometheus may use any name, and their paths have no secrets
    /// that a page in a browser could read (DNS rebinding).
    own_names: OwnNames,
    state: Arc<State>,
}

/// Settings of the pages, which a reload replaces.
#[derive(Debug)]
pub(crate) struct Settings {
    tokens: Tokens,
    availability: Availability,
    show_values: bool,
    store: StoreName,
    /// The limit on connections.
    connections: u64,
    routing: Routing,
}

/// The store, for operators.
#[derive(Clone, Debug)]
pub(crate) struct StoreName {
    pub(crate) kind: &'static str,
    /// Its URL, without the user and the password.
    pub(crate) url: String,
}

/// What the pages keep in the process.
#[derive(Debug)]
pub(crate) struct State {
    guard: GuardState,
    history: History,
    keys: Comparison,
    reload: LastReload,
    moments: Moments,
}

impl Settings {
    /// Creates settings; `connections` is the limit on connections.
    pub(crate) fn new(
        config: &Config,
        tokens: Tokens,
        store: StoreName,
        connections: usize,
        routing: Routing,
    ) -> Self {
        let availability = Availability::of(config, &tokens);
        let connections = u64::try_from(connections).unwrap_or(u64::MAX);
        let show_values = config.show_values;
        Self { tokens, availability, show_values, store, connections, routing }
    }

    /// Logs that the pages about sessions are off, if they are.
    pub(crate) fn log_availability(&self) {
        if let Availability::Off(reason) = self.availability {
            info!(reason, "admin pages about sessions are off");
        }
    }
}

impl State {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let (guard, keys) = (GuardState::default(), Comparison::default());
        let (reload, moments) = (LastReload::default(), Moments::default());
        Self { guard, history: History::new(metrics), keys, reload, moments }
    }

    /// Notes that the last reload succeeded.
    pub(crate) fn reload_succeeded(&self) {
        self.reload.succeeded();
    }

    /// Keeps why the last reload failed, one cause per line.
    pub(crate) fn reload_failed(&self, causes: &str, now: Timestamp) {
        self.reload.failed(causes, now);
    }

    /// Keeps the result of a comparison of session keys with other instances.
    pub(crate) fn keys_compared(&self, compared: ComparedKeys, now: Timestamp) {
        self.keys.set(compared, now);
    }

    /// Keeps the session keys that other instances have recorded since.
    pub(crate) fn keys_recorded(&self, keys: Vec<Fingerprint>, now: Timestamp) {
        self.keys.set_recorded(keys, now);
    }

    /// Samples the metrics, until the drain.
    pub(crate) async fn record_history(self: Arc<Self>, metrics: Metrics, tasks: Tasks) {
        self.history.record(metrics, tasks).await;
    }

    /// Ends all log-ins if the tokens differ.
    pub(crate) fn tokens_changed(&self, before: &Settings, after: &Settings) {
        if before.tokens != after.tokens {
            self.guard.logins.clear();
        }
    }
}

impl Base {
    /// Creates what reports the drain of `tasks`, and serves pages at `own_names`.
    pub(crate) fn new(
        readiness: Arc<Readiness>,
        tasks: Tasks,
        own_names: OwnNames,
        state: Arc<State>,
    ) -> Self {
        Self { readiness, tasks, own_names, state }
    }
}

impl Admin {
    /// Creates a service for the store of `sessions`. Changes run in `tasks`.
    pub(crate) fn new(
        base: Arc<Base>,
        sessions: Sessions,
        tasks: Tasks,
        settings: Arc<Settings>,
    ) -> Self {
        let (state, readiness) = (Arc::clone(&base.state), Arc::clone(&base.readiness));
        Self { base, pages: Pages { sessions, tasks, settings, state, readiness } }
    }

    fn sessions(&self) -> &Sessions {
        &self.pages.sessions
    }

    async fn ready(&self, query: Option<&str>) -> Response<Body> {
        if self.base.tasks.is_shutdown_announced() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        let is_store_check = |query: &str| query.split('&').any(|part| part == "store");
        let failed = if query.is_some_and(is_store_check) {
            match self.base.readiness.store_works(self.sessions(), &self.base.tasks).await {
                Probed { read: true, write: true } => None,
                Probed { read: false, .. } => Some("the store cannot be read\n"),
                Probed { .. } => Some("the store cannot be written\n"),
            }
        } else if self.base.readiness.is_ready(self.sessions(), &self.base.tasks).await {
            None
        } else {
            Some("the store cannot be read or written\n")
        };
        match failed {
            None => text(StatusCode::OK, "ready\n"),
            Some(failed) => text(StatusCode::SERVICE_UNAVAILABLE, failed),
        }
    }

    async fn probe<B>(&self, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response =
                text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready(request.uri().query()).await,
            _ => self.metrics(),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let shared = self.sessions().shared();
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
            if matches!(request.uri().path(), "/live" | "/ready" | "/metrics") {
                return self.probe(&request).await;
            }
            let is_tcp = matches!(*peer.listener, Address::Tcp(_));
            if is_tcp && !self.base.own_names.admit(request.uri(), request.headers()) {
                return self.pages.refuse(&problem::misdirected(), request.headers());
            }
            let (parts, body) = request.into_parts();
            let body = Body::streaming(body, Some(BODY_IDLE_TIMEOUT));
            self.pages.respond(parts, body, &peer).await
        })
    }
}

/// The time that a client may send nothing of a form.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(5);

fn text(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
