//! Tests of the server on real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::{
    Address, BoundListener, ConnectionLimit, Handler, Limits, Peer, Protocol, Settings, Tasks,
    bind, serve,
};
use crate::body::{Body, End, collect};
use crate::metrics::Metrics;

const OK: &str = "HTTP/1.1 200 OK\r\n";
const SHORT: Duration = Duration::from_millis(100);

struct Served {
    address: SocketAddr,
    tasks: Tasks,
}

impl Served {
    fn new(settings: Settings, handler: impl Handler) -> Self {
        let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
        let Address::Tcp(address) = *listener.local_address() else { panic!("not TCP") };
        Self { address, tasks: start(listener, settings, handler) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Returns all that a new connection sends in response to `request` until it closes.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }
}

fn start(listener: BoundListener, settings: Settings, handler: impl Handler) -> Tasks {
    let tasks = Tasks::new();
    let limit = ConnectionLimit::new(settings.limits.connections);
    let serving = serve(listener, settings, limit, Arc::new(handler), tasks.clone());
    tasks.run(serving).detach();
    tasks
}

fn limited(limits: Limits) -> Settings {
    Settings { limits, ..Settings::default() }
}

fn h2c() -> Settings {
    Settings { protocol: Protocol::Http1AndH2c, ..Settings::default() }
}

async fn hello(_: Request<Incoming>, _: Peer) -> Response<Body> {
    Response::new(Body::full("hello"))
}

/// Reads until the server closes. A reset fails the test.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn connection_serves_several_requests() {
    let served = Served::new(Settings::default(), hello);
    let mut stream = served.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_until(&mut stream, "hello").await.starts_with(OK));
    }
}

#[tokio::test]
async fn workers_share_a_socket() {
    let listener = bind(&"127.0.0.1:0".parse().unwrap(), None).unwrap();
    let sibling = listener.try_clone().unwrap();
    let Address::Tcp(address) = *listener.local_address() else { panic!("not TCP") };
    let tasks = [listener, sibling].map(|listener| start(listener, Settings::default(), hello));
    for remaining in [2, 1] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            read_until(&mut stream, "hello").await;
        }
        assert!(tasks[remaining - 1].drained(Duration::from_secs(5)).await);
    }
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn unix_socket_has_no_peer_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = bind(&Address::Unix(path.clone()), None).unwrap();
    let tasks = start(listener, Settings::default(), async |_: Request<Incoming>, peer: Peer| {
        Response::new(Body::full(format!("{:?} {}", peer.address, peer.listener)))
    });
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&format!("None unix:{}", path.display())), "{answer}");
    assert!(tasks.drained(Duration::from_secs(5)).await);
    assert!(!path.exists());
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let served = Served::new(limited(Limits { connections: 1, ..Limits::default() }), hello);
    let mut first = served.connect().await;
    first.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    read_until(&mut first, "hello").await;
    let mut second = served.connect().await;
    second.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let waited = timeout(SHORT, second.read_u8()).await;
    assert!(waited.is_err(), "the second connection was served alongside the first");
    drop(first);
    read_until(&mut second, "hello").await;
}

