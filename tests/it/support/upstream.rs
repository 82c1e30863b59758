//! The site behind the proxy: it has no sessions of its own and runs the script of each request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cloakroom::body::{Body, collect};
use cloakroom::client::{Pool, Target};
use cloakroom::server::{
    Address, ConnectionLimit, Limits, Peer, Protocol, Settings, Tasks, bind, serve,
};
use http::{Request, Response};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::PATIENCE;
use super::script::{ApiResponse, Call, Script};

/// A request as the upstream received it, and the responses to the calls that it made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub calls: Vec<ApiResponse>,
    /// Time at which its last call had returned: see [`elapsed`].
    pub called_at: Duration,
    pub body: String,
    /// False if the body was aborted.
    pub whole: bool,
}

/// Returns the time since the start of the test process: one clock for the upstream and its
/// clients, so that tests can compare when events happened.
pub fn elapsed() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Response header with the time at which the upstream responded, in microseconds of [`elapsed`].
pub const ANSWERED_AT: &str = "x-answered-at";

/// Request header with the URL for the upstream's calls, instead of X-Session-Url.
pub const API: &str = "x-api";

/// A running upstream.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
    tasks: Tasks,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    gates: Mutex<HashMap<String, watch::Sender<Gate>>>,
}

#[derive(Clone, Copy, Default)]
struct Gate {
    arrived: usize,
    open: bool,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let Address::Tcp(address) = *listener.local_address() else {
            panic!("an address over TCP")
        };
        let tasks = Tasks::new();
        let state = Arc::new(State::default());
        let handler = {
            let (state, tasks) = (Arc::clone(&state), tasks.clone());
            move |request: Request<Incoming>, _: Peer| {
                // Like most sites it goes on if the proxy stops waiting for the response.
                let page = tasks.run(respond(Arc::clone(&state), tasks.clone(), request));
                async move { page.await.expect("a page") }
            }
        };
        let limits = Limits { header_bytes: 256 * 1024, headers: 1000, ..Limits::default() };
        let settings = Settings { protocol: Protocol::Http1AndH2c, limits, ..Settings::default() };
        let serving = serve(
            listener,
            settings,
            ConnectionLimit::new(10_000),
            Arc::new(handler),
            tasks.clone(),
        );
        tasks.run(serving).detach();
        Self { address, state, tasks }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Removes the requests so far, and returns them.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Opens a gate, for pages that wait at it now and later.
    pub fn open(&self, gate: &str) {
        self.state.gate(gate).send_modify(|gate| gate.open = true);
    }

    /// Waits until `count` pages have arrived at a gate.
    pub async fn arrived(&self, gate: &str, count: usize) {
        let mut arrivals = self.state.gate(gate).subscribe();
        let arrived = arrivals.wait_for(|gate| gate.arrived >= count);
        drop(
            tokio::time::timeout(PATIENCE, arrived)
                .await
                .expect("pages arrive at the gate")
                .unwrap(),
        );
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if Arc::strong_count(&self.state) <= 2 {
            self.tasks.drain();
        }
    }
}

impl State {
    fn gate(&self, name: &str) -> watch::Sender<Gate> {
        self.gates.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    async fn wait(&self, gate: &str) {
        let gate = self.gate(gate);
        gate.send_modify(|gate| gate.arrived += 1);
        let mut opened = gate.subscribe();
        drop(opened.wait_for(|gate| gate.open).await.unwrap());
    }
}

async fn respond(state: Arc<State>, tasks: Tasks, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let script = parts.headers.get("x-script").map_or_else(Script::default, |script| {
        serde_json::from_slice(script.as_bytes()).expect("a script")
    });
    let body = collect(Body::streaming(body, None), 64 << 20, PATIENCE).await;
    let (body, whole) = (body.as_deref().unwrap_or_default(), body.is_ok());
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let header = |wanted: &str| {
        headers.iter().find_map(|(name, value)| (name == wanted).then(|| value.clone()))
    };
    if let Some(gate) = &script.wait_before {
        state.wait(gate).await;
    }
    let mut calls = Vec::new();
    for call in &script.calls {
        // A load balancer may route its calls to another instance than the one that sent the URL.
        let url = header(API).or_else(|| header("x-session-url")).expect("X-Session-Url");
        let token = header("x-session-token").expect("X-Session-Token");
        calls.push(super::upstream::call(&url, &token, call, &tasks).await);
    }
    let seen = Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        headers,
        calls,
        called_at: elapsed(),
        body: String::from_utf8_lossy(body).into_owned(),
        whole,
    };
    state.seen.lock().unwrap().push(seen.clone());
    if let Some(gate) = &script.wait {
        state.wait(gate).await;
    }
    let shown = script.body.unwrap_or_else(|| serde_json::to_string(&seen).unwrap());
    let status = script.status.unwrap_or(200);
    let mut response =
        Response::new(if matches!(status, 204 | 304) { Body::empty() } else { Body::full(shown) });
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    let answered_at = u64::try_from(elapsed().as_micros()).unwrap();
    response.headers_mut().insert(ANSWERED_AT, answered_at.into());
    for (name, value) in script.headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        response
            .headers_mut()
            .append(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    response
}

/// Calls the session API. The status is 0 if there is no response.
pub async fn call(url: &str, token: &str, call: &Call, tasks: &Tasks) -> ApiResponse {
    let (authority, prefix) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let target: Target = format!("http://{authority}").parse().unwrap();
    let pool = Pool::new(target, cloakroom::client::Config::default());
    let mut request = Request::builder()
        .method(call.method.as_str())
        .uri(format!("/{prefix}{}", call.path))
        .header("x-session-token", token);
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let request = request.body(Body::full(call.body.clone())).unwrap();
    let response = match pool.fetch(request, tasks, 64 << 20, PATIENCE).await {
        Ok(response) => response,
        Err(error) => {
            return ApiResponse { status: 0, headers: Vec::new(), body: format!("{error:?}") };
        }
    };
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    ApiResponse { status: response.status().as_u16(), headers, body }
}
