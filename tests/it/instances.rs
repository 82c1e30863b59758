//! Several instances of the program on one Redis, with latency.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::guide::Guide;
use crate::support::raw::exchange;
use crate::support::{
    API, Browser, Fault, FaultProxy, KEY, Page, Program, RedisServer, Script, Serving, Upstream,
    needs, until,
};

/// A running instance, and the fault proxy between it and Redis.
struct Instance {
    program: Program,
    serving: Serving,
    file: PathBuf,
    /// The configuration without `[session]`.
    text: String,
    _directory: TempDir,
    relay: FaultProxy,
}

/// From 1 to 5 ms in each direction.
const LATENCY: Fault =
    Fault::Delay { fixed: Duration::from_millis(1), jitter: Duration::from_millis(4) };

/// Less than the 50 ms by which a cache may lag behind.
const FAR: Fault = Fault::Delay { fixed: Duration::from_millis(12), jitter: Duration::ZERO };

impl Instance {
    /// Starts an instance with these lines in `[session]` and `[store]`.
    async fn start(upstream: &Upstream, server: &RedisServer, session: &str, store: &str) -> Self {
        let relay = FaultProxy::to(server.address());
        relay.set(LATENCY);
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n\
             [store]\nurl = \"redis://{}/\"\ntimeout = \"20s\"\n{store}\n\
             [[route]]\nupstream = \"{}\"\n",
            relay.address(),
            upstream.url()
        );
        let file = directory.path().join("cloakroom.toml");
        std::fs::write(&file, format!("{text}[session]\n{session}\n")).unwrap();
        let program = Program::start(&file);
        let serving = program.serving().await;
        Self { program, serving, file, text, _directory: directory, relay }
    }

    /// Reloads the configuration with these lines in `[session]`.
    async fn reload(&self, session: &str) {
        let reloads = || self.program.log().matches("configuration reloaded").count();
        let before = reloads();
        std::fs::write(&self.file, format!("{}[session]\n{session}\n", self.text)).unwrap();
        self.program.signal("-HUP");
        until("the configuration is reloaded", || reloads() > before).await;
    }

    /// Returns how many cookies of this key have opened a session at this instance.
    async fn tokens(&self, fingerprint: &str) -> u64 {
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = exchange(self.serving.admin, ask).await;
        let wanted = format!("cloakroom_session_tokens_total{{key=\"{fingerprint}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&wanted));
        count.unwrap_or_else(|| panic!("{fingerprint}: {text}")).trim().parse().unwrap()
    }

    /// Opens a page at this instance, whose API the upstream calls.
    async fn page(&self, browser: &Browser, script: &Script) -> Page {
        let api = format!("http://{}/_session", self.serving.api);
        let headers = [(API, &*api), ("sec-fetch-dest", "document"), ("sec-fetch-site", "none")];
        browser.at(self.serving.public).send("GET", "/", &headers, script).await
    }
}

/// Logs in at one instance and opens the next page at the other, whose cache has the session from before; then rotates
/// and does the same.
async fn visit(here: &Instance, there: &Instance, round: usize) {
    let browser = Browser::to(here.serving.public);
    here.page(&browser, &Script::new().call("PUT", "/values/n", "1")).await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    let rotate = Script::new().call("POST", "/rotate", "");
    for script in [log_in, rotate] {
        there.page(&browser, &Script::new()).await;
        let changed = here.page(&browser, &script).await;
        assert_eq!((changed.last().status, changed.set_cookies().len()), (200, 1));
        let good = browser.cookie();
        let next = there.page(&browser, &Script::new().get("/values")).await;
        let error = next.saw("x-session-error");
        assert_eq!((browser.cookie(), error), (good, None), "round {round}: the cookie stays");
        assert_eq!(next.saw("x-session-principal").as_deref(), Some("ada"), "round {round}");
        assert_eq!(next.json(), json!({"n": 1}), "round {round}");
    }
}

#[tokio::test]
async fn log_in_at_one_instance_opens_at_the_other() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    let keys = format!("keys = [\"{KEY}\"]");
    let cache = "cache = { max_bytes = \"4MiB\" }";
    let a = Arc::new(Instance::start(&upstream, &server, &keys, cache).await);
    let b = Arc::new(Instance::start(&upstream, &server, &keys, cache).await);
    for (near, far) in [(&a, &b), (&b, &a)] {
        // The next page is requested before the invalidation of the cached record arrives.
        near.relay.set(Fault::None);
        far.relay.set(FAR);
        let mut visitors = JoinSet::new();
        for _ in 0..8 {
            let (near, far) = (Arc::clone(near), Arc::clone(far));
            visitors.spawn(async move {
                for round in 0..8 {
                    visit(&near, &far, round).await;
                }
            });
        }
        visitors.join_all().await;
    }
}

/// The keys of a key rotation, and their fingerprints.
const OLD: (&str, &str) = (KEY, "6e615dab19860092");
const NEW: (&str, &str) = ("bmV3IGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ", "c5f0b8b99e0612aa");
const THIRD: (&str, &str) = ("b2xkIGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ", "0b079654b4cfaa77");

const WARNING: &str = "first session key is new to other instances";
const MISSING: &str = "first session key is missing from another instance";

fn keys(keys: &[(&str, &str)]) -> String {
    let keys: Vec<_> = keys.iter().map(|(key, _)| format!("\"{key}\"")).collect();
    format!("keys = [{}]\nrotation_grace = \"1s\"\ntouch_interval = \"1s\"\n", keys.join(", "))
}

/// Visitors who open pages at two instances in turn, and must stay logged in.
struct Visitors {
    running: JoinSet<()>,
    pages: Arc<Vec<AtomicUsize>>,
    stopped: Arc<AtomicBool>,
}

