//! Load during faults of Redis: visitors that send requests in a loop, and a record of all
//! responses.
//!
//! Each visitor has a session with a unique marker and a counter. The load runs on its own thread
//! and runtime, so that the code that injects faults may block.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cloakroom::time::Clock;
use serde_json::json;

use crate::stores::directory;
use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const VISITORS: usize = 32;

/// A request and its result.
#[derive(Clone, Debug)]
pub struct Sample {
    pub visitor: usize,
    pub began: Instant,
    pub took: Duration,
    pub outcome: Outcome,
    /// Kind of the request.
    pub request: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// Served as a visitor without a session.
    Missing,
    /// Refused with an error by the proxy or by its API: status and code.
    Failed(u16, String),
    /// A violation: the marker of another visitor, a cookie set or deleted by an error, a destroyed
    /// session, or an error for a visitor without a session.
    Wrong(String),
}

/// The running load.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// Session ids of the visitors.
    pub ids: Vec<String>,
}

struct Shared {
    samples: Mutex<Vec<Sample>>,
    done: AtomicBool,
    visitors: Vec<Ledger>,
    lost: AtomicI64,
    /// Destroyed sessions that were served again.
    resurrected: AtomicI64,
    destroyed: AtomicI64,
}

#[derive(Default)]
struct Ledger {
    acknowledged: AtomicI64,
    unknown: AtomicI64,
}

/// Results of the load.
pub struct LoadResult {
    pub samples: Vec<Sample>,
    /// Acknowledged increments that are missing at the end.
    pub lost: i64,
    pub destroyed: i64,
    pub resurrected: i64,
}

