//! A visitor: what the user of a browser does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cloakroom::body::Body;
use http::Request;
use serde_json::Value;

use super::balancer::{Answer, NoAnswer, Side};
use super::oracle::Look;
use super::order::{Change, Outcome, Step, Token};
use super::random::Random;
use super::site::{Site, principal_of};
use crate::process::SERVICE_TOKEN;

/// The session cookie's name.
pub const COOKIE: &str = "id";

pub struct Visitor {
    pub number: usize,
    pub(super) site: Arc<Site>,
    pub(super) jar: Mutex<Option<Token>>,
    /// Tokens that the jar had.
    pub(super) stolen: Mutex<Vec<Token>>,
    /// The number of the next value: no two writes are alike.
    next: AtomicU64,
    /// Whether its latest page knew its session.
    pub(super) known: AtomicBool,
}

/// How a browser makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Navigate,
    Fetch,
    /// A form, or a script's POST.
    Submit,
    Post,
}

/// Where a request goes.
#[derive(Clone, Copy)]
pub(super) enum To {
    Any,
    One(usize),
}

impl Visitor {
    pub fn new(number: usize, site: Arc<Site>) -> Self {
        let (jar, stolen, next, known) = Default::default();
        Self { number, site, jar, stolen, next, known }
    }

    /// Does one thing that visitors do. Returns how many requests it took.
    pub async fn act(self: &Arc<Self>, random: &mut Random) -> u64 {
        if !self.known.load(Ordering::Relaxed) {
            return self.come(random).await;
        }
        let (header, number) = (random.below(2) == 0, random.index(20));
        match random.below(1000) {
            0..300 => self.look(random).await,
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
            922..945 => self.get(Kind::Fetch, vec![Step::List]).await,
            945..970 => self.replay().await,
            _ => self.back_office(random).await,
        }
    }

    /// A visitor without a session: logs in, begins to shop, or looks around.
    async fn come(self: &Arc<Self>, random: &mut Random) -> u64 {
        match random.below(10) {
            0..6 => self.log_in(random).await,
            6..8 => {
                let header = random.below(2) == 0;
                self.change(random, self.set(0).owned_by(self.number), header).await
            }
            _ => self.look(random).await,
        }
    }

    async fn look(self: &Arc<Self>, random: &mut Random) -> u64 {
        let kind = if random.below(3) == 0 { Kind::Fetch } else { Kind::Navigate };
        let steps = if random.below(2) == 0 { vec![Step::Read] } else { vec![] };
        self.get(kind, steps).await
    }

    async fn get(self: &Arc<Self>, kind: Kind, steps: Vec<Step>) -> u64 {
        self.ask(kind, self.token(), steps, None, To::Any).await;
        1
    }

