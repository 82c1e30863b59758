//! What the page shows of upstreams, connections and log-ins under load.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::Operator;
use super::listeners::configuration;
use super::problems::{find, shown, shown_with};
use crate::support::raw::read_until;
use crate::support::{Browser, Cloakroom, PATIENCE, Program, Script, Upstream, needs, until};

const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Waits until a problem is shown, with these words in its detail, if it has paused in the meantime too.
async fn shown_again(operator: &Operator, code: &str, words: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = find(operator, code).await;
        match found {
            Some(problem) if problem["detail"].as_str().unwrap().contains(words) => return problem,
            other => assert!(Instant::now() < deadline, "{words} is not in {other:?}"),
        }
    }
}

/// Waits until the time since which a problem lasts is known, and checks that it stays the same.
async fn keeps_its_time(operator: &Operator, code: &str) {
    let deadline = Instant::now() + PATIENCE;
    let since = async || shown_again(operator, code, "").await["since"].clone();
    let known = loop {
        let since = since().await;
        if since.is_string() {
            break since;
        }
        assert!(Instant::now() < deadline, "its time is not known");
    };
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(since().await, known);
    }
}

/// Sends requests all the time, each visitor one after the other.
fn visitors(cloakroom: &Cloakroom, count: usize) -> JoinSet<()> {
    let mut visitors = JoinSet::new();
    for _ in 0..count {
        let browser = Browser::new(cloakroom);
        visitors.spawn(async move {
            loop {
                browser.navigate("/", &Script::new()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    visitors
}

/// A site that takes its time: `delay` for each response.
async fn slow_site(delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0) {
                    tokio::time::sleep(delay).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn upstream_slower_than_another_is_shown() {
    let upstream = Upstream::start();
    let slow = slow_site(Duration::from_millis(1200)).await;
    let route = format!("[[route]]\nupstream = [\"{slow}\", \"UPSTREAM\"]\n");
    let cloakroom = Cloakroom::with(&upstream, &route).await;
    let operator = Operator::to(cloakroom.admin());
    assert_eq!(find(&operator, "upstream_slow").await, None);
    let _visitors = visitors(&cloakroom, 20);
    let (detail, _) = shown(&operator, "upstream_slow").await;
    assert!(detail.contains(&slow) && detail.contains(&upstream.url()), "{detail}");
    // That of the bucket: all requests took 1.2 s.
    assert!(detail.contains(" waited more than 1.0 s for "), "{detail}");
    let page = operator.get("/").await;
    assert!(page.body.contains("<th scope=col>p50, "), "{}", page.body);
    let deadline = Instant::now() + PATIENCE;
    let upstreams = loop {
        let now = operator.json("/").await;
        let problems = now["problems"].as_array().unwrap();
        if problems.iter().any(|problem| problem["problem"] == "upstream_slow") {
            break now["upstreams"].clone();
        }
        assert!(Instant::now() < deadline, "it is not slow any more: {now}");
    };
    let (state, p50) = (&upstreams[&slow]["state"], &upstreams[&slow]["latency"]["recent_p50"]);
    assert!(state == "slow" && p50.as_f64() > Some(1.0), "{upstreams}");
    assert_eq!(upstreams[&upstream.url()]["state"], "healthy");
    keeps_its_time(&operator, "upstream_slow").await;
}

/// Starts a site whose listener closes when the task ends. Its connections stay open, and are served.
async fn closing_site() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let accepting = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let _ = stream.write_all(EMPTY).await;
                }
            });
        }
    });
    (url, accepting)
}

