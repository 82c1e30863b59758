//! The site behind the instances: it carries out the orders of the visitors, by calls of the session
//! API and by header exchange, and tells the oracle what it was answered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cloakroom::body::Body;
use cloakroom::server::{
    Address, BoundListener, Peer, Protocol, Room, Settings, Tasks, bind, serve,
};
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::balancer::{Balancer, NoAnswer, Side};
use super::oracle::{Look, Oracle};
use super::order::{Change, Order, Outcome, Step, Token};

/// Where the instances say that the session API is. It is the balancer's address.
pub const API: &str = "http://sessions.test/_session";

pub struct Site {
    pub oracle: Arc<Oracle>,
    pub balancer: Balancer,
    orders: Mutex<HashMap<u64, Arc<Order>>>,
    next: AtomicU64,
    /// What [`Self::instant`] counts from.
    began: Instant,
}

/// An answer of the session API.
struct ApiResponse {
    status: u16,
    body: Value,
    look: Look,
}

/// The request that an order came with.
struct Arrival {
    token: String,
    /// The session that the calls act on now.
    session: Option<String>,
    /// That session has a principal.
    logged_in: bool,
    /// It came by an instance with a cache.
    cached: bool,
}

impl Site {
    pub fn new(oracle: Arc<Oracle>, balancer: Balancer) -> Arc<Self> {
        let (orders, next) = (Mutex::default(), AtomicU64::new(1));
        Arc::new(Self { oracle, balancer, orders, next, began: Instant::now() })
    }

    /// Serves on this listener until the drain.
    pub fn serve(self: &Arc<Self>, listener: BoundListener, tasks: &Tasks) {
        let (site, running) = (Arc::clone(self), tasks.clone());
        let handler = move |request: Request<Incoming>, _: Peer| {
            // Like most sites it goes on, whether or not the proxy waits for the answer.
            let site = Arc::clone(&site);
            let page = running.run(async move { site.page(&request).await });
            async move { page.await.expect("a page") }
        };
        let settings = Settings { protocol: Protocol::Http1, ..Settings::default() };
        let serving =
            serve(listener, settings, Room::new(10_000), Arc::new(handler), tasks.clone());
        tasks.run(serving).detach();
    }

    /// A listener for [`Self::serve`], and its address.
    pub fn listener() -> (BoundListener, SocketAddr) {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let Address::Tcp(address) = *listener.local_address() else {
            panic!("an address over TCP")
        };
        (listener, address)
    }

