//! Visitors: the actions of a user with a browser.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cloakroom::body::Body;
use http::Request;
use serde_json::Value;

use super::balancer::{Answer, NoResponse, Side};
use super::job::{Change, Outcome, Step, Token};
use super::oracle::Observation;
use super::random::Random;
use super::site::{Site, principal_of};
use crate::process::SERVICE_TOKEN;

/// Name of the session cookie.
pub const COOKIE: &str = "id";

pub struct Visitor {
    pub number: usize,
    pub(super) site: Arc<Site>,
    pub(super) jar: Mutex<Option<Token>>,
    /// Tokens that the jar had, for replays.
    pub(super) stolen: Mutex<Vec<Token>>,
    /// The number of the next value, so that no two writes are equal.
    next: AtomicU64,
    /// True if its latest page had a session.
    pub(super) known: AtomicBool,
}

/// Kind of a browser's request, by its method and its Fetch Metadata headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Navigate,
    Fetch,
    /// A form.
    Submit,
    /// A POST of a script.
    Post,
}

/// Instance that a request is sent to.
#[derive(Clone, Copy)]
pub(super) enum Route {
    Any,
    One(usize),
}

impl Visitor {
    pub fn new(number: usize, site: Arc<Site>) -> Self {
        let (jar, stolen, next, known) = Default::default();
        Self { number, site, jar, stolen, next, known }
    }

    /// Performs a random action. Returns the number of its requests.
    pub async fn act(self: &Arc<Self>, random: &mut Random) -> u64 {
        if !self.known.load(Ordering::Relaxed) {
            return self.arrive(random).await;
        }
        let (header, number) = (random.below(2) == 0, random.index(20));
        match random.below(1000) {
            0..300 => self.browse(random).await,
            300..520 => self.change(random, self.set(number % 6), header).await,
            520..640 => {
                let patch = Change::increment(["visits", "clicks"][number % 2]);
                self.change(random, patch, header).await
            }
            640..690 => {
                let value = Some(Value::from(self.number()));
                let sets = ["left", "right"].map(|key| (key.to_owned(), value.clone())).to_vec();
                self.change(random, Change { sets, ..Change::default() }, header).await
            }
            690..730 => {
                let sets = vec![(format!("k{}", number % 6), None)];
                self.change(random, Change { sets, ..Change::default() }, header).await
            }
            730..770 => self.tabs(random).await,
            770..795 => self.storm(random, None).await,
            795..800 => self.storm(random, Some(number)).await,
            800..840 => self.log_in(random).await,
            840..865 => {
                let rotate = Change { rotate: true, ..Change::default() };
                let steps = if header { vec![] } else { vec![Step::Rotate] };
                self.post(random, steps, Some(rotate).filter(|_| header)).await
            }
            865..905 => {
                let destroy = Change { destroy: true, ..Change::default() };
                let steps = if header { vec![] } else { vec![Step::LogOut] };
                self.post(random, steps, Some(destroy).filter(|_| header)).await
            }
            905..915 => self.post(random, vec![Step::LogOutEverywhere], None).await,
            915..922 => self.post(random, vec![Step::LogOutOthers], None).await,
            922..945 => self.get(RequestKind::Fetch, vec![Step::List]).await,
            945..970 => self.replay().await,
            _ => self.back_office(random).await,
        }
    }

    /// Performs an action without a session: logs in, starts to shop or browses.
    async fn arrive(self: &Arc<Self>, random: &mut Random) -> u64 {
        match random.below(10) {
            0..6 => self.log_in(random).await,
            6..8 => {
                let header = random.below(2) == 0;
                self.change(random, self.set(0).owned_by(self.number), header).await
            }
            _ => self.browse(random).await,
        }
    }

    async fn browse(self: &Arc<Self>, random: &mut Random) -> u64 {
        let kind = if random.below(3) == 0 { RequestKind::Fetch } else { RequestKind::Navigate };
        let steps = if random.below(2) == 0 { vec![Step::Read] } else { vec![] };
        self.get(kind, steps).await
    }

