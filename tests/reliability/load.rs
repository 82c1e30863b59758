//! Clients that ask for pages as long as they are let, over HTTP/1.1 or HTTP/2, and a site that has them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cloakroom::server::{Address, Peer, Protocol, Room, Settings, Tasks, bind, serve};
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;

/// The bytes of a page.
pub const PAGE: usize = 2048;

/// A site of one page, for those who say all that they want to say; in a thread of its own, until the drain.
pub fn start_site(tasks: &Tasks) -> SocketAddr {
    let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
    let Address::Tcp(address) = *listener.local_address() else { panic!("an address over TCP") };
    let page = |request: Request<Incoming>, _: Peer| async {
        // One that broke off is answered to nobody.
        let _ = request.into_body().collect().await;
        Response::new(Body::full(Bytes::from_static(&[b'.'; PAGE])))
    };
    let settings = Settings { protocol: Protocol::Http1, ..Settings::default() };
    let tasks = tasks.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let room = Room::new(20_000);
        runtime.block_on(serve(listener, settings, room, Arc::new(page), tasks)).unwrap();
    });
    address
}

/// How requests ended.
#[derive(Debug, Default)]
pub struct Tally {
    /// With the whole page.
    pub whole: AtomicUsize,
    /// With another status.
    pub failed: AtomicUsize,
    /// In the midst of an answer.
    pub cut: AtomicUsize,
    /// Nothing came, on a connection that had served before.
    pub unanswered: AtomicUsize,
    /// The same on a new one, or there was none.
    pub refused: AtomicUsize,
    /// Without having been sent: HTTP/2 said in time that it would take no more.
    pub unsent: AtomicUsize,
}

impl Tally {
    pub fn of(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::SeqCst)
    }

    /// All but those that went well or may simply be sent again.
    pub fn lost(&self) -> usize {
        [&self.failed, &self.cut, &self.unanswered, &self.refused].into_iter().map(Self::of).sum()
    }

    fn add(&self, counter: impl Fn(&Self) -> &AtomicUsize) {
        counter(self).fetch_add(1, Ordering::SeqCst);
    }
}

/// Clients that run until they are told to stop.
pub struct Clients {
    running: JoinSet<Vec<Duration>>,
    stop: Arc<AtomicBool>,
    pub tally: Arc<Tally>,
}

impl Clients {
    /// So many, half of them each way where `versions` has two, each pausing between its requests.
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

    /// Lets each end its request; answers how long the requests took, in order of length.
    pub async fn stop(self) -> (Arc<Tally>, Vec<Duration>) {
        self.stop.store(true, Ordering::SeqCst);
        let mut took: Vec<Duration> = self.running.join_all().await.into_iter().flatten().collect();
        took.sort_unstable();
        (self.tally, took)
    }
}

/// That of which a share of all is not longer.
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index of a list that is there"
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
            None => match timeout(PATIENCE, Sender::connect(address, version)).await {
                Ok(Some(sender)) => sender,
                _ => {
                    tally.add(|tally| &tally.refused);
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        // What the other side has said it will close is not used again.
        if reused && !sender.is_ready().await {
            continue;
        }
        let began = Instant::now();
        match timeout(PATIENCE, visit(&mut sender)).await.unwrap_or(Visit::Cut) {
            Visit::Whole => {
                took.push(began.elapsed());
                tally.add(|tally| &tally.whole);
                kept = Some(sender);
            }
            Visit::Failed => tally.add(|tally| &tally.failed),
            Visit::Cut => tally.add(|tally| &tally.cut),
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
    Cut,
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
        Err(_) => Visit::Cut,
    }
}

/// RFC 9113, section 8.7: such a stream was not looked at, and neither was one beyond a GOAWAY.
fn is_refused(error: &hyper::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR))
    })
}