impl Visitors {
    async fn start(count: usize, here: &Arc<Instance>, there: &Arc<Instance>) -> Self {
        let pages: Arc<Vec<_>> = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
        let stopped = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for at in 0..count {
            let instances = [Arc::clone(here), Arc::clone(there)];
            let stopped = Arc::clone(&stopped);
            let pages = Arc::clone(&pages);
            let browser = Browser::to(here.serving.public);
            let log_in = Script::new().patch(&json!({"principal": "ada"}));
            here.page(&browser, &log_in).await;
            running.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    let page = pages[at].fetch_add(1, Ordering::Relaxed);
                    let page = instances[page % 2].page(&browser, &Script::new()).await;
                    let found = (page.saw("x-session-principal"), page.saw("x-session-error"));
                    assert_eq!(found, (Some("ada".to_owned()), None), "visitor {at}");
                }
            });
        }
        Self { running, pages, stopped }
    }

    /// Waits until each visitor has opened a page at both instances.
    async fn round(&mut self) {
        let before: Vec<_> = self.pages.iter().map(|one| one.load(Ordering::Relaxed)).collect();
        let pages = Arc::clone(&self.pages);
        let all_have = move || {
            let now = pages.iter().map(|one| one.load(Ordering::Relaxed));
            now.zip(&before).all(|(now, before)| now > before + 2)
        };
        tokio::select! {
            () = until("the visitors have opened pages", all_have) => {}
            Some(ended) = self.running.join_next() => panic!("a visitor stopped: {ended:?}"),
        }
    }

    async fn stop(self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.running.join_all().await;
    }
}

/// Waits until a key has been recorded for longer than `rotation_grace`, as operators have to.
async fn known(server: &RedisServer, fingerprint: &str) {
    let is_known = || {
        let since = server.command(&["ZSCORE", "cloakroom:keys", fingerprint]).text();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        since.parse::<u128>().is_ok_and(|since| now > since + 1_000)
    };
    until("the key is known", is_known).await;
}

/// Returns the keys of each step of docs/guides/operate/change-the-key.md.
fn steps() -> [Vec<(&'static str, &'static str)>; 3] {
    let page = Guide::open("change-the-key.md");
    let lists = page.text().split("`keys = [").skip(1).map(|rest| rest.split(']').next().unwrap());
    let key = |name: &str| match name {
        "OLD" => OLD,
        "NEW" => NEW,
        name => panic!("{name} is no key of the guide"),
    };
    let steps = lists.map(|list| list.split(", ").map(key).collect());
    steps.collect::<Vec<_>>().try_into().expect("three steps")
}

#[tokio::test]
async fn key_rotation_in_three_steps_logs_nobody_out() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let a = Arc::new(Instance::start(&upstream, &server, &keys(&[OLD]), "").await);
    let b = Arc::new(Instance::start(&upstream, &server, &keys(&[OLD]), "").await);
    let mut visitors = Visitors::start(6, &a, &b).await;
    visitors.round().await;
    for step in steps() {
        for instance in [&a, &b] {
            instance.reload(&keys(&step)).await;
            visitors.round().await;
        }
        let count = async || a.tokens(OLD.1).await + b.tokens(OLD.1).await;
        match *step {
            [OLD, NEW] => {
                assert!(count().await > 0);
                known(&server, NEW.1).await;
            }
            // The old key can be removed when no cookie of it arrives any more.
            [NEW, OLD] => {
                let mut before = count().await;
                loop {
                    visitors.round().await;
                    let now = count().await;
                    if std::mem::replace(&mut before, now) == now {
                        break;
                    }
                }
            }
            _ => {
                assert_eq!(step, [NEW]);
                assert!(a.tokens(NEW.1).await > 0);
            }
        }
    }
    visitors.round().await;
    visitors.stop().await;
    for instance in [&a, &b] {
        let log = instance.program.log();
        assert!(!log.contains(WARNING) && !log.contains(MISSING), "{log}");
        let line = format!("first=\"{}\" older=\"{}\"", NEW.1, OLD.1);
        assert!(log.contains(&line), "{line}: {log}");
    }
}

#[tokio::test]
async fn unknown_first_key_warns_at_once() {
    needs!("redis-server");
    let (upstream, server) = (Upstream::start(), RedisServer::start(&[]));
    let reloaded = Instance::start(&upstream, &server, &keys(&[OLD]), "").await;
    reloaded.program.wait_for_log("session keys, by fingerprint").await;
    known(&server, OLD.1).await;
    reloaded.reload(&keys(&[NEW, OLD])).await;
    reloaded.program.wait_for_log(WARNING).await;
    let line = |log: String| log.lines().find(|line| line.contains(WARNING)).map(str::to_owned);
    let warning = line(reloaded.program.log()).unwrap();
    assert!(warning.contains(NEW.1) && !warning.contains(NEW.0), "{warning}");
    // A restart with another first key warns too.
    let started = Instance::start(&upstream, &server, &keys(&[THIRD, OLD]), "").await;
    started.program.wait_for_log(WARNING).await;
    let log = line(started.program.log()).unwrap();
    assert!(log.contains(THIRD.1), "{log}");
    // The other instance finds its key missing.
    reloaded.program.wait_for_log(MISSING).await;
    let log = reloaded.program.log();
    let fields = format!("key={} others=\"", NEW.1);
    let missing: Vec<_> = log.lines().filter(|line| line.contains(MISSING)).collect();
    let [missing] = missing.as_slice() else { panic!("{log}") };
    assert!(missing.contains(&fields) && missing.contains(THIRD.1), "{missing}");
    assert!(!started.program.log().contains(MISSING), "{}", started.program.log());
}