    /// Changes the session, by header exchange or by the API, and sometimes reads it at once.
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
        let kind = if random.below(2) == 0 { Kind::Submit } else { Kind::Post };
        self.ask(kind, self.token(), steps, patch, To::Any).await;
        if kind == Kind::Post {
            return 1;
        }
        // The site sends the browser on to a page.
        1 + self.look(random).await
    }

    async fn log_in(self: &Arc<Self>, random: &mut Random) -> u64 {
        let login = Some(principal_of(self.number));
        let change = Change { login, ..Change::default() }.owned_by(self.number);
        let header = random.below(2) == 0;
        self.change(random, change, header).await
    }

    /// Several tabs at once, each with a value of its own.
    async fn tabs(self: &Arc<Self>, random: &mut Random) -> u64 {
        let count = 2 + random.index(3);
        let orders = (0..count).map(|tab| match random.below(4) {
            0 => (Kind::Navigate, vec![Step::Read], None),
            1 => (Kind::Post, vec![], Some(self.set(10 + tab))),
            _ => (Kind::Post, vec![Step::Patch(self.set(10 + tab))], None),
        });
        self.at_once(orders.collect()).await
    }

    /// Twenty requests at once that count; one of them may log out.
    async fn storm(self: &Arc<Self>, random: &mut Random, logs_out: Option<usize>) -> u64 {
        let key = || "storm".to_owned();
        let orders = (0..20).map(|number| match random.below(4) {
            _ if logs_out == Some(number) => (Kind::Submit, vec![Step::LogOut], None),
            0 => (Kind::Fetch, vec![Step::Read], None),
            1 => (Kind::Post, vec![], Some(Change::increment(&key()))),
            2 => (Kind::Post, vec![Step::Patch(Change::increment(&key()))], None),
            _ => (Kind::Post, vec![Step::Increment(key())], None),
        });
        self.at_once(orders.collect()).await
    }

    async fn at_once(self: &Arc<Self>, orders: Vec<(Kind, Vec<Step>, Option<Change>)>) -> u64 {
        let count = orders.len() as u64;
        let mut running = tokio::task::JoinSet::new();
        for (kind, steps, patch) in orders {
            let visitor = Arc::clone(self);
            running.spawn(async move {
                let token = visitor.token();
                visitor.ask(kind, token, steps, patch, To::Any).await;
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
        count
    }

    /// A thief tries the tokens that are dead.
    pub async fn replay(self: &Arc<Self>) -> u64 {
        let mut tried = 0;
        let stolen = self.stolen.lock().unwrap().clone();
        for token in stolen.into_iter().filter(|token| self.site.oracle.is_dead(token)) {
            // Nothing that comes back reaches the visitor.
            let thief = Arc::new(Self::new(self.number, Arc::clone(&self.site)));
            *thief.jar.lock().unwrap() = Some(token.clone());
            thief.ask(Kind::Fetch, Some(token), vec![Step::Read], None, To::Any).await;
            tried += 1;
        }
        tried
    }

    /// The back office reads the visitor's session, changes it, or ends it.
    async fn back_office(self: &Arc<Self>, random: &mut Random) -> u64 {
        let Some(token) = self.token() else { return 0 };
        let id = token.id.as_str();
        match random.below(12) {
            0 => self.serve(id, "DELETE", Change { destroy: true, ..Change::default() }).await,
            1..5 => self.serve(id, "PATCH", self.set(20)).await,
            _ => drop(self.inspect(id, None).await),
        }
        1
    }

    async fn serve(&self, id: &str, method: &str, change: Change) {
        let body = if method == "PATCH" { change.json().to_string() } else { String::new() };
        let order = self.site.enter(self.number, None, vec![], None);
        let pending = self.site.oracle.begin(&order, Some(id), &change);
        let answer = self.site.balancer.send(Side::Api, |_, _| service(id, method, &body)).await;
        let status = answer.as_ref().map(|answer| answer.response.status().as_u16());
        let text = format!("v{} back office {method} {id} {body} -> {status:?}", self.number);
        self.site.oracle.trace(&text);
        let outcome = match status {
            Ok(200..300) => Outcome::Applied,
            Ok(404) => {
                let sent = answer.as_ref().map_or(pending.begun, |answer| answer.sent);
                let look = Look { sent, received: Instant::now(), cached: true };
                self.site.oracle.finish(&order, pending, Outcome::Refused, None, false);
                self.site.oracle.read(self.number, id, None, None, look);
                return self.site.leave(&order).await;
            }
            Ok(503) | Err(NoAnswer::NotSent) => Outcome::Refused,
            Ok(504) | Err(NoAnswer::Unknown) => Outcome::Unknown,
            Ok(status) => {
                self.site.oracle.wrong(self.number, &format!("the back office was told {status}"));
                Outcome::Refused
            }
        };
        // A destroy is a look first, which may be refused, and then an end.
        self.site.oracle.finish(&order, pending, outcome, None, false);
        self.site.leave(&order).await;
    }

    /// Reads a session as the back office does, at any instance or at one. Returns whether it was
    /// answered.
    pub async fn inspect(&self, id: &str, instance: Option<usize>) -> bool {
        let build = |_, _| service(id, "GET", "");
        let answer = match instance {
            Some(number) => self.site.balancer.send_to(number, Side::Api, build).await,
            None => self.site.balancer.send(Side::Api, build).await,
        };
        let Ok(Answer { response, sent, cached }) = answer else { return false };
        let look = Look { sent, received: Instant::now(), cached };
        let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let status = response.status().as_u16();
        self.site
            .oracle
            .trace(&format!("v{} back office GET {id} -> {status} {body}", self.number));
        match status {
            200 => {
                let principal = Some(&body["principal"]).filter(|name| !name.is_null());
                let values = body["values"].as_object();
                self.site.oracle.read(self.number, id, values, Some(principal), look);
            }
            404 => self.site.oracle.read(self.number, id, None, None, look),
            503 => return false,
            status => {
                self.site.oracle.wrong(self.number, &format!("the back office was told {status}"));
            }
        }
        true
    }

    /// Reads its whole session with its own jar at this instance. Returns whether it was served.
    pub async fn check(self: &Arc<Self>, instance: usize) -> bool {
        let to = To::One(instance);
        self.ask(Kind::Navigate, self.token(), vec![Step::Read], None, to).await
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

/// A call of the back office on a session.
fn service(id: &str, method: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("/_sessions/{id}"))
        .header("authorization", format!("Bearer {SERVICE_TOKEN}"))
        .body(Body::full(body.to_owned()))
        .unwrap()
}
