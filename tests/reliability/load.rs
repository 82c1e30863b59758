//! Load: clients that request pages in a loop over HTTP/1.1 or HTTP/2, and a site that serves them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cloakroom::server::{Address, ConnectionLimit, Peer, Protocol, Settings, Tasks, bind, serve};
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;

/// Size of a page in bytes.
pub const PAGE: usize = 2048;

/// Starts a site with one page, sent after the whole request was read. It runs in its own thread
/// until the drain.
pub fn start_site(tasks: &Tasks) -> SocketAddr {
    let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
    let Address::Tcp(address) = *listener.local_address() else { panic!("an address over TCP") };
    let page = |request: Request<Incoming>, _: Peer| async {
        // If the body was aborted, the response is never sent.
        let _ = request.into_body().collect().await;
        Response::new(Body::full(Bytes::from_static(&[b'.'; PAGE])))
    };
    let settings = Settings { protocol: Protocol::Http1, ..Settings::default() };
    let tasks = tasks.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = ConnectionLimit::new(20_000);
        runtime.block_on(serve(listener, settings, limit, Arc::new(page), tasks)).unwrap();
    });
    address
}

/// Results of requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// Complete pages.
    pub whole: AtomicUsize,
    /// Responses with another status.
    pub failed: AtomicUsize,
    /// Truncated responses.
    pub truncated: AtomicUsize,
    /// No response on a connection that had served a request before.
    pub unanswered: AtomicUsize,
    /// No response on a new connection, or no connection.
    pub refused: AtomicUsize,
    /// Requests that the server certainly did not process, according to HTTP/2 (RFC 9113, section
    /// 8.7).
    pub unsent: AtomicUsize,
}

impl Tally {
    pub fn of(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    /// Returns the number of failed requests, without those that are safe to retry.
    pub fn lost(&self) -> usize {
        [&self.failed, &self.truncated, &self.unanswered, &self.refused]
            .into_iter()
            .map(Self::of)
            .sum()
    }

    fn add(&self, counter: impl Fn(&Self) -> &AtomicUsize) {
        counter(self).fetch_add(1, Ordering::SeqCst);
    }
}

/// Clients that run until they are stopped.
pub struct Clients {
    running: JoinSet<Vec<Duration>>,
    stop: Arc<AtomicBool>,
    pub tally: Arc<Tally>,
}

impl Clients {
    /// Starts `count` clients, which use the given versions in turn and pause between their
    /// requests.
    pub fn start(address: SocketAddr, count: usize, versions: &[Version], pause: Duration) -> Self {
        let (stop, tally) = (Arc::<AtomicBool>::default(), Arc::<Tally>::default());
        let mut running = JoinSet::new();
        for index in 0..count {
            let version = versions[index % versions.len()];
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            running.spawn(client(address, version, pause, stop, tally));
        }
        Self { running, stop, tally }
    }

    /// Lets each client finish its request. Returns the sorted durations of all requests.
    pub async fn stop(self) -> (Arc<Tally>, Vec<Duration>) {
        self.stop.store(true, Ordering::SeqCst);
        let mut took: Vec<Duration> = self.running.join_all().await.into_iter().flatten().collect();
        took.sort_unstable();
        (self.tally, took)
    }
}

/// Returns the quantile of a sorted list of durations.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a list"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn connect(address: SocketAddr, version: Version) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let io = TokioIo::new(stream);
        Some(if version == Version::HTTP_2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.ok()?;
            tokio::spawn(connection);
            Self::Http1(sender)
        })
    }

    async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok() && !sender.is_closed(),
        }
    }

    async fn send(&mut self) -> hyper::Result<Response<Incoming>> {
        let request = |uri: &str| Request::get(uri).header("host", "localhost").body(Empty::new());
        match self {
            Self::Http1(sender) => sender.send_request(request("/").unwrap()).await,
            Self::Http2(sender) => {
                let mut request = request("http://localhost/").unwrap();
                request.headers_mut().clear();
                sender.send_request(request).await
            }
        }
    }
}

async fn client(
    address: SocketAddr,
    version: Version,
    pause: Duration,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
) -> Vec<Duration> {
    let (mut kept, mut took): (Option<Sender>, _) = (None, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        let reused = kept.is_some();
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => {
                if let Ok(Some(sender)) = timeout(PATIENCE, Sender::connect(address, version)).await
                {
                    sender
                } else {
                    tally.add(|tally| &tally.refused);
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
        };
        // The server has announced that it closes this connection.
        if reused && !sender.is_ready().await {
            continue;
        }
        let began = Instant::now();
        match timeout(PATIENCE, visit(&mut sender)).await.unwrap_or(Visit::Truncated) {
            Visit::Whole => {
                took.push(began.elapsed());
                tally.add(|tally| &tally.whole);
                kept = Some(sender);
            }
            Visit::Failed => tally.add(|tally| &tally.failed),
            Visit::Truncated => tally.add(|tally| &tally.truncated),
            Visit::Unsent => tally.add(|tally| &tally.unsent),
            Visit::Unanswered if reused => tally.add(|tally| &tally.unanswered),
            Visit::Unanswered => tally.add(|tally| &tally.refused),
        }
        sleep(pause).await;
    }
    took
}

enum Visit {
    Whole,
    Failed,
    Truncated,
    Unsent,
    Unanswered,
}

async fn visit(sender: &mut Sender) -> Visit {
    let response = match sender.send().await {
        Ok(response) => response,
        Err(error) if error.is_canceled() || is_refused(&error) => return Visit::Unsent,
        Err(_) => return Visit::Unanswered,
    };
    let status = response.status();
    let body = response.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    match body {
        Ok(body) if status == 200 && body.len() == PAGE => Visit::Whole,
        Ok(_) => Visit::Failed,
        Err(_) => Visit::Truncated,
    }
}

/// Returns true if the server did not process the stream: it was refused, or is beyond a GOAWAY
/// (RFC 9113, section 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
    })
}
