//! Visitors who go on whatever happens to Redis, and everything that they are answered.
//!
//! Each has a session with a marker of its own and a number. The load has a thread and a runtime of
//! its own, so that what is done to Redis meanwhile may block.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cloakroom::time::Clock;
use serde_json::json;

use crate::stores::directory;
use crate::support::{Browser, Cloakroom, Page, Script, Upstream};

const VISITORS: usize = 32;

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Sample {
    pub visitor: usize,
    pub began: Instant,
    pub took: Duration,
    pub outcome: Outcome,
    /// What was asked for.
    pub asked: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// Served as somebody without a session.
    Gone,
    /// Not served, and said so: by the proxy, or by its API.
    Failed(u16, String),
    /// Another's marker, a cookie set or deleted by a failure, a session that was destroyed, a
    /// visitor without a session turned away: what may never happen.
    Wrong(String),
}

/// Visitors at work.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// The proxy's admin listener, and where its sessions' keys are.
    pub ids: Vec<String>,
}

struct Shared {
    samples: Mutex<Vec<Sample>>,
    over: AtomicBool,
    visitors: Vec<Ledger>,
    lost: AtomicI64,
    /// Destroyed sessions that were served after all.
    risen: AtomicI64,
    destroyed: AtomicI64,
}

#[derive(Default)]
struct Ledger {
    acknowledged: AtomicI64,
    unknown: AtomicI64,
}

/// What became of everything.
pub struct Told {
    pub samples: Vec<Sample>,
    /// Acknowledged increments that are not there.
    pub lost: i64,
    pub destroyed: i64,
    pub risen: i64,
}

