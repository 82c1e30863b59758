//! Session fixation against the running program: an attacker plants a token in a browser and goes on polling with it,
//! from before the log-in until after the grace period of its rotation.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Browser, Page, Program, Script, Upstream};

const POLL_EVERY: Duration = Duration::from_millis(200);

/// Time that the attacker polls before the log-in.
const BEFORE: Duration = Duration::from_millis(700);

/// Time that it polls after the grace period.
const AFTER: Duration = Duration::from_secs(1);

/// Part of everything that a log-in adds; too long to be part of a random id by chance.
const MARK: &str = "of-ada";

/// A way to log in.
struct Way {
    name: &'static str,
    /// What the site does when the attacker gets its token.
    planted: Script,
    path: &'static str,
    log_in: Script,
    /// The held cookie that the planted token may still be given within the grace period.
    replaced: &'static str,
}

/// The polls of one way to log in.
#[derive(Debug)]
pub struct Polls {
    pub name: &'static str,
    pub total: usize,
    /// Those before the log-in that opened the planted session.
    pub opened_before: usize,
    /// Those within the grace period that got the replaced value.
    pub replaced: usize,
    /// Those after the grace period.
    pub after: usize,
    /// What was given that must not be.
    pub stolen: Vec<String>,
}

fn sets(cookie: &str) -> Script {
    Script::new().header("Set-Cookie", cookie)
}

fn ways() -> [Way; 6] {
    let log_in = json!({"principal": "of-ada", "set": {"address": "of-ada"}});
    let value = || Script::new().patch(&json!({"set": {"basket": 1}}));
    let way = |name, planted, path, log_in, replaced| Way { name, planted, path, log_in, replaced };
    [
        way("API", value(), "/sign-in", Script::new().patch(&log_in), ""),
        way("header", value(), "/sign-in", Script::new().header("X-Session-Patch", &log_in), ""),
        way("changed value", sets("SID=planted"), "/sign-in", sets("SID=of-ada"), "SID=planted"),
        way("first value", value(), "/sign-in", sets("SID=of-ada"), ""),
        way("same value", sets("SID=planted"), "/log-in", sets("SID=planted"), ""),
        way("rotate = false", sets("flash=planted"), "/log-in", sets("flash=of-ada"), ""),
    ]
}

/// Plays all ways at once against a program with this grace period, on the system's clock.
pub async fn fixation(grace: Duration) -> Vec<Polls> {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let listeners = ["[listen]", "api", "admin"]
        .map(|table| format!("[{table}]\naddress = \"127.0.0.1:0\"\n"))
        .concat();
    let text = format!(
        "{listeners}[session]\nrotation_grace = \"{}s\"\n[store]\nurl = \"memory:\"\n\
         [[route]]\nupstream = \"{}\"\nheader_exchange = true\n\
         hold_cookies = [\"SID\", {{ name = \"flash\", rotate = false }}]\n\
         rotate_on = [\"POST /log-in\"]\n",
        grace.as_secs(),
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    let program = Program::start(&file);
    let public = program.serving().await.public;
    join_all(ways().map(|way| Box::pin(play(way, Browser::to(public), grace)))).await
}

async fn play(way: Way, browser: Browser, grace: Duration) -> Polls {
    browser.navigate("/", &way.planted).await;
    let attacker = browser.copy();
    let log_in = async {
        tokio::time::sleep(BEFORE).await;
        let sent = Instant::now();
        let headers = [("sec-fetch-dest", "document"), ("sec-fetch-site", "same-origin")];
        let page = browser.send("POST", way.path, &headers, &way.log_in).await;
        let answered = Instant::now();
        assert_eq!((page.status.as_u16(), page.set_cookies().len()), (200, 1), "{}", way.name);
        assert!(is_in(&browser, &way).await, "{}: the log-in has what it set", way.name);
        (sent, answered)
    };
    let poll = poll(&attacker, Instant::now() + BEFORE + grace + AFTER);
    let ((sent, answered), pages) = tokio::join!(log_in, poll);
    assert!(is_in(&browser, &way).await, "{}: the log-in stays", way.name);
    let mut polls = Polls {
        name: way.name,
        total: pages.len(),
        opened_before: 0,
        replaced: 0,
        after: 0,
        stolen: Vec::new(),
    };
    for (began, ended, page) in &pages {
        let (given, seen) = (cookie(page), page.json());
        let is_open = seen["id"] != Value::Null || !given.is_empty();
        let is_within = *began > answered && *began <= answered + grace;
        let is_after = *began > answered + grace;
        polls.opened_before += usize::from(*ended < sent && seen["id"] != Value::Null);
        polls.replaced += usize::from(is_within && !given.is_empty());
        polls.after += usize::from(is_after);
        let may_be_open = match () {
            () if is_after => false,
            () if is_within => seen["id"] == Value::Null && given == way.replaced,
            () => true,
        };
        if page.body.contains(MARK) || (is_open && !may_be_open) || !page.set_cookies().is_empty() {
            polls.stolen.push(format!("{:?}: {given} {seen}", began.duration_since(answered)));
        }
    }
    polls
}

/// Opens pages by turns as a browser and as a script does until `end`; each with the times of its begin and end.
async fn poll(attacker: &Browser, end: Instant) -> Vec<(Instant, Instant, Page)> {
    let mut pages = Vec::new();
    let mut ticks = tokio::time::interval(POLL_EVERY);
    while Instant::now() < end {
        ticks.tick().await;
        let dest = if pages.len() % 2 == 0 { "document" } else { "empty" };
        let headers = [("sec-fetch-dest", dest), ("sec-fetch-site", "same-origin")];
        let (began, script) = (Instant::now(), Script::new().get(""));
        // It keeps the token that it planted, whatever it gets.
        let page = attacker.send_without_keeping("GET", "/", &headers, &script).await;
        pages.push((began, Instant::now(), page));
    }
    pages
}

/// Returns the Cookie header that the site got.
fn cookie(page: &Page) -> String {
    page.saw("cookie").unwrap_or_default()
}

/// Returns whether the browser has what the log-in has set.
async fn is_in(browser: &Browser, way: &Way) -> bool {
    let page = browser.navigate("/", &Script::new().get("")).await;
    let is_marked = page.body.contains(MARK);
    is_marked || (way.name == "same value" && cookie(&page) == "SID=planted")
}