    /// Enters an order, for when its request comes.
    pub fn enter(
        &self,
        visitor: usize,
        token: Option<Token>,
        steps: Vec<Step>,
        patch: Option<Change>,
    ) -> Arc<Order> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (progress, done) = Default::default();
        let order = Order { number, visitor, token, steps, patch, progress, done };
        let order = Arc::new(order);
        self.orders.lock().unwrap().insert(number, Arc::clone(&order));
        order
    }

    /// Waits until the site is done with an order whose request has ended; it no longer begins it.
    pub async fn leave(&self, order: &Order) {
        self.orders.lock().unwrap().remove(&order.number);
        order.progress.lock().unwrap().closed = true;
        loop {
            let done = order.done.notified();
            if order.progress.lock().unwrap().running == 0 {
                return;
            }
            // A call has a deadline, and so has this.
            if tokio::time::timeout(Duration::from_secs(60), done).await.is_err() {
                self.oracle.wrong(order.visitor, "the site is never done with a request");
                return;
            }
        }
    }

    /// An instant as a header says it.
    pub fn stamp(&self, instant: Instant) -> u64 {
        u64::try_from(instant.duration_since(self.began).as_micros()).unwrap()
    }

    async fn page(&self, request: &Request<Incoming>) -> Response<Body> {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
        let number = header("x-order").and_then(|number| number.parse::<u64>().ok());
        let order = number.and_then(|number| self.orders.lock().unwrap().get(&number).cloned());
        let Some(order) = order else { return empty(410) };
        {
            let mut progress = order.progress.lock().unwrap();
            if progress.closed {
                return empty(410);
            }
            progress.arrivals += 1;
            progress.running += 1;
            if progress.arrivals > 1 && order.writes() {
                self.oracle.wrong(order.visitor, "a request that changes something came twice");
            }
        }
        let received = Instant::now();
        let sent = self.began + Duration::from_micros(header("x-sent").unwrap().parse().unwrap());
        let cached = header("x-cached") == Some("1");
        let look = Look { sent, received, cached };
        let session = header("x-session-id").map(str::to_owned);
        order.progress.lock().unwrap().anonymous = session.is_none();
        let error = header("x-session-error").unwrap_or_default();
        self.oracle.trace(&format!(
            "v{} #{} arrived session={session:?} error={error} cached={cached}",
            order.visitor, order.number
        ));
        self.oracle.opened(&order, session.as_deref(), error, look);
        if let (Some(id), Some(data)) = (&session, header("x-session-data")) {
            let values: Map<String, Value> = serde_json::from_str(data).unwrap();
            let principal = header("x-session-principal").map(Value::from);
            self.oracle.read(order.visitor, id, Some(&values), Some(principal.as_ref()), look);
        }
        if header("x-session-url") != Some(API) {
            self.oracle.wrong(order.visitor, "another X-Session-Url than the configured one");
        }
        let token = header("x-session-token").unwrap_or_default().to_owned();
        let logged_in = header("x-session-principal").is_some();
        let mut arrival = Arrival { token, session, logged_in, cached };
        for step in &order.steps {
            self.step(&order, &mut arrival, step).await;
        }
        let response = self.respond(&order, &arrival);
        order.progress.lock().unwrap().running -= 1;
        order.done.notify_waiters();
        response
    }

    fn respond(&self, order: &Order, arrival: &Arrival) -> Response<Body> {
        let mut response = Response::new(Body::full(order.number.to_string()));
        response.headers_mut().insert("x-site", order.number.into());
        if let Some(change) = &order.patch {
            let target = self.target(order, arrival, change);
            let pending = self.oracle.begin(order, target.as_deref(), change);
            order.progress.lock().unwrap().pending = Some(pending);
            let patch = change.json().to_string().parse().unwrap();
            response.headers_mut().insert("x-session-patch", patch);
        }
        response
    }

    /// The session that a change acts on. A log-in may act on one whose token is stale.
    fn target(&self, order: &Order, arrival: &Arrival, change: &Change) -> Option<String> {
        let stale = || {
            let token = order.token.as_ref().filter(|token| !self.oracle.is_gone(&token.id))?;
            change.login.is_some().then(|| token.id.clone())
        };
        arrival.session.clone().or_else(stale)
    }

    async fn step(&self, order: &Order, arrival: &mut Arrival, step: &Step) {
        match step {
            Step::Read => self.read(order, arrival).await,
            Step::List => self.list(order, arrival).await,
            Step::Patch(change) => {
                let body = change.json().to_string();
                self.change(order, arrival, change, ("PATCH", "", body)).await;
            }
            Step::Increment(key) => self.increment(order, arrival, key).await,
            Step::Rotate => {
                let change = Change { rotate: true, ..Change::default() };
                self.change(order, arrival, &change, ("POST", "/rotate", String::new())).await;
            }
            Step::LogOut => {
                let change = Change { destroy: true, ..Change::default() };
                self.change(order, arrival, &change, ("DELETE", "", String::new())).await;
            }
            Step::LogOutEverywhere => self.log_out_everywhere(order, arrival).await,
            Step::LogOutOthers => self.log_out_others(order, arrival).await,
        }
    }

    async fn read(&self, order: &Order, arrival: &Arrival) {
        let Ok(called) = self.call(order, arrival, "GET", "", "").await else { return };
        match (called.status, &arrival.session) {
            (200, Some(id)) => {
                if called.body["id"].as_str() != Some(id) {
                    let text = format!("a read of session {id} answered {}", called.body["id"]);
                    self.oracle.wrong(order.visitor, &text);
                }
                let values = called.body["values"].as_object();
                let principal = Some(&called.body["principal"]).filter(|name| !name.is_null());
                self.oracle.read(order.visitor, id, values, Some(principal), called.look);
            }
            (200, None) if called.body["id"].is_null() => {}
            (200, None) => self.oracle.wrong(order.visitor, "an anonymous read answered a session"),
            _ => self.refusal(order, arrival.session.as_deref(), &called),
        }
    }

    async fn list(&self, order: &Order, arrival: &Arrival) {
        let path = "/principal/sessions";
        let Ok(called) = self.call(order, arrival, "GET", path, "").await else { return };
        let Some(sessions) = called.body["sessions"].as_array().filter(|_| called.status == 200)
        else {
            return self.refusal(order, arrival.session.as_deref(), &called);
        };
        let ids: Vec<_> = sessions.iter().filter_map(|session| session["id"].as_str()).collect();
        if !ids.is_empty() {
            self.oracle.listed(order.visitor, &principal_of(order.visitor), &ids, called.look);
        }
    }

    async fn increment(&self, order: &Order, arrival: &mut Arrival, key: &str) {
        let change = Change::increment(key);
        let Some(id) = arrival.session.clone() else {
            // The number alone would not say whose it is.
            let body = change.json().to_string();
            return self.change(order, arrival, &change, ("PATCH", "", body)).await;
        };
        let path = format!("/values/{key}/increment");
        let pending = self.oracle.begin(order, Some(&id), &change);
        let called = self.call(order, arrival, "POST", &path, "").await;
        let outcome = self.outcome(order, Some(&id), &called);
        let counted = called.ok().filter(|_| outcome == Outcome::Applied);
        if let Some((number, look)) = counted.map(|called| (called.body.as_i64(), called.look)) {
            match number {
                Some(number) => self.oracle.counted(order.visitor, &id, key, number, look),
                None => self.oracle.wrong(order.visitor, "an increment answered no number"),
            }
        }
        self.oracle.finish(order, pending, outcome, None, false);
    }

    async fn change(
        &self,
        order: &Order,
        arrival: &mut Arrival,
        change: &Change,
        (method, path, body): (&str, &str, String),
    ) {
        let target = self.target(order, arrival, change);
        let pending = self.oracle.begin(order, target.as_deref(), change);
        let called = self.call(order, arrival, method, path, &body).await;
        let outcome = self.outcome(order, target.as_deref(), &called);
        let called = called.ok().filter(|_| outcome == Outcome::Applied);
        let body = called.map(|called| called.body).unwrap_or_default();
        let answered = body["id"].as_str();
        let durable = body["replicated"] == true;
        self.oracle.finish(order, pending, outcome, answered, durable);
        if outcome == Outcome::Applied {
            arrival.session = answered.map(str::to_owned).filter(|_| !change.destroy);
        }
    }

    async fn log_out_everywhere(&self, order: &Order, arrival: &mut Arrival) {
        let change = Change { destroy: true, ..Change::default() };
        let pending = self.oracle.begin(order, arrival.session.as_deref(), &change);
        let all = self.oracle.everywhere_began(&principal_of(order.visitor), None);
        let called = self.call(order, arrival, "DELETE", "?everywhere=true", "").await;
        let outcome = self.outcome_of_many(order, arrival, &called);
        // One whose own session was gone already cannot know whose others to end.
        let knew = called.is_ok_and(|called| called.body["destroyed"].as_u64() > Some(0));
        let of_all = if arrival.logged_in && knew { outcome } else { Outcome::Unknown };
        self.oracle.everywhere_ended(all, of_all);
        self.oracle.finish(order, pending, outcome, None, false);
    }

    async fn log_out_others(&self, order: &Order, arrival: &mut Arrival) {
        let spared = arrival.session.as_deref();
        let all = self.oracle.everywhere_began(&principal_of(order.visitor), spared);
        let path = "/principal/sessions";
        let called = self.call(order, arrival, "DELETE", path, "").await;
        let outcome = self.outcome_of_many(order, arrival, &called);
        let of_all = if arrival.logged_in { outcome } else { Outcome::Unknown };
        self.oracle.everywhere_ended(all, of_all);
    }

    /// The outcome of a call that may have ended some of many sessions before it failed.
    fn outcome_of_many(
        &self,
        order: &Order,
        arrival: &Arrival,
        called: &Result<ApiResponse, NoAnswer>,
    ) -> Outcome {
        match (self.outcome(order, arrival.session.as_deref(), called), called) {
            (Outcome::Refused, Ok(called)) if called.status != 410 => Outcome::Unknown,
            (outcome, _) => outcome,
        }
    }

    /// What became of a change, as its answer says. What may not be answered is reported.
    fn outcome(
        &self,
        order: &Order,
        target: Option<&str>,
        called: &Result<ApiResponse, NoAnswer>,
    ) -> Outcome {
        match called {
            Err(NoAnswer::NotSent) => Outcome::Refused,
            Err(NoAnswer::Unknown) => Outcome::Unknown,
            Ok(called) if (200..300).contains(&called.status) => Outcome::Applied,
            Ok(called) if called.status == 504 => Outcome::Unknown,
            Ok(called) => {
                self.refusal(order, target, called);
                Outcome::Refused
            }
        }
    }

    /// Judges an answer that is no success.
    fn refusal(&self, order: &Order, target: Option<&str>, called: &ApiResponse) {
        let code = called.body["code"].as_str().unwrap_or_default();
        match (called.status, code) {
            (503, "store_unavailable" | "store_full") | (504, _) | (410, "request_gone") => {}
            (409, "session_gone" | "session_rotated") | (404, "no_such_session") => {
                if let Some(target) = target {
                    self.oracle.refused_as_gone(order, target, code, called.look);
                } else if order.logs_in() {
                    self.oracle.wrong(order.visitor, &format!("a log-in was refused: {code}"));
                }
            }
            // Its visitor has hung up, or the proxy that held its request has gone.
            (409, "response_committed") => {}
            (status, code) => {
                let text = format!("the API answered {status} {code}: {}", called.body);
                self.oracle.wrong(order.visitor, &text);
            }
        }
    }

    /// Makes a call through the balancer.
    async fn call(
        &self,
        order: &Order,
        arrival: &Arrival,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<ApiResponse, NoAnswer> {
        let build = |_, _| {
            Request::builder()
                .method(method)
                .uri(format!("/_session{path}"))
                .header("x-session-token", &arrival.token)
                .header("prefer", "return=representation")
                .body(Body::full(body.to_owned()))
                .unwrap()
        };
        let answer = self.balancer.send(Side::Api, build).await;
        self.oracle.count(|tally| tally.calls += 1);
        let (visitor, number) = (order.visitor, order.number);
        let called = answer.map(|answer| ApiResponse {
            status: answer.response.status().as_u16(),
            body: serde_json::from_slice(answer.response.body()).unwrap_or_default(),
            look: Look {
                sent: answer.sent,
                received: Instant::now(),
                cached: answer.cached || arrival.cached,
            },
        });
        self.oracle.trace(&match &called {
            Ok(called) => {
                format!(
                    "v{visitor} #{number} {method} {path} {body} -> {} {}",
                    called.status, called.body
                )
            }
            Err(why) => format!("v{visitor} #{number} {method} {path} {body} -> {why:?}"),
        });
        called
    }
}

/// Three visitors are the devices of one user.
pub fn principal_of(visitor: usize) -> String {
    format!("user-{}", visitor / 3)
}

fn empty(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}