#[tokio::test]
async fn open_connections_that_still_respond_are_shown() {
    let [(one, accepting_one), (other, accepting_other)] =
        [closing_site().await, closing_site().await];
    let route = format!("[[route]]\nupstream = [\"{one}\", \"{other}\"]\n");
    let cloakroom = Cloakroom::with(&Upstream::start(), &route).await;
    let operator = Operator::to(cloakroom.admin());
    let _few = visitors(&cloakroom, 8);
    let served = |url: &str| {
        let line = format!("upstream_requests_total{{upstream=\"{url}\",outcome=\"responded\"}} ");
        let text = cloakroom.metrics().text();
        let count = text.split(&line).nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        count.unwrap_or(0)
    };
    until("both are served", || served(&one) > 20 && served(&other) > 20).await;
    assert_eq!(find(&operator, "upstream_ejected").await, None);
    for accepting in [accepting_one, accepting_other] {
        accepting.abort();
        assert!(accepting.await.unwrap_err().is_cancelled());
    }
    // More than the open connections suffice for.
    let _more = visitors(&cloakroom, 24);
    let kept = " because all upstreams of a route have failed; its open connections respond to ";
    let detail = shown_with(&operator, "upstream_ejected", kept).await;
    assert!(detail.contains("Connection refused"), "{detail}");
    assert!(detail.ends_with(" requests per second, new ones fail"), "{detail}");
    keeps_its_time(&operator, "upstream_ejected").await;
}

/// Runs the command of the runbook that lists the addresses with most connections.
fn busiest_addresses(listener: SocketAddr) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides/operate");
    let runbook = std::fs::read_to_string(folder.join("runbook.md")).unwrap();
    let command = runbook.split('`').find(|code| code.starts_with("ss -Htn ")).unwrap();
    let command = command.replace(":443", &format!(":{}", listener.port()));
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn clients_that_send_nothing_are_shown() {
    needs!("ss");
    let upstream = Upstream::start();
    let more = "[store]\nurl = \"memory:\"\n[limits]\nheader_timeout = \"1s\"";
    let (_directory, file) = configuration(&upstream, more, "address = \"127.0.0.1:0\"");
    let program = Program::start(&file);
    let serving = program.serving().await;
    let operator = Operator::to(serving.admin);
    let aborted = async || operator.json("/").await["connections_aborted"].clone();
    assert_eq!(aborted().await["header_timeout"]["total"], 0);
    let page = operator.get("/").await;
    assert!(page.body.contains("No connection was refused or closed early"), "{}", page.body);
    let limit = ["--nofile=200".to_owned(), format!("--pid={}", program.id())];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    // More than may be open: one waits for each that ends.
    let mut crowd = JoinSet::new();
    for _ in 0..250 {
        crowd.spawn(async move {
            loop {
                if let Ok(mut silent) = TcpStream::connect(serving.public).await {
                    let _ = silent.read(&mut [0; 1]).await;
                }
            }
        });
    }
    let reason =
        " sent no request in time (header_timeout): clients hold connections without requests";
    shown_again(&operator, "accept_paused", reason).await;
    keeps_its_time(&operator, "accept_paused").await;
    let timed_out = &aborted().await["header_timeout"];
    assert!(timed_out["total"].as_u64() > Some(0), "{timed_out}");
    assert!(timed_out["recent_per_second"].as_f64() > Some(0.0), "{timed_out}");
    let page = operator.get("/").await;
    let connections = page.body.split("id=aborted").nth(1).unwrap();
    assert!(connections.contains("<th scope=row>header timeout</th>"), "{connections}");
    assert!(busiest_addresses(serving.public).contains(" 127.0.0.1\n"));
    crowd.shutdown().await;
    let mut client = TcpStream::connect(serving.public).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn start_of_the_comparison_of_log_ins_is_shown() {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let operator = Operator::to(cloakroom.admin());
    let from = async || operator.json("/").await["log_ins_compared_from"].clone();
    let first = from().await;
    let (now, text) = (cloakroom.now(), first.as_str().unwrap());
    assert!(text > now.to_string().as_str(), "{text}, now {now}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(from().await, first);
    let page = operator.get("/").await;
    let rates = page.body.split("id=rates").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(
        rates.contains(&format!("Log-ins are compared from <time datetime='{text}'>")),
        "{rates}"
    );
}