#[tokio::test]
async fn slow_head_closes_the_connection() {
    let limits = Limits { header_timeout: SHORT, ..Limits::default() };
    for settings in [limited(limits.clone()), Settings { limits, ..h2c() }] {
        let served = Served::new(settings, hello);
        for first in ["", "G", "GET / HTTP/1.1\r\nHost: "] {
            let start = Instant::now();
            assert_eq!(served.ask(first).await, "");
            assert!(
                start.elapsed() >= SHORT && start.elapsed() < Duration::from_secs(5),
                "{first:?}"
            );
        }
    }
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let limits = Limits { idle_timeout: SHORT, ..Limits::default() };
    let served = Served::new(limited(limits), hello);
    let start = Instant::now();
    assert!(served.ask("GET / HTTP/1.1\r\n\r\n").await.ends_with("hello"));
    assert!(start.elapsed() >= SHORT && start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn no_timeout_while_a_request_is_handled() {
    let served = Served::new(Settings::default(), async |_: Request<Incoming>, _: Peer| {
        tokio::time::sleep(Duration::from_hours(1)).await;
        Response::new(Body::full("slow"))
    });
    assert!(served.ask("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.ends_with("slow"));
}

#[tokio::test]
async fn client_that_does_not_read_is_closed() {
    let limits = Limits { body_idle_timeout: SHORT, ..Limits::default() };
    let ended = Arc::new(Notify::new());
    let end = Arc::clone(&ended);
    let served = Served::new(limited(limits), move |_: Request<Incoming>, _: Peer| {
        let end = Arc::clone(&end);
        async move { Response::new(Body::full(vec![0; 64 << 20]).with_guard(move |_| end.notify_one())) }
    });
    let mut stream = served.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    ended.notified().await;
    assert!(served.tasks.drained(Duration::from_secs(5)).await, "the connection is still open");
    let mut taken = Vec::new();
    // A close or a reset.
    let _ = stream.read_to_end(&mut taken).await;
    assert!(taken.len() < 64 << 20);
}

#[tokio::test]
async fn oversized_heads_get_431() {
    let served = Served::new(limited(Limits { header_bytes: 8192, ..Limits::default() }), hello);
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    assert!(served.ask(&large).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(101));
    assert!(served.ask(&many).await.starts_with("HTTP/1.1 431 "));
    let served = Served::new(limited(Limits { headers: 2, ..Limits::default() }), hello);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(3));
    assert!(served.ask(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn response_ends_as_dropped_if_the_client_leaves() {
    let (send, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let served = Served::new(Settings::default(), move |request: Request<Incoming>, _: Peer| {
        let send = send.clone();
        let echo = Body::streaming(request.into_body(), None);
        async move { Response::new(echo.with_guard(move |end| send.send(end).unwrap())) }
    });
    let mut stream = served.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nfive!").await.unwrap();
    read_until(&mut stream, "five!").await;
    drop(stream);
    assert_ne!(ends.recv().await, Some(End::Complete));
    let whole = "POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 5\r\n\r\nfive!";
    assert!(served.ask(whole).await.ends_with("five!"));
    assert_eq!(ends.recv().await, Some(End::Complete));
}

#[tokio::test]
async fn client_still_uploading_is_not_reset() {
    let served = Served::new(Settings::default(), hello);
    let mut stream = served.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    assert!(rest(&mut stream).await.ends_with("hello"));
    for _ in 0..10 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        // Lets the server run, on the same thread.
        stream.writable().await.unwrap();
        tokio::task::yield_now().await;
    }
}

/// A client that has its response and keeps sending.
#[derive(Debug)]
struct LingeringClient {
    max_connections: usize,
    request: &'static str,
    /// Seconds between bytes that it sends after the response.
    sends_every: Option<u64>,
    drain: bool,
}

/// Returns the seconds until the server closes the connection of such a client.
async fn seconds_until_close(client: &LingeringClient) -> u64 {
    let metrics = Metrics::new();
    let limits = Limits { connections: client.max_connections, ..Limits::default() };
    let listener_metrics = metrics.listener("x");
    // A Unix socket delivers at once, independent of the paused clock.
    let directory = tempfile::tempdir().unwrap();
    let address = Address::Unix(directory.path().join("x.sock"));
    let settings = Settings { limits, metrics: listener_metrics, ..Settings::default() };
    let tasks = start(bind(&address, None).unwrap(), settings, hello);
    let mut stream = UnixStream::connect(directory.path().join("x.sock")).await.unwrap();
    stream.write_all(client.request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("hello"), "the server has closed its side");
    let start = Instant::now();
    if client.drain {
        tasks.drain();
    }
    let sends = async {
        while let Some(every) = client.sends_every {
            tokio::time::sleep(Duration::from_secs(every)).await;
            let _ = stream.write_all(b"x").await;
        }
        std::future::pending::<()>().await;
    };
    let closes = async {
        while !metrics.text().contains("connections_open{listener=\"x\"} 0") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = sends => {}
        () = closes => {}
    }
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn lingering_close_is_bounded_in_time() {
    let upload = "POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n";
    let whole = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    for (max_connections, request, sends_every, drain, expected) in [
        (100, upload, None, false, 5),
        (100, upload, Some(4), false, 30),
        (1, upload, Some(1), false, 2),
        (100, upload, Some(1), true, 2),
        (100, whole, None, false, 2),
    ] {
        let client = LingeringClient { max_connections, request, sends_every, drain };
        let closed = seconds_until_close(&client).await;
        assert!((expected..=expected + 1).contains(&closed), "{client:?}: {closed}");
    }
}

#[tokio::test]
async fn panic_fails_one_request_and_is_counted() {
    let before = crate::tasks::panics();
    let count = AtomicUsize::new(0);
    let served = Served::new(Settings::default(), move |_: Request<Incoming>, _: Peer| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            assert!(!first, "expected by the test");
            Response::new(Body::full("hello"))
        }
    });
    let mut stream = served.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let answer = read_until(&mut stream, "Internal Server Error\n").await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(crate::tasks::panics() > before);
    assert!(Metrics::new().text().contains("cloakroom_panics_total "));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    read_until(&mut stream, "hello").await;
}

#[tokio::test]
async fn drain_finishes_responses_and_closes_idle_connections() {
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notify = (Arc::clone(&started), Arc::clone(&go));
    let served = Served::new(Settings::default(), move |_: Request<Incoming>, _: Peer| {
        let (started, go) = notify.clone();
        async move {
            started.notify_one();
            go.notified().await;
            Response::new(Body::full("finished"))
        }
    });
    let mut idle = served.connect().await;
    let mut busy = served.connect().await;
    busy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    started.notified().await;
    served.tasks.drain();
    assert_eq!(rest(&mut idle).await, "");
    go.notify_one();
    let answer = rest(&mut busy).await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("finished"), "{answer}");
    drop(busy);
    assert!(served.tasks.drained(Duration::from_secs(5)).await);
    assert!(TcpStream::connect(served.address).await.is_err(), "still listening");
}

/// Connects and sends a request without waiting, so that the accept loop cannot run before the next await.
fn sent(address: SocketAddr) -> TcpStream {
    use std::io::Write as _;

    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

#[tokio::test]
async fn drain_serves_the_backlog() {
    let served = Served::new(Settings::default(), hello);
    served.ask("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let waiting = [(); 3].map(|()| sent(served.address));
    served.tasks.drain();
    for mut stream in waiting {
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(OK) && answer.contains("connection: close\r\n"), "{answer}");
    }
    assert!(served.tasks.drained(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn backlog_of_inherited_sockets_is_left_to_the_next_process() {
    let kept = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = kept.local_addr().unwrap();
    let inherited = || BoundListener::inherited(kept.try_clone().unwrap().into()).unwrap();
    let first = start(inherited(), Settings::default(), hello);
    tokio::task::yield_now().await;
    let mut stream = sent(address);
    first.drain();
    assert!(first.drained(Duration::from_secs(5)).await);
    let next = start(inherited(), Settings::default(), hello);
    read_until(&mut stream, "hello").await;
    next.drain();
}

#[tokio::test]
async fn drain_aborts_requests_at_its_deadline() {
    let limits = Limits { drain_timeout: SHORT, ..Limits::default() };
    let started = Arc::new(Notify::new());
    let notify = Arc::clone(&started);
    let served = Served::new(limited(limits), move |_: Request<Incoming>, _: Peer| {
        notify.notify_one();
        std::future::pending()
    });
    let mut stream = served.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    started.notified().await;
    let drained = timeout(Duration::from_secs(5), served.tasks.drained(Duration::MAX)).await;
    assert_eq!(drained, Ok(false), "the request in flight was aborted");
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn truncated_request_is_an_error() {
    let (send, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let served = Served::new(Settings::default(), move |request: Request<Incoming>, _: Peer| {
        let send = send.clone();
        let body = Body::streaming(request.into_body(), None).with_guard({
            let send = send.clone();
            move |end| send.send(format!("{end:?}")).unwrap()
        });
        let reading = Tasks::new().run(async move {
            let read = collect(body, 100, Duration::from_secs(5)).await;
            send.send(format!("{}", read.unwrap_err())).unwrap();
        });
        async move {
            reading.await.unwrap();
            Response::new(Body::empty())
        }
    });
    for framing in
        ["Content-Length: 10\r\n\r\nfive!", "Transfer-Encoding: chunked\r\n\r\n5\r\nfive!\r\n"]
    {
        let mut stream = served.connect().await;
        let request = format!("POST / HTTP/1.1\r\n{framing}");
        stream.write_all(request.as_bytes()).await.unwrap();
        drop(stream);
        assert_eq!(ends.recv().await.unwrap(), "Broken");
        assert_eq!(ends.recv().await.unwrap(), "the body was truncated or is malformed");
    }
}

#[tokio::test]
async fn bodies_are_collected_within_their_bounds() {
    let served = Served::new(Settings::default(), async |request: Request<Incoming>, _: Peer| {
        let body = Body::streaming(request.into_body(), Some(SHORT));
        Response::new(Body::full(match collect(body, 5, Duration::from_secs(5)).await {
            Ok(bytes) => bytes,
            Err(error) => error.to_string().into(),
        }))
    });
    for (body, answer) in [
        ("Content-Length: 5\r\n\r\nabcde", "abcde"),
        ("Content-Length: 6\r\n\r\nabcdef", "the body is larger than allowed"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", "abcde"),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4\r\n", "the body took too long"),
        ("Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n", "the body is larger than allowed"),
        ("Content-Length: 5\r\n\r\nabc", "the body took too long"),
        ("Content-Length: 0\r\n\r\n", "\r\n\r\n"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nConnection: close\r\n{body}");
        let got = served.ask(&request).await;
        assert!(got.ends_with(answer), "{body:?}: {got}");
    }
}

#[tokio::test]
async fn cleartext_listener_accepts_both_protocols() {
    let limits = Limits { idle_timeout: SHORT, ..Limits::default() };
    let served = Served::new(Settings { limits, ..h2c() }, hello);
    assert!(served.ask("GET / HTTP/1.1\r\n\r\n").await.ends_with("hello"));
    assert!(served.ask("PRINT / HTTP/1.1\r\n\r\n").await.ends_with("hello"));

    let io = hyper_util::rt::TokioIo::new(served.connect().await);
    let tasks = Tasks::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks.clone(), io).await.unwrap();
    let connection = tasks.run(connection);
    let request = Request::get("http://x/").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let body = Body::streaming(response.into_body(), None);
    assert_eq!(collect(body, 5, Duration::from_secs(5)).await.unwrap(), "hello");
    // The server sends GOAWAY to an idle client.
    assert!(connection.await.unwrap().is_ok());
}
