//! The site behind the instances: it runs the jobs of the visitors by calls of the session API and
//! by header exchange, and reports the responses to the oracle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cloakroom::body::Body;
use cloakroom::server::{
    Address, BoundListener, ConnectionLimit, Peer, Protocol, Settings, Tasks, bind, serve,
};
use http::{Request, Response};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::balancer::{Balancer, NoResponse, Side};
use super::job::{Change, Job, Outcome, Step, Token};
use super::oracle::{Observation, Oracle};

/// The configured URL of the session API, which stands for the load balancer.
pub const API: &str = "http://sessions.test/_session";

pub struct Site {
    pub oracle: Arc<Oracle>,
    pub balancer: Balancer,
    jobs: Mutex<HashMap<u64, Arc<Job>>>,
    next: AtomicU64,
    /// Origin of the times in [`Self::stamp`].
    began: Instant,
}

/// A response of the session API.
struct ApiResponse {
    status: u16,
    body: Value,
    observation: Observation,
}

/// The request of a job.
struct Arrival {
    token: String,
    /// The session that the calls currently act on.
    session: Option<String>,
    /// True if that session has a principal.
    logged_in: bool,
    /// True if the request came through an instance with a cache.
    cached: bool,
}

impl Site {
    pub fn new(oracle: Arc<Oracle>, balancer: Balancer) -> Arc<Self> {
        let (jobs, next) = (Mutex::default(), AtomicU64::new(1));
        Arc::new(Self { oracle, balancer, jobs, next, began: Instant::now() })
    }

    /// Serves on this listener until the drain.
    pub fn serve(self: &Arc<Self>, listener: BoundListener, tasks: &Tasks) {
        let (site, running) = (Arc::clone(self), tasks.clone());
        let handler = move |request: Request<Incoming>, _: Peer| {
            // Like most sites it goes on if the proxy stops waiting for the response.
            let site = Arc::clone(&site);
            let page = running.run(async move { site.page(&request).await });
            async move { page.await.expect("a page") }
        };
        let settings = Settings { protocol: Protocol::Http1, ..Settings::default() };
        let serving = serve(
            listener,
            settings,
            ConnectionLimit::new(10_000),
            Arc::new(handler),
            tasks.clone(),
        );
        tasks.run(serving).detach();
    }

    /// Binds a listener for [`Self::serve`], and returns it with its address.
    pub fn listener() -> (BoundListener, SocketAddr) {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let Address::Tcp(address) = *listener.local_address() else {
            panic!("an address over TCP")
        };
        (listener, address)
    }

