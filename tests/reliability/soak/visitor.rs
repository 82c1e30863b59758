//! A visitor: a browser with a cookie jar, and what its user does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cookie::Cookie;
use http::{Request, Response};
use serde_json::Value;

use super::balancer::{Answer, NoAnswer, Side};
use super::oracle::Look;
use super::order::{Change, Order, Outcome, Step, Token};
use super::random::Random;
use super::site::{Site, principal_of};
use crate::process::SERVICE_TOKEN;

/// The session cookie's name.
pub const COOKIE: &str = "id";

/// After so long without a fault every request has to be served.
const PEACE: Duration = Duration::from_secs(12);

/// Dead tokens that a visitor's thief keeps.
const STOLEN: usize = 4;

pub struct Visitor {
    pub number: usize,
    site: Arc<Site>,
    jar: Mutex<Option<Token>>,
    /// Tokens that the jar had.
    stolen: Mutex<Vec<Token>>,
    /// The number of the next value: no two writes are alike.
    next: AtomicU64,
    /// Whether its latest page knew its session.
    known: AtomicBool,
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
enum To {
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

    /// Makes a request, and judges and keeps what comes back. Returns whether it was served.
    async fn ask(
        self: &Arc<Self>,
        kind: Kind,
        token: Option<Token>,
        steps: Vec<Step>,
        patch: Option<Change>,
        to: To,
    ) -> bool {
        let oracle = &self.site.oracle;
        let order = self.site.enter(self.number, token, steps, patch);
        let began = Instant::now();
        let build = |sent, cached| self.request(&order, kind, sent, cached);
        let answer = match to {
            To::Any => self.site.balancer.send(Side::Public, build).await,
            To::One(number) => self.site.balancer.send_to(number, Side::Public, build).await,
        };
        self.site.leave(&order).await;
        let status = answer.as_ref().map(|answer| answer.response.status().as_u16());
        let served = status == Ok(200);
        oracle.trace(&format!("v{} #{} {kind:?} -> {status:?}", self.number, order.number));
        // A header is refused with 502 if its session is gone.
        let failed = !served && !(status == Ok(502) && oracle.may_be_refused(&order, began));
        let in_peace = failed && oracle.is_quiet(PEACE);
        oracle.count(|tally| {
            tally.pages += 1;
            tally.failed += u64::from(failed);
            tally.failed_in_peace += u64::from(in_peace);
        });
        let pending = order.progress.lock().unwrap().pending.take();
        if let Some(pending) = pending {
            let outcome = if served { Outcome::Applied } else { Outcome::Unknown };
            let cookies =
                answer.as_ref().map(|answer| cookies(&answer.response)).unwrap_or_default();
            let granted = cookies.iter().find_map(|cookie| Token::parse(cookie.value()));
            // Through a token that is over, a log-in joins its session or makes another.
            let id = granted.filter(|_| order.logs_in()).map(|token| token.id);
            oracle.finish(&order, pending, outcome, id.as_deref(), false);
        }
        if let Ok(Answer { response, .. }) = answer {
            self.judge(&order, &response);
            self.keep(&order, &response, began);
        }
        let anonymous = order.progress.lock().unwrap().anonymous;
        if served && self.token().is_some_and(|own| order.token.as_ref() == Some(&own)) {
            self.known.store(!anonymous, Ordering::Relaxed);
        }
        served
    }

    fn request(&self, order: &Order, kind: Kind, sent: Instant, cached: bool) -> Request<Body> {
        let (method, mode, dest) = match kind {
            Kind::Navigate => ("GET", "navigate", "document"),
            Kind::Fetch => ("GET", "cors", "empty"),
            Kind::Submit => ("POST", "navigate", "document"),
            Kind::Post => ("POST", "cors", "empty"),
        };
        // Half of the pages are on a route without header exchange.
        let plain = order.patch.is_none() && order.number.is_multiple_of(2);
        let mut request = Request::builder()
            .method(method)
            .uri(if plain { "/plain/page" } else { "/page" })
            .header("host", "shop.test")
            .header("accept", if mode == "navigate" { "text/html" } else { "application/json" })
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-mode", mode)
            .header("sec-fetch-dest", dest)
            .header("x-order", order.number)
            .header("x-sent", self.site.stamp(sent))
            .header("x-cached", if cached { "1" } else { "0" });
        if method == "POST" {
            request = request.header("origin", "http://shop.test");
        }
        if let Some(token) = &order.token {
            request = request.header("cookie", format!("theme=dark; {COOKIE}={}", token.text));
        }
        request.body(Body::empty()).unwrap()
    }

    /// Judges the page itself.
    fn judge(&self, order: &Order, response: &Response<Bytes>) {
        let status = response.status().as_u16();
        let code = String::from_utf8_lossy(response.body()).into_owned();
        let ours = order.number.to_string();
        let wrong = match status {
            200 if code == ours => return,
            200 => format!("the page of another request, {code:?}"),
            // A request without a cookie needs no session.
            503 if order.token.is_none() && order.patch.is_none() => {
                "a visitor without a cookie was turned away".to_owned()
            }
            502 | 503 | 504 => return,
            status => format!("a page with status {status}: {code}"),
        };
        self.site.oracle.wrong(self.number, &wrong);
    }

    /// Keeps the cookies of a response, as a browser does.
    fn keep(&self, order: &Order, response: &Response<Bytes>, sent: Instant) {
        for cookie in cookies(response) {
            self.site.oracle.trace(&format!("v{} #{} {cookie}", self.number, order.number));
            if cookie.max_age().is_some_and(|age| age.is_zero()) {
                self.site.oracle.cookie_deleted(order, sent);
                *self.jar.lock().unwrap() = None;
                self.known.store(false, Ordering::Relaxed);
                continue;
            }
            let Some(token) = Token::parse(cookie.value()) else {
                self.site.oracle.wrong(self.number, &format!("a cookie like {cookie}"));
                continue;
            };
            self.site.oracle.cookie_set(order, &token, sent);
            self.steal(&token);
            *self.jar.lock().unwrap() = Some(token);
            self.known.store(true, Ordering::Relaxed);
        }
    }

    fn steal(&self, token: &Token) {
        let mut stolen = self.stolen.lock().unwrap();
        if stolen.len() == STOLEN {
            // The oldest of all stays: it has been dead for longest.
            stolen.remove(1);
        }
        stolen.push(token.clone());
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

/// The session cookies of a response.
fn cookies(response: &Response<Bytes>) -> Vec<Cookie<'static>> {
    let lines = response.headers().get_all("set-cookie").iter();
    let cookies = lines.map(|line| Cookie::parse(line.to_str().unwrap().to_owned()).unwrap());
    cookies.filter(|cookie| cookie.name() == COOKIE).collect()
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
