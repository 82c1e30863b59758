//! Requests around a log-in whose responses arrive before and after its response.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::report::{Measurement, Report};
use crate::stores::{ALL, Kind, TestBed};
use crate::support::{ANSWERED_AT, Browser, Page, Script, elapsed};

const ROUNDS: usize = 1_000;

// Requests around each log-in: those whose calls precede it and whose responses follow it, those
// that race with it, those that race with it and then wait for it, and those between its call and
// its response.
const HELD: usize = 3;
const RACING: usize = 8;
const RACING_HELD: usize = 3;
const LATE: usize = 6;
const PARALLEL: usize = HELD + RACING + RACING_HELD + LATE;

#[derive(Clone, Copy, Debug)]
enum LogIn {
    /// One patch with the principal.
    Patch,
    /// Flush, then set, as the Django example does.
    FlushThenSet,
}

#[derive(Debug, Default)]
struct Count {
    /// Responses whose head was certainly sent after the log-in's call had returned, and those of
    /// them with another cookie than the log-in's.
    after: usize,
    wrong: usize,
    /// Responses that may have been sent before and arrived after, and those of them with another
    /// cookie.
    crossing: usize,
    crossed: usize,
    /// Rounds by their result: logged in at once, after another log-in, not at all.
    at_once: usize,
    again: usize,
    stranded: usize,
    /// Rounds that were not logged in at once although no cookie had crossed.
    lost: usize,
    /// Responses that did not come from the site.
    no_response: usize,
}

/// Order in which the responses arrive at the browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// As they are sent; the log-in's before those that wait for it.
    LogInFirst,
    /// As they are sent; the log-in's last.
    LogInLast,
    /// All late and in random order, as on a bad mobile connection.
    Shuffled,
}

/// A response and the time of its arrival.
struct Arrived {
    page: Page,
    at: Duration,
}

pub async fn run(report: &mut Report) {
    for kind in ALL {
        for (method, name) in
            [(LogIn::Patch, "a patch"), (LogIn::FlushThenSet, "flush, then set (Django's way)")]
        {
            report
                .row(
                    format!(
                        "{PARALLEL} requests (reads, increments, navigations) during a log-in by {name}, periodic rotation due; in a third of the rounds all responses arrive late and in random order; {}",
                        kind.name()
                    ),
                    format!("{ROUNDS} log-ins"),
                    "no response sent after the log-in's call had returned has another cookie than the log-in's; all end logged in, without a second log-in if no cookie crossed",
                    storm(kind, method),
                )
                .await;
        }
    }
}

async fn storm(kind: Kind, method: LogIn) -> Measurement {
    let bed = TestBed::new(kind, "").await;
    let mut count = Count::default();
    for number in 0..ROUNDS {
        let wires = [Wire::LogInFirst, Wire::LogInLast, Wire::Shuffled];
        round(&bed, number, (method, wires[number % 3]), &mut count).await;
        bed.upstream.take_seen();
    }
    let Count { after, wrong, crossing, crossed, at_once, again, stranded, lost, no_response } =
        count;
    Measurement {
        text: format!(
            "{after} responses sent after, {wrong} with another cookie; {crossing} crossed the log-in, {crossed} with another cookie; \
             logged in at once {at_once}, by a second log-in {again}, never {stranded}; {no_response} without a response of the site"
        ),
        passed: wrong == 0 && stranded == 0 && lost == 0 && no_response == 0,
    }
}