    async fn get(self: &Arc<Self>, kind: RequestKind, steps: Vec<Step>) -> u64 {
        self.ask(kind, self.token(), steps, None, Route::Any).await;
        1
    }

    /// Changes the session by header exchange or by the API, and sometimes reads it at once.
    async fn change(self: &Arc<Self>, random: &mut Random, change: Change, header: bool) -> u64 {
        if header {
            return self.post(random, vec![], Some(change)).await;
        }
        let single = change.sets.is_empty() && change.increments.len() == 1;
        let mut steps = match &change.increments[..] {
            [key] if single && random.below(2) == 0 => vec![Step::Increment(key.clone())],
            _ => vec![Step::Patch(change)],
        };
        if random.below(3) == 0 {
            steps.push(Step::Read);
        }
        self.post(random, steps, None).await
    }

    async fn post(
        self: &Arc<Self>,
        random: &mut Random,
        steps: Vec<Step>,
        patch: Option<Change>,
    ) -> u64 {
        let kind = if random.below(2) == 0 { RequestKind::Submit } else { RequestKind::Post };
        self.ask(kind, self.token(), steps, patch, Route::Any).await;
        if kind == RequestKind::Post {
            return 1;
        }
        // The site redirects the browser to a page.
        1 + self.browse(random).await
    }

    async fn log_in(self: &Arc<Self>, random: &mut Random) -> u64 {
        let login = Some(principal_of(self.number));
        let change = Change { login, ..Change::default() }.owned_by(self.number);
        let header = random.below(2) == 0;
        self.change(random, change, header).await
    }

    /// Loads several tabs at once; each writes another value.
    async fn tabs(self: &Arc<Self>, random: &mut Random) -> u64 {
        let count = 2 + random.index(3);
        let jobs = (0..count).map(|tab| match random.below(4) {
            0 => (RequestKind::Navigate, vec![Step::Read], None),
            1 => (RequestKind::Post, vec![], Some(self.set(10 + tab))),
            _ => (RequestKind::Post, vec![Step::Patch(self.set(10 + tab))], None),
        });
        self.at_once(jobs.collect()).await
    }

    /// Sends twenty concurrent requests that read and increment; one of them may log out.
    async fn storm(self: &Arc<Self>, random: &mut Random, logs_out: Option<usize>) -> u64 {
        let key = || "storm".to_owned();
        let jobs = (0..20).map(|number| match random.below(4) {
            _ if logs_out == Some(number) => (RequestKind::Submit, vec![Step::LogOut], None),
            0 => (RequestKind::Fetch, vec![Step::Read], None),
            1 => (RequestKind::Post, vec![], Some(Change::increment(&key()))),
            2 => (RequestKind::Post, vec![Step::Patch(Change::increment(&key()))], None),
            _ => (RequestKind::Post, vec![Step::Increment(key())], None),
        });
        self.at_once(jobs.collect()).await
    }