    /// Registers a job before its request is sent.
    pub fn register(
        &self,
        visitor: usize,
        token: Option<Token>,
        steps: Vec<Step>,
        patch: Option<Change>,
    ) -> Arc<Job> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (progress, done) = Default::default();
        let job = Job { number, visitor, token, steps, patch, progress, done };
        let job = Arc::new(job);
        self.jobs.lock().unwrap().insert(number, Arc::clone(&job));
        job
    }

    /// Removes a job whose request has ended, so that it is no longer started, and waits until the
    /// site has finished it.
    pub async fn unregister(&self, job: &Job) {
        self.jobs.lock().unwrap().remove(&job.number);
        job.progress.lock().unwrap().closed = true;
        loop {
            let done = job.done.notified();
            if job.progress.lock().unwrap().running == 0 {
                return;
            }
            // Calls have a deadline, so the site finishes within this time.
            if tokio::time::timeout(Duration::from_mins(1), done).await.is_err() {
                self.oracle.wrong(job.visitor, "the site never finished a request");
                return;
            }
        }
    }

    /// Encodes an instant for a header.
    pub fn stamp(&self, instant: Instant) -> u64 {
        u64::try_from(instant.duration_since(self.began).as_micros()).unwrap()
    }

    async fn page(&self, request: &Request<Incoming>) -> Response<Body> {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
        let number = header("x-job").and_then(|number| number.parse::<u64>().ok());
        let job = number.and_then(|number| self.jobs.lock().unwrap().get(&number).cloned());
        let Some(job) = job else { return empty(410) };
        {
            let mut progress = job.progress.lock().unwrap();
            if progress.closed {
                return empty(410);
            }
            progress.arrivals += 1;
            progress.running += 1;
            if progress.arrivals > 1 && job.writes() {
                self.oracle.wrong(job.visitor, "a request with changes arrived twice");
            }
        }
        let received = Instant::now();
        let sent = self.began + Duration::from_micros(header("x-sent").unwrap().parse().unwrap());
        let cached = header("x-cached") == Some("1");
        let observation = Observation { sent, received, cached };
        let session = header("x-session-id").map(str::to_owned);
        job.progress.lock().unwrap().anonymous = session.is_none();
        let error = header("x-session-error").unwrap_or_default();
        self.oracle.trace(&format!(
            "v{} #{} arrived session={session:?} error={error} cached={cached}",
            job.visitor, job.number
        ));
        self.oracle.opened(&job, session.as_deref(), error, observation);
        if let (Some(id), Some(data)) = (&session, header("x-session-data")) {
            let values: Map<String, Value> = serde_json::from_str(data).unwrap();
            let principal = header("x-session-principal").map(Value::from);
            self.oracle.read(job.visitor, id, Some(&values), principal.as_ref(), observation);
        }
        if header("x-session-url") != Some(API) {
            self.oracle.wrong(job.visitor, "X-Session-Url is not the configured one");
        }
        let token = header("x-session-token").unwrap_or_default().to_owned();
        let logged_in = header("x-session-principal").is_some();
        let mut arrival = Arrival { token, session, logged_in, cached };
        for step in &job.steps {
            self.step(&job, &mut arrival, step).await;
        }
        let response = self.respond(&job, &arrival);
        job.progress.lock().unwrap().running -= 1;
        job.done.notify_waiters();
        response
    }

    fn respond(&self, job: &Job, arrival: &Arrival) -> Response<Body> {
        let mut response = Response::new(Body::full(job.number.to_string()));
        response.headers_mut().insert("x-site", job.number.into());
        if let Some(change) = &job.patch {
            let target = self.target(job, arrival, change);
            let pending = self.oracle.begin(job, target.as_deref(), change);
            job.progress.lock().unwrap().pending = Some(pending);
            let patch = change.json().to_string().parse().unwrap();
            response.headers_mut().insert("x-session-patch", patch);
        }
        response
    }

    /// Returns the session that a change acts on. A log-in may also act on one whose token was
    /// rotated.
    fn target(&self, job: &Job, arrival: &Arrival, change: &Change) -> Option<String> {
        let stale = || {
            let token = job.token.as_ref().filter(|token| !self.oracle.is_destroyed(&token.id))?;
            change.login.is_some().then(|| token.id.clone())
        };
        arrival.session.clone().or_else(stale)
    }

    async fn step(&self, job: &Job, arrival: &mut Arrival, step: &Step) {
        match step {
            Step::Read => self.read(job, arrival).await,
            Step::List => self.list(job, arrival).await,
            Step::Patch(change) => {
                let body = change.json().to_string();
                self.change(job, arrival, change, ("PATCH", "", body)).await;
            }
            Step::Increment(key) => self.increment(job, arrival, key).await,
            Step::Rotate => {
                let change = Change { rotate: true, ..Change::default() };
                self.change(job, arrival, &change, ("POST", "/rotate", String::new())).await;
            }
            Step::LogOut => {
                let change = Change { destroy: true, ..Change::default() };
                self.change(job, arrival, &change, ("DELETE", "", String::new())).await;
            }
            Step::LogOutEverywhere => self.log_out_everywhere(job, arrival).await,
            Step::LogOutOthers => self.log_out_others(job, arrival).await,
        }
    }

    async fn read(&self, job: &Job, arrival: &Arrival) {
        let Ok(called) = self.call(job, arrival, "GET", "", "").await else { return };
        match (called.status, &arrival.session) {
            (200, Some(id)) => {
                if called.body["id"].as_str() != Some(id) {
                    let text = format!("a read of session {id} returned {}", called.body["id"]);
                    self.oracle.wrong(job.visitor, &text);
                }
                let values = called.body["values"].as_object();
                let principal = Some(&called.body["principal"]).filter(|name| !name.is_null());
                self.oracle.read(job.visitor, id, values, principal, called.observation);
            }
            (200, None) if called.body["id"].is_null() => {}
            (200, None) => self.oracle.wrong(job.visitor, "an anonymous read returned a session"),
            _ => self.judge_error(job, arrival.session.as_deref(), &called),
        }
    }

    async fn list(&self, job: &Job, arrival: &Arrival) {
        let path = "/principal/sessions";
        let Ok(called) = self.call(job, arrival, "GET", path, "").await else { return };
        let Some(sessions) = called.body["sessions"].as_array().filter(|_| called.status == 200)
        else {
            return self.judge_error(job, arrival.session.as_deref(), &called);
        };
        let ids: Vec<_> = sessions.iter().filter_map(|session| session["id"].as_str()).collect();
        if !ids.is_empty() {
            self.oracle.listed(job.visitor, &principal_of(job.visitor), &ids, called.observation);
        }
    }

    async fn increment(&self, job: &Job, arrival: &mut Arrival, key: &str) {
        let change = Change::increment(key);
        let Some(id) = arrival.session.clone() else {
            // The response of an increment would not name the new session.
            let body = change.json().to_string();
            return self.change(job, arrival, &change, ("PATCH", "", body)).await;
        };
        let path = format!("/values/{key}/increment");
        let pending = self.oracle.begin(job, Some(&id), &change);
        let called = self.call(job, arrival, "POST", &path, "").await;
        let outcome = self.outcome(job, Some(&id), &called);
        let counted = called.ok().filter(|_| outcome == Outcome::Applied);
        if let Some((number, observation)) =
            counted.map(|called| (called.body.as_i64(), called.observation))
        {
            match number {
                Some(number) => self.oracle.incremented(job.visitor, &id, key, number, observation),
                None => self.oracle.wrong(job.visitor, "an increment returned no number"),
            }
        }
        self.oracle.finish(job, pending, outcome, None, false);
    }

    async fn change(
        &self,
        job: &Job,
        arrival: &mut Arrival,
        change: &Change,
        (method, path, body): (&str, &str, String),
    ) {
        let target = self.target(job, arrival, change);
        let pending = self.oracle.begin(job, target.as_deref(), change);
        let called = self.call(job, arrival, method, path, &body).await;
        let outcome = self.outcome(job, target.as_deref(), &called);
        let called = called.ok().filter(|_| outcome == Outcome::Applied);
        let body = called.map(|called| called.body).unwrap_or_default();
        let answered = body["id"].as_str();
        let durable = body["replicated"] == true;
        self.oracle.finish(job, pending, outcome, answered, durable);
        if outcome == Outcome::Applied {
            arrival.session = answered.map(str::to_owned).filter(|_| !change.destroy);
        }
    }

    async fn log_out_everywhere(&self, job: &Job, arrival: &mut Arrival) {
        let change = Change { destroy: true, ..Change::default() };
        let pending = self.oracle.begin(job, arrival.session.as_deref(), &change);
        let all = self.oracle.log_out_all_began(&principal_of(job.visitor), None);
        let called = self.call(job, arrival, "DELETE", "?everywhere=true", "").await;
        let outcome = self.outcome_of_many(job, arrival, &called);
        // If its own session was missing already, the call cannot know the principal.
        let knew = called.is_ok_and(|called| called.body["destroyed"].as_u64() > Some(0));
        let of_all = if arrival.logged_in && knew { outcome } else { Outcome::Unknown };
        self.oracle.log_out_all_ended(all, of_all);
        self.oracle.finish(job, pending, outcome, None, false);
    }

    async fn log_out_others(&self, job: &Job, arrival: &mut Arrival) {
        let excluded = arrival.session.as_deref();
        let all = self.oracle.log_out_all_began(&principal_of(job.visitor), excluded);
        let path = "/principal/sessions";
        let called = self.call(job, arrival, "DELETE", path, "").await;
        let outcome = self.outcome_of_many(job, arrival, &called);
        let of_all = if arrival.logged_in { outcome } else { Outcome::Unknown };
        self.oracle.log_out_all_ended(all, of_all);
    }

    /// Returns the outcome of a call that may have destroyed some of many sessions before it
    /// failed.
    fn outcome_of_many(
        &self,
        job: &Job,
        arrival: &Arrival,
        called: &Result<ApiResponse, NoResponse>,
    ) -> Outcome {
        match (self.outcome(job, arrival.session.as_deref(), called), called) {
            (Outcome::Refused, Ok(called)) if called.status != 410 => Outcome::Unknown,
            (outcome, _) => outcome,
        }
    }

    /// Returns the outcome of a change according to its response, and reports responses that are
    /// violations.
    fn outcome(
        &self,
        job: &Job,
        target: Option<&str>,
        called: &Result<ApiResponse, NoResponse>,
    ) -> Outcome {
        match called {
            Err(NoResponse::NotSent) => Outcome::Refused,
            Err(NoResponse::Unknown) => Outcome::Unknown,
            Ok(called) if (200..300).contains(&called.status) => Outcome::Applied,
            Ok(called) if called.status == 504 => Outcome::Unknown,
            Ok(called) => {
                self.judge_error(job, target, called);
                Outcome::Refused
            }
        }
    }

    /// Judges an error response.
    fn judge_error(&self, job: &Job, target: Option<&str>, called: &ApiResponse) {
        let code = called.body["code"].as_str().unwrap_or_default();
        match (called.status, code) {
            (503, "store_unavailable" | "store_full") | (504, _) | (410, "request_gone")
            // The visitor has closed the connection, or the proxy with the request has exited.
            | (409, "response_committed") => {}
            (409, "session_gone" | "session_rotated") | (404, "no_such_session") => {
                if let Some(target) = target {
                    self.oracle.rejected_as_missing(job, target, code, called.observation);
                } else if job.logs_in() {
                    self.oracle.wrong(job.visitor, &format!("a log-in was rejected: {code}"));
                }
            }
            (status, code) => {
                let text = format!("the API responded {status} {code}: {}", called.body);
                self.oracle.wrong(job.visitor, &text);
            }
        }
    }

    /// Calls the session API through the balancer.
    async fn call(
        &self,
        job: &Job,
        arrival: &Arrival,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<ApiResponse, NoResponse> {
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
        let (visitor, number) = (job.visitor, job.number);
        let called = answer.map(|answer| ApiResponse {
            status: answer.response.status().as_u16(),
            body: serde_json::from_slice(answer.response.body()).unwrap_or_default(),
            observation: Observation {
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
            Err(reason) => format!("v{visitor} #{number} {method} {path} {body} -> {reason:?}"),
        });
        called
    }
}

/// Returns the user of a visitor; three visitors are the devices of one user.
pub fn principal_of(visitor: usize) -> String {
    format!("user-{}", visitor / 3)
}

fn empty(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}