impl Load {
    /// Begins, before a proxy with this `[store]`; every visitor has a session when this returns.
    pub fn begin(store: &str) -> Self {
        let visitors = (0..VISITORS).map(|_| Ledger::default()).collect();
        let shared = Arc::new(Shared {
            samples: Mutex::default(),
            over: AtomicBool::new(false),
            visitors,
            lost: AtomicI64::new(0),
            risen: AtomicI64::new(0),
            destroyed: AtomicI64::new(0),
        });
        let (ready, begun) = mpsc::channel();
        let (at_work, store) = (Arc::clone(&shared), store.to_owned());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(at_work.run(&store, &ready));
        });
        let ids = begun.recv_timeout(Duration::from_secs(30)).unwrap();
        Self { shared, thread, ids }
    }

    /// Waits until every visitor has been served without a failure for a second, or until `patience`
    /// is over.
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

    /// Ends it, and counts what is left.
    pub fn end(self) -> Told {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let samples = std::mem::take(&mut *self.shared.samples.lock().unwrap());
        Told {
            samples,
            lost: self.shared.lost.load(Ordering::Relaxed),
            destroyed: self.shared.destroyed.load(Ordering::Relaxed),
            risen: self.shared.risen.load(Ordering::Relaxed),
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
        let mut at_work = tokio::task::JoinSet::new();
        for (number, browser) in browsers.iter().enumerate() {
            let (shared, browser, public) = (Arc::clone(&self), browser.clone(), proxy.public());
            at_work.spawn(async move {
                while !shared.over.load(Ordering::Relaxed) {
                    shared.visit(number, &browser, Browser::to(public)).await;
                    tokio::time::sleep(Duration::from_millis(5 + random(15))).await;
                }
            });
        }
        at_work.join_all().await;
        for (number, browser) in browsers.iter().enumerate() {
            let found = last_word(browser).await;
            let ledger = &self.visitors[number];
            let acknowledged = ledger.acknowledged.load(Ordering::Relaxed);
            self.lost.fetch_add((acknowledged - found).max(0), Ordering::Relaxed);
            assert!(found <= acknowledged + ledger.unknown.load(Ordering::Relaxed), "made twice");
        }
    }

    async fn visit(&self, number: usize, browser: &Browser, stranger: Browser) {
        let began = Instant::now();
        let (asked, outcome) = match random(20) {
            0 => ("without a session", judge_stranger(stranger.fetch("/", &Script::new()).await)),
            1 => ("a life", self.live_and_die(stranger).await),
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
        let sample = Sample { visitor: number, began, took: began.elapsed(), outcome, asked };
        self.samples.lock().unwrap().push(sample);
    }

    async fn increment(&self, number: usize, browser: &Browser) -> Outcome {
        let increment = Script::new().call("POST", "/values/n/increment", "");
        let page = browser.send_without_keeping("GET", "/", &[], &increment).await;
        // A cookie is that of another session, begun because this one was gone.
        let begun = |page: &Page| {
            if page.set_cookies().is_empty() { Outcome::Served } else { Outcome::Gone }
        };
        let outcome = judge(&page, begun);
        match &outcome {
            Outcome::Served => {
                self.visitors[number].acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Failed(504, _) => {
                self.visitors[number].unknown.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Gone | Outcome::Failed(..) | Outcome::Wrong(_) => {}
        }
        outcome
    }

    /// Somebody comes, begins a session and ends it; then nobody may be served as that session.
    async fn live_and_die(&self, browser: Browser) -> Outcome {
        let set = Script::new().patch(&json!({"values": {"marker": "the dead"}}));
        let begun = browser.fetch("/", &set).await;
        let outcome = judge(&begun, |_| Outcome::Served);
        if outcome != Outcome::Served {
            return outcome;
        }
        let kept = browser.copy();
        let told = [("prefer", "return=representation")];
        let end = Script::new().call_with("DELETE", "", &told, "");
        let ended = browser.fetch("/", &end).await;
        let outcome = judge(&ended, |_| Outcome::Served);
        if outcome != Outcome::Served {
            return outcome;
        }
        self.destroyed.fetch_add(1, Ordering::Relaxed);
        // Not replicated in time is not promised to stay dead.
        let promised = ended.json()["replicated"] != json!(false);
        for _ in 0..3 {
            let page = kept.fetch("/", &Script::new().get("/values")).await;
            let is_served = page.status == 200
                && page.seen().calls.last().is_some_and(|call| call.body.contains("the dead"));
            if is_served && promised {
                self.risen.fetch_add(1, Ordering::Relaxed);
                return Outcome::Wrong("a destroyed session was served".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Outcome::Served
    }
}

/// A visitor's number in the end; whoever is not served after a while has none.
async fn last_word(browser: &Browser) -> i64 {
    for _ in 0..100 {
        let page = browser.fetch("/", &Script::new().get("/values/n")).await;
        if page.status == 200 && page.last().status == 200 {
            return page.json().as_i64().unwrap_or(0);
        }
        // Gone.
        if page.status == 200 && page.last().status == 404 {
            return 0;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    0
}

/// What a page says, where `served` says the rest of one that was served.
fn judge(page: &Page, served: impl Fn(&Page) -> Outcome) -> Outcome {
    let touched = !page.set_cookies().is_empty();
    if page.status != 200 {
        if touched {
            return Outcome::Wrong(format!("a cookie beside {}", page.status));
        }
        if page.status == 503 && page.header("retry-after").is_none() {
            return Outcome::Wrong("503 without Retry-After".to_owned());
        }
        return Outcome::Failed(page.status.as_u16(), String::new());
    }
    let call = page.last();
    match call.status {
        200 => served(page),
        404 if call.code() == "no_such_value" => Outcome::Gone,
        // Between the page and its call.
        409 if call.code() == "session_gone" => Outcome::Gone,
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

/// Whoever brings no cookie is let through.
fn judge_stranger(page: Page) -> Outcome {
    if page.status == 200 && page.set_cookies().is_empty() {
        Outcome::Served
    } else {
        Outcome::Wrong(format!("a stranger got {}", page.status))
    }
}

fn marker(number: usize) -> String {
    format!("the marker of {number}")
}

fn random(below: u64) -> u64 {
    u64::from(u16::from_be_bytes(cloakroom::random::bytes())) % below
}