    async fn at_once(self: &Arc<Self>, jobs: Vec<(RequestKind, Vec<Step>, Option<Change>)>) -> u64 {
        let count = jobs.len() as u64;
        let mut running = tokio::task::JoinSet::new();
        for (kind, steps, patch) in jobs {
            let visitor = Arc::clone(self);
            running.spawn(async move {
                let token = visitor.token();
                visitor.ask(kind, token, steps, patch, Route::Any).await;
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
        count
    }

    /// Replays the invalid tokens, as a thief would.
    pub async fn replay(self: &Arc<Self>) -> u64 {
        let mut tried = 0;
        let stolen = self.stolen.lock().unwrap().clone();
        for token in stolen.into_iter().filter(|token| self.site.oracle.is_invalid(token)) {
            // The responses do not reach the visitor's jar.
            let thief = Arc::new(Self::new(self.number, Arc::clone(&self.site)));
            *thief.jar.lock().unwrap() = Some(token.clone());
            thief.ask(RequestKind::Fetch, Some(token), vec![Step::Read], None, Route::Any).await;
            tried += 1;
        }
        tried
    }

    /// Reads, changes or destroys the visitor's session with the service token.
    async fn back_office(self: &Arc<Self>, random: &mut Random) -> u64 {
        let Some(token) = self.token() else { return 0 };
        let id = token.id.as_str();
        match random.below(12) {
            0 => {
                self.change_as_service(id, "DELETE", Change { destroy: true, ..Change::default() })
                    .await;
            }
            1..5 => self.change_as_service(id, "PATCH", self.set(20)).await,
            _ => drop(self.inspect(id, None).await),
        }
        1
    }

    async fn change_as_service(&self, id: &str, method: &str, change: Change) {
        let body = if method == "PATCH" { change.json().to_string() } else { String::new() };
        let job = self.site.register(self.number, None, vec![], None);
        let pending = self.site.oracle.begin(&job, Some(id), &change);
        let answer = self.site.balancer.send(Side::Api, |_, _| service(id, method, &body)).await;
        let status = answer.as_ref().map(|answer| answer.response.status().as_u16());
        let text = format!("v{} back office {method} {id} {body} -> {status:?}", self.number);
        self.site.oracle.trace(&text);
        let outcome = match status {
            Ok(200..300) => Outcome::Applied,
            Ok(404) => {
                let sent = answer.as_ref().map_or(pending.started, |answer| answer.sent);
                let observation = Observation { sent, received: Instant::now(), cached: true };
                self.site.oracle.finish(&job, pending, Outcome::Refused, None, false);
                self.site.oracle.read(self.number, id, None, None, observation);
                return self.site.unregister(&job).await;
            }
            Ok(503) | Err(NoResponse::NotSent) => Outcome::Refused,
            Ok(504) | Err(NoResponse::Unknown) => Outcome::Unknown,
            Ok(status) => {
                self.site.oracle.wrong(self.number, &format!("the back office received {status}"));
                Outcome::Refused
            }
        };
        // A destroy first reads the session, which may fail, and then destroys it.
        self.site.oracle.finish(&job, pending, outcome, None, false);
        self.site.unregister(&job).await;
    }

    /// Reads a session with the service token, at any instance or at a given one. Returns false if
    /// there was no usable response.
    pub async fn inspect(&self, id: &str, instance: Option<usize>) -> bool {
        let build = |_, _| service(id, "GET", "");
        let answer = match instance {
            Some(number) => self.site.balancer.send_to(number, Side::Api, build).await,
            None => self.site.balancer.send(Side::Api, build).await,
        };
        let Ok(Answer { response, sent, cached }) = answer else { return false };
        let observation = Observation { sent, received: Instant::now(), cached };
        let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let status = response.status().as_u16();
        self.site
            .oracle
            .trace(&format!("v{} back office GET {id} -> {status} {body}", self.number));
        match status {
            200 => {
                let principal = Some(&body["principal"]).filter(|name| !name.is_null());
                let values = body["values"].as_object();
                self.site.oracle.read(self.number, id, values, principal, observation);
            }
            404 => self.site.oracle.read(self.number, id, None, None, observation),
            503 => return false,
            status => {
                self.site.oracle.wrong(self.number, &format!("the back office received {status}"));
            }
        }
        true
    }

    /// Reads its whole session with its own cookie at this instance. Returns true if it was served.
    pub async fn check(self: &Arc<Self>, instance: usize) -> bool {
        let to = Route::One(instance);
        self.ask(RequestKind::Navigate, self.token(), vec![Step::Read], None, to).await
    }

    pub fn token(&self) -> Option<Token> {
        self.jar.lock().unwrap().clone()
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn set(&self, key: usize) -> Change {
        Change::set(&format!("k{key}"), format!("{}-{}", self.number, self.number()))
    }
}

/// Builds a call with the service token on a session.
fn service(id: &str, method: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("/_sessions/{id}"))
        .header("authorization", format!("Bearer {SERVICE_TOKEN}"))
        .body(Body::full(body.to_owned()))
        .unwrap()
}