async fn round(bed: &TestBed, number: usize, (method, wire): (LogIn, Wire), count: &mut Count) {
    let TestBed { upstream, cloakroom, .. } = bed;
    let browser = Browser::new(cloakroom);
    browser
        .navigate("/", &Script::new().patch(&json!({"values": {"cart": [number], "n": 0}})))
        .await;
    cloakroom.advance(Duration::from_secs(3601));
    let (answer, late) = (format!("answer-{number}"), format!("late-{number}"));

    let mut others = JoinSet::new();
    let mut send = |script: Script, kind: usize| {
        let browser = browser.clone();
        others.spawn(async move { arrive(&browser, &script, (kind, wire)).await });
    };
    for kind in 0..HELD {
        send(work(kind).wait(&late), kind);
    }
    upstream.arrived(&late, HELD).await;
    let place = usize::from(cloakroom::random::bytes::<1>()[0]) % (RACING + 1);
    let mut log_in = JoinSet::new();
    for kind in 0..=RACING {
        if kind == place {
            let (browser, script) = (browser.clone(), log_in_by(method).wait(&answer));
            log_in.spawn(async move { arrive(&browser, &script, (0, wire)).await });
        } else {
            send(work(kind), kind);
        }
    }
    for kind in 0..RACING_HELD {
        send(Script::new().wait(&late), kind);
    }
    upstream.arrived(&answer, 1).await;
    for kind in 0..LATE {
        send(work(kind), kind);
    }

    let (mut log_in, mut others) = if wire == Wire::LogInFirst {
        upstream.open(&answer);
        let log_in = log_in.join_all().await.pop().unwrap();
        upstream.arrived(&late, HELD + RACING_HELD).await;
        upstream.open(&late);
        (log_in, others.join_all().await)
    } else {
        upstream.open(&late);
        let others = others.join_all().await;
        upstream.open(&answer);
        (log_in.join_all().await.pop().unwrap(), others)
    };
    if wire == Wire::Shuffled {
        deliver(&browser, &mut log_in, &mut others);
    }
    judge(&browser, method, &log_in, &others, count).await;
}

/// Delivers all responses to the browser in random order.
fn deliver(browser: &Browser, log_in: &mut Arrived, others: &mut [Arrived]) {
    let mut answers: Vec<_> = others.iter_mut().chain([log_in]).collect();
    answers.sort_by_cached_key(|_| cloakroom::random::bytes::<8>());
    for answer in answers {
        browser.keep(&answer.page);
        answer.at = elapsed();
    }
}

/// Returns the script of a request around the log-in.
fn work(kind: usize) -> Script {
    match kind % 3 {
        0 => Script::new().get(""),
        1 => Script::new().call("POST", "/values/n/increment", ""),
        _ => Script::new(),
    }
}

fn log_in_by(method: LogIn) -> Script {
    let patch = json!({"principal": "alice", "values": {"greeting": "hello"}});
    match method {
        LogIn::Patch => Script::new().patch(&patch),
        LogIn::FlushThenSet => Script::new().call("DELETE", "", "").patch(&patch),
    }
}

async fn arrive(browser: &Browser, script: &Script, (kind, wire): (usize, Wire)) -> Arrived {
    let headers = match kind % 2 {
        0 => [("sec-fetch-dest", "document"), ("sec-fetch-site", "none")],
        _ => [("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-origin")],
    };
    let page = browser.send_without_keeping("GET", "/", &headers, script).await;
    if wire != Wire::Shuffled {
        browser.keep(&page);
    }
    Arrived { page, at: elapsed() }
}

async fn judge(
    browser: &Browser,
    method: LogIn,
    log_in: &Arrived,
    others: &[Arrived],
    count: &mut Count,
) {
    let seen = log_in.page.seen();
    assert!(seen.calls.iter().all(|call| call.status < 300), "{:?}", seen.calls);
    let lines = log_in.page.set_cookies();
    assert_eq!(lines.len(), 1, "a log-in sets its cookie");
    let fresh = value_of(&lines[0]);
    let crossed_before = count.crossed;
    for other in others {
        let Some(answered_at) = other.page.header(ANSWERED_AT) else {
            count.no_response += 1;
            continue;
        };
        let answered_at = Duration::from_micros(answered_at.parse().unwrap());
        let carries_another = other.page.set_cookies().iter().any(|line| value_of(line) != fresh);
        if answered_at > seen.called_at {
            count.after += 1;
            count.wrong += usize::from(carries_another);
        } else if other.at > seen.called_at {
            count.crossing += 1;
            count.crossed += usize::from(carries_another);
        }
    }
    if is_alice(browser).await {
        count.at_once += 1;
        return;
    }
    count.lost += usize::from(count.crossed == crossed_before);
    browser.navigate("/", &log_in_by(method)).await;
    if is_alice(browser).await {
        count.again += 1;
    } else {
        count.stranded += 1;
    }
}

async fn is_alice(browser: &Browser) -> bool {
    let page = browser.navigate("/", &Script::new().get("")).await;
    page.last().status == 200 && page.json()["principal"] == "alice"
}

fn value_of(line: &str) -> String {
    cookie::Cookie::parse(line).unwrap().value().to_owned()
}