impl Load {
    /// Starts the load on a proxy with this `[store]`, and waits until every visitor has a session.
    pub fn start(store: &str) -> Self {
        let visitors = (0..VISITORS).map(|_| Ledger::default()).collect();
        let shared = Arc::new(Shared {
            samples: Mutex::default(),
            done: AtomicBool::new(false),
            visitors,
            lost: AtomicI64::new(0),
            resurrected: AtomicI64::new(0),
            destroyed: AtomicI64::new(0),
        });
        let (ready, started) = mpsc::channel();
        let (running, store) = (Arc::clone(&shared), store.to_owned());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(running.run(&store, &ready));
        });
        let ids = started.recv_timeout(Duration::from_secs(30)).unwrap();
        Self { shared, thread, ids }
    }

    /// Waits until no request has failed for a second, or for `patience`.
    pub fn settle(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
            let since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
            let samples = self.shared.samples.lock().unwrap();
            let recent = samples.iter().rev().take_while(|sample| sample.began > since);
            if recent.clone().count() > VISITORS
                && recent.clone().all(|sample| sample.outcome == Outcome::Served)
            {
                return;
            }
        }
    }

    /// Stops the load and compares the counters with the acknowledged increments.
    pub fn stop(self) -> LoadResult {
        self.shared.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let samples = std::mem::take(&mut *self.shared.samples.lock().unwrap());
        LoadResult {
            samples,
            lost: self.shared.lost.load(Ordering::Relaxed),
            destroyed: self.shared.destroyed.load(Ordering::Relaxed),
            resurrected: self.shared.resurrected.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    async fn run(self: Arc<Self>, store: &str, ready: &mpsc::Sender<Vec<String>>) {
        let upstream = Upstream::start();
        let toml = format!("[session]\ntouch_interval = \"1s\"\n[store]\n{store}\n");
        let proxy = Cloakroom::at(&upstream, &toml, Clock::System, directory()).await;
        let browsers: Vec<Browser> = (0..VISITORS).map(|_| Browser::new(&proxy)).collect();
        let mut ids = Vec::new();
        for (number, browser) in browsers.iter().enumerate() {
            let set = Script::new().patch(&json!({"values": {"marker": marker(number), "n": 0}}));
            ids.push(browser.navigate("/", &set).await.json()["id"].as_str().unwrap().to_owned());
        }
        ready.send(ids).unwrap();
        let mut running = tokio::task::JoinSet::new();
        for (number, browser) in browsers.iter().enumerate() {
            let (shared, browser, public) = (Arc::clone(&self), browser.clone(), proxy.public());
            running.spawn(async move {
                while !shared.done.load(Ordering::Relaxed) {
                    shared.visit(number, &browser, Browser::to(public)).await;
                    tokio::time::sleep(Duration::from_millis(5 + random(15))).await;
                }
            });
        }
        running.join_all().await;
        for (number, browser) in browsers.iter().enumerate() {
            let found = last_number(browser).await;
            let ledger = &self.visitors[number];
            let acknowledged = ledger.acknowledged.load(Ordering::Relaxed);
            self.lost.fetch_add((acknowledged - found).max(0), Ordering::Relaxed);
            assert!(
                found <= acknowledged + ledger.unknown.load(Ordering::Relaxed),
                "an increment was applied twice"
            );
        }
    }

    async fn visit(&self, number: usize, browser: &Browser, newcomer: Browser) {
        let began = Instant::now();
        let (request, outcome) = match random(20) {
            0 => ("without a session", judge_anonymous(&newcomer.fetch("/", &Script::new()).await)),
            1 => ("a life cycle", self.create_and_destroy(newcomer).await),
            2..7 => ("an increment", self.increment(number, browser).await),
            _ => {
                let page = browser.fetch("/", &Script::new().get("/values/marker")).await;
                let outcome = judge(&page, |page| {
                    let found = page.json();
                    if found == json!(marker(number)) {
                        Outcome::Served
                    } else {
                        Outcome::Wrong(format!("{found} for {}", marker(number)))
                    }
                });
                browser.keep(&page);
                ("a marker", outcome)
            }
        };
        let sample = Sample { visitor: number, began, took: began.elapsed(), outcome, request };
        self.samples.lock().unwrap().push(sample);
    }

    async fn increment(&self, number: usize, browser: &Browser) -> Outcome {
        let increment = Script::new().call("POST", "/values/n/increment", "");
        let page = browser.send_without_keeping("GET", "/", &[], &increment).await;
        // A cookie means that a new session was created because the old one was missing.
        let served = |page: &Page| {
            if page.set_cookies().is_empty() { Outcome::Served } else { Outcome::Missing }
        };
        let outcome = judge(&page, served);
        match &outcome {
            Outcome::Served => {
                self.visitors[number].acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Failed(504, _) => {
                self.visitors[number].unknown.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Missing | Outcome::Failed(..) | Outcome::Wrong(_) => {}
        }
        outcome
    }

    /// Creates a session and destroys it; afterwards its cookie must not open it.
    async fn create_and_destroy(&self, browser: Browser) -> Outcome {
        let set = Script::new().patch(&json!({"values": {"marker": "destroyed"}}));
        let created = browser.fetch("/", &set).await;
        let outcome = judge(&created, |_| Outcome::Served);
        if outcome != Outcome::Served {
            return outcome;
        }
        let kept = browser.copy();
        let headers = [("prefer", "return=representation")];
        let destroy = Script::new().call_with("DELETE", "", &headers, "");
        let destroyed = browser.fetch("/", &destroy).await;
        let outcome = judge(&destroyed, |_| Outcome::Served);
        if outcome != Outcome::Served {
            return outcome;
        }
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        // A destroy that was not replicated may be lost by a failover.
        let durable = destroyed.json()["replicated"] != json!(false);
        for _ in 0..3 {
            let page = kept.fetch("/", &Script::new().get("/values")).await;
            let is_served = page.status == 200
                && page.seen().calls.last().is_some_and(|call| call.body.contains("destroyed"));
            if is_served && durable {
                self.resurrected.fetch_add(1, Ordering::Relaxed);
                return Outcome::Wrong("a destroyed session was served".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Outcome::Served
    }
}

/// Reads the counter of a visitor at the end; 0 if its session is missing or no request is served.
async fn last_number(browser: &Browser) -> i64 {
    for _ in 0..100 {
        let page = browser.fetch("/", &Script::new().get("/values/n")).await;
        if page.status == 200 && page.last().status == 200 {
            return page.json().as_i64().unwrap_or(0);
        }
        // The session is missing.
        if page.status == 200 && page.last().status == 404 {
            return 0;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    0
}

/// Judges a page; `served` judges one whose call succeeded.
fn judge(page: &Page, served: impl Fn(&Page) -> Outcome) -> Outcome {
    let touched = !page.set_cookies().is_empty();
    if page.status != 200 {
        if touched {
            return Outcome::Wrong(format!("a cookie with status {}", page.status));
        }
        if page.status == 503 && page.header("retry-after").is_none() {
            return Outcome::Wrong("503 without Retry-After".to_owned());
        }
        return Outcome::Failed(page.status.as_u16(), String::new());
    }
    let call = page.last();
    match call.status {
        200 => served(page),
        404 if call.code() == "no_such_value" => Outcome::Missing,
        // The session was removed between the page and its call.
        409 if call.code() == "session_gone" => Outcome::Missing,
        503 | 504 => {
            let deletes = page.set_cookies().iter().any(|line| line.contains("Max-Age=0"));
            if deletes {
                return Outcome::Wrong("a cookie was deleted".to_owned());
            }
            Outcome::Failed(call.status, call.code())
        }
        status => Outcome::Wrong(format!("{status} {}", call.code())),
    }
}

/// Judges the response to a visitor without a cookie, who must always be served.
fn judge_anonymous(page: &Page) -> Outcome {
    if page.status == 200 && page.set_cookies().is_empty() {
        Outcome::Served
    } else {
        Outcome::Wrong(format!("a visitor without a cookie got {}", page.status))
    }
}

fn marker(number: usize) -> String {
    format!("the marker of {number}")
}

fn random(below: u64) -> u64 {
    u64::from(u16::from_be_bytes(cloakroom::random::bytes())) % below
}
