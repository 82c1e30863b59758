//! SIGTERM while requests are in flight: they complete.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::{Address, ConnectionLimit, Peer, Protocol, Settings, Tasks, bind, serve};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::process::{Addresses, Process};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::PATIENCE;

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 50;
const PAGE: usize = 256 * 1024;

/// Result of a request.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The complete page.
    Whole,
    /// Another status, or a page that reports that its API call failed.
    Failed(String),
    /// The connection was refused.
    Refused,
    /// The connection closed before the first byte of the response; a kept-alive one may do so at
    /// any time.
    NoResponse,
    /// The connection closed within the response.
    Truncated,
}

#[derive(Debug, Default)]
struct Count {
    whole: AtomicUsize,
    whole_after: AtomicUsize,
    failed: AtomicUsize,
    no_response: AtomicUsize,
    no_response_fresh: AtomicUsize,
    truncated: AtomicUsize,
}

pub async fn run(report: &mut Report) {
    report
        .row(
            format!(
                "SIGTERM while {CONNECTIONS} connections load pages of {} KiB whose upstream calls the session API, SQLite",
                PAGE / 1024
            ),
            format!("{ROUNDS} rounds"),
            "0 responses truncated, 0 pages failed, exit code 0",
            drains(),
        )
        .await;
}

async fn drains() -> Measurement {
    let tasks = Tasks::new();
    let upstream = start_site(&tasks);
    let count = Arc::new(Count::default());
    let (mut clean_exits, mut slowest) = (0, Duration::ZERO);
    for round in 0..ROUNDS {
        let (directory, addresses) = (directory(), Addresses::free());
        addresses.configure(directory.path(), upstream, "sqlite:cloakroom.db");
        let mut process = Process::start(directory.path(), &addresses).await;
        let terminated = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            clients.spawn(load(addresses.public, Arc::clone(&count), Arc::clone(&terminated)));
        }
        tokio::time::sleep(Duration::from_millis(200 + 7 * round as u64)).await;
        terminated.store(1, Ordering::SeqCst);
        process.terminate();
        let began = std::time::Instant::now();
        clients.join_all().await;
        clean_exits += usize::from(process.ended().await.is_some_and(|status| status.success()));
        slowest = slowest.max(began.elapsed());
    }
    tasks.drain();
    let of = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let Count { whole, whole_after, failed, no_response, no_response_fresh, truncated } = &*count;
    Measurement {
        text: format!(
            "{} of {} responses truncated, {} failed; {} completed after SIGTERM; {} kept-alive connections closed as their next request arrived, {} new ones reset; {clean_exits} times exit code 0, after at most {} ms",
            of(truncated),
            of(whole),
            of(failed),
            of(whole_after),
            of(no_response),
            of(no_response_fresh),
            slowest.as_millis()
        ),
        passed: of(truncated) == 0
            && of(failed) == 0
            && clean_exits == ROUNDS
            && of(whole_after) > 0,
    }
}

/// Sends requests until connections are refused; bounded in case the proxy does not exit.
async fn load(address: SocketAddr, count: Arc<Count>, terminated: Arc<AtomicUsize>) {
    let mut kept = None;
    for _ in 0..10_000 {
        let reused = kept.is_some();
        match tokio::time::timeout(PATIENCE, visit(address, &mut kept))
            .await
            .unwrap_or(End::Truncated)
        {
            End::Whole => {
                count.whole.fetch_add(1, Ordering::SeqCst);
                count.whole_after.fetch_add(terminated.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            End::Failed(what) => {
                tracing::warn!(what, "a page failed");
                count.failed.fetch_add(1, Ordering::SeqCst);
            }
            End::Refused => return,
            End::NoResponse if reused => drop(count.no_response.fetch_add(1, Ordering::SeqCst)),
            End::NoResponse => drop(count.no_response_fresh.fetch_add(1, Ordering::SeqCst)),
            End::Truncated => drop(count.truncated.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// Sends one request, on the kept-alive connection if there is one.
async fn visit(address: SocketAddr, kept: &mut Option<TcpStream>) -> End {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(_) => return End::Refused,
        },
    };
    if stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.is_err() {
        return End::NoResponse;
    }
    let mut answer = Vec::with_capacity(PAGE + 1024);
    loop {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) if answer.is_empty() => return End::NoResponse,
            Ok(0) | Err(_) => return End::Truncated,
            Ok(_) => {}
        }
        let Some(end) = answer.windows(4).take(4096).position(|bytes| bytes == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let Some(length) = length.and_then(|length| length.parse::<usize>().ok()) else {
            return End::Failed(head);
        };
        if answer.len() < end + 4 + length {
            continue;
        }
        if !head.starts_with("http/1.1 200") || !head.contains("x-called: 200") {
            return End::Failed(head);
        }
        if !head.contains("connection: close") {
            *kept = Some(stream);
        }
        return End::Whole;
    }
}

/// Starts a site with large pages that wait, call the API and wait again.
fn start_site(tasks: &Tasks) -> SocketAddr {
    let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
    let Address::Tcp(address) = *listener.local_address() else { panic!("an address over TCP") };
    let own = tasks.clone();
    let handler =
        move |request: Request<Incoming>, _: Peer| page(request.headers().clone(), own.clone());
    let settings = Settings { protocol: Protocol::Http1, ..Settings::default() };
    let limit = ConnectionLimit::new(10_000);
    tasks.run(serve(listener, settings, limit, Arc::new(handler), tasks.clone())).detach();
    address
}

async fn page(headers: HeaderMap, tasks: Tasks) -> Response<Body> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    let header = |name: &str| headers[name].to_str().unwrap();
    let (authority, path) =
        header("x-session-url").strip_prefix("http://").unwrap().split_once('/').unwrap();
    let target: Target = format!("http://{authority}").parse().unwrap();
    let request = Request::post(format!("/{path}/values/n/increment"))
        .header("x-session-token", header("x-session-token"))
        .body(Body::empty())
        .unwrap();
    // PHP opens a connection for each call.
    let pool = Pool::new(target, Config { max_idle: 0, ..Config::default() });
    let called = match pool.fetch(request, &tasks, 1 << 16, PATIENCE).await {
        Ok(answer) => answer.status().as_u16(),
        Err(_) => 0,
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut response = Response::new(Body::full(vec![b'.'; PAGE]));
    response.headers_mut().insert("x-called", called.into());
    response
}
