//! Tests of the client on real sockets.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, header};
use http_body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::outgoing::Outgoing;
use super::retry::Retry;
use super::{Config, Error, ErrorKind, Pool, Target, get};
use crate::body::{Body, CollectError, collect};
use crate::tasks::Tasks;

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(5);

/// A scripted upstream, with a pool of connections to it.
struct Fixture {
    listener: TcpListener,
    pool: Pool,
    tasks: Tasks,
}

impl Fixture {
    async fn new(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("http://{}", listener.local_addr().unwrap());
        let pool = Pool::new(target.parse().unwrap(), config);
        Self { listener, pool, tasks: Tasks::new() }
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    async fn send(&self, method: Method, body: Body) -> Result<Response<Body>, Error> {
        let request = Request::builder().method(method).uri("/path?query").body(body).unwrap();
        self.pool.send(&mut Outgoing::new(request), Retry::Never, &self.tasks).await
    }

    /// Sends a GET, which has to open a connection, and responds with `answer`. Returns the connection.
    async fn first(&self, answer: &str) -> TcpStream {
        let upstream = async {
            let mut stream = self.accept().await;
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let (response, stream) = tokio::join!(self.send(Method::GET, Body::empty()), upstream);
        assert_eq!(text(response.unwrap()).await, "hello");
        stream
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = collect(response.into_body(), 1 << 20, LONG).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Responds to the next request on a connection. Returns the request's head.
async fn answer(stream: &mut TcpStream) -> String {
    let head = read_head(stream).await;
    stream.write_all(HELLO.as_bytes()).await.unwrap();
    head
}

/// Returns a body that stays open until its connection is dropped, and that connection.
async fn open_body(first: &str, idle: Option<Duration>) -> (Body, TcpStream, Tasks) {
    let fixture = Fixture::new(Config { stream_idle_timeout: idle, ..Config::default() }).await;
    let upstream = async {
        let mut stream = fixture.accept().await;
        read_head(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{first}");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let (response, stream) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
    (response.unwrap().into_body(), stream, fixture.tasks)
}

#[tokio::test]
async fn connection_is_reused_after_its_response() {
    let fixture = Fixture::new(Config::default()).await;
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut stream = fixture.first(chunked).await;
    for _ in 0..100 {
        let upstream = async {
            let head = read_head(&mut stream).await;
            stream.read_exact(&mut [0; 4]).await.unwrap();
            stream.write_all(HELLO.as_bytes()).await.unwrap();
            head
        };
        let sent = fixture.send(Method::POST, Body::full("body"));
        let (response, head) = tokio::join!(sent, upstream);
        assert!(head.starts_with("POST /path?query HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("content-length: 4\r\n") && head.contains("host: 127.0.0.1:"),
            "{head}"
        );
        assert_eq!(text(response.unwrap()).await, "hello");
    }
}

#[tokio::test]
async fn idle_connections_expire() {
    let fixture = Fixture::new(Config { idle_timeout: SHORT, ..Config::default() }).await;
    for _ in 0..2 {
        let start = std::time::Instant::now();
        let mut kept = fixture.first(HELLO).await;
        assert_eq!(kept.read(&mut [0]).await.unwrap(), 0, "it is closed");
        assert!(start.elapsed() >= SHORT);
    }
    let fixture = Fixture::new(Config { idle_timeout: Duration::ZERO, ..Config::default() }).await;
    let mut used = fixture.first(HELLO).await;
    assert_eq!(used.read(&mut [0]).await.unwrap(), 0, "no connection is kept");
}

#[tokio::test]
async fn unread_response_closes_its_connection() {
    let fixture = Fixture::new(Config::default()).await;
    let upstream = async {
        let mut stream = fixture.accept().await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
        stream
    };
    let (response, mut stream) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
    drop(response.unwrap());
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    fixture.first(HELLO).await;
}

#[tokio::test]
async fn truncated_response_is_an_error() {
    for (first, complete) in
        [("5\r\nhello\r\n", false), ("5\r\nhel", false), ("5\r\nhello\r\n0\r\n\r\n", true)]
    {
        let (body, stream, _tasks) = open_body(first, None).await;
        drop(stream);
        let read = collect(body, 100, LONG).await;
        assert_eq!(read.is_ok(), complete, "{first:?}");
        assert!(complete || matches!(read, Err(CollectError::Broken(_))));
    }
}

#[tokio::test]
async fn silent_body_times_out() {
    let (body, _stream, _tasks) = open_body("5\r\nhello\r\n", Some(SHORT)).await;
    assert!(matches!(collect(body, 100, LONG).await, Err(CollectError::TimedOut)));
}

#[tokio::test]
async fn closed_idle_connection_is_replaced() {
    let fixture = Fixture::new(Config::default()).await;
    for method in [Method::GET, Method::POST] {
        drop(fixture.first(HELLO).await);
        // Lets the connection's task see the close before the next request.
        let upstream = async { answer(&mut fixture.accept().await).await };
        let (response, _) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                fixture.send(method, Body::empty()).await
            },
            upstream
        );
        drop(response.unwrap());
    }
}

#[tokio::test]
async fn get_is_retried_on_a_closing_connection() {
    let fixture = Fixture::new(Config::default()).await;
    let mut old = fixture.first(HELLO).await;
    let upstream = async {
        read_head(&mut old).await;
        drop(old);
        answer(&mut fixture.accept().await).await
    };
    let (response, _) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
    assert_eq!(text(response.unwrap()).await, "hello");
}

#[tokio::test]
async fn request_with_possible_effects_is_not_retried() {
    // A POST, a GET with a body, and a GET with a partial response.
    for (method, body, partial) in
        [(Method::POST, "", ""), (Method::GET, "body", ""), (Method::GET, "", "HTTP/1.1 2")]
    {
        let fixture = Fixture::new(Config::default()).await;
        let mut old = fixture.first(HELLO).await;
        let upstream = async {
            read_head(&mut old).await;
            let mut taken = vec![0; body.len()];
            old.read_exact(&mut taken).await.unwrap();
            old.write_all(partial.as_bytes()).await.unwrap();
            drop(old);
        };
        let (sent, ()) = tokio::join!(fixture.send(method, Body::full(body)), upstream);
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Response);
        let again = tokio::time::timeout(SHORT, fixture.accept()).await;
        assert!(again.is_err(), "a second connection was made");
    }
}

#[tokio::test]
async fn close_of_a_new_connection_is_not_retried() {
    let fixture = Fixture::new(Config::default()).await;
    let upstream = async { drop(fixture.accept().await) };
    let (sent, ()) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::Response);
}

#[tokio::test]
async fn excess_bytes_close_the_connection() {
    let fixture = Fixture::new(Config::default()).await;
    let mut old =
        fixture.first(&format!("{HELLO}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")).await;
    fixture.first(HELLO).await;
    assert!(matches!(old.read(&mut [0]).await, Ok(0) | Err(_)), "it is closed");
}

#[tokio::test]
async fn early_response_ends_upload_and_connection() {
    let fixture = Fixture::new(Config::default()).await;
    let (body, _client, _tasks) = open_body("5\r\nfirst\r\n", None).await;
    let upstream = async {
        let mut stream = fixture.accept().await;
        let head = answer(&mut stream).await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        stream
    };
    let (response, mut stream) = tokio::join!(fixture.send(Method::PUT, body), upstream);
    assert_eq!(text(response.unwrap()).await, "hello");
    let mut upload = String::new();
    stream.read_to_string(&mut upload).await.unwrap();
    assert_eq!(upload, "5\r\nfirst\r\n");
    fixture.first(HELLO).await;
}

#[tokio::test]
async fn truncated_upload_is_the_clients_error() {
    for idle in [None, Some(SHORT)] {
        let fixture = Fixture::new(Config::default()).await;
        let (body, client, _tasks) = open_body("5\r\nfirst\r\n", idle).await;
        let upstream = async {
            let mut stream = fixture.accept().await;
            read_head(&mut stream).await;
            drop(idle.is_none().then_some(client));
            let mut upload = String::new();
            stream.read_to_string(&mut upload).await.unwrap();
            upload
        };
        let (sent, upload) = tokio::join!(fixture.send(Method::PUT, body), upstream);
        assert!(sent.unwrap_err().is_request_body());
        assert!(!upload.ends_with("0\r\n\r\n"), "the upload looks complete");
    }
}

#[tokio::test(start_paused = true)]
async fn response_timeout_starts_after_the_request() {
    let minute = Duration::from_mins(1);
    let fixture = Fixture::new(Config { response_timeout: minute, ..Config::default() }).await;
    let (body, mut client, _tasks) = open_body("5\r\nfirst\r\n", None).await;
    let upstream = async {
        let mut stream = fixture.accept().await;
        read_head(&mut stream).await;
        // The upload takes longer than the response timeout.
        tokio::time::sleep(minute * 3).await;
        client.write_all(b"0\r\n\r\n").await.unwrap();
        let mut upload = String::new();
        stream.read_to_string(&mut upload).await.unwrap();
        upload
    };
    let (sent, upload) = tokio::join!(fixture.send(Method::PUT, body), upstream);
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::ResponseTimeout);
    assert_eq!(upload, "5\r\nfirst\r\n0\r\n\r\n");
}

#[tokio::test]
async fn upstream_that_does_not_read_times_out() {
    let fixture = Fixture::new(Config { response_timeout: SHORT, ..Config::default() }).await;
    let sent = fixture.send(Method::PUT, Body::full(vec![0; 64 << 20])).await;
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::ResponseTimeout);
}

#[tokio::test]
async fn invalid_http_is_an_error() {
    for answer in [
        "nonsense\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_owned(),
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(200_000)),
    ] {
        let fixture = Fixture::new(Config::default()).await;
        let upstream = async {
            let mut stream = fixture.accept().await;
            read_head(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            stream
        };
        let (sent, _) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Response);
    }
}

#[tokio::test]
async fn framing_follows_the_body() {
    let fixture = Fixture::new(Config::default()).await;
    let request = Request::post("http://other/path")
        .header(header::HOST, "kept")
        .header(header::CONTENT_LENGTH, "5")
        .header(header::TRANSFER_ENCODING, "chunked")
        .version(http::Version::HTTP_2)
        .body(Body::empty())
        .unwrap();
    let upstream = async { answer(&mut fixture.accept().await).await };
    let mut outgoing = Outgoing::new(request);
    let sent = fixture.pool.send(&mut outgoing, Retry::Never, &fixture.tasks);
    let (sent, head) = tokio::join!(sent, upstream);
    sent.unwrap();
    assert_eq!(head, "POST /path HTTP/1.1\r\nhost: kept\r\ncontent-length: 0\r\n\r\n");
}

/// A slow client neither holds the connection of a small response nor loses a part of it.
#[tokio::test]
async fn small_responses_are_buffered() {
    let fixture = Fixture::new(Config::default()).await;
    let upstream = async {
        let mut stream = fixture.accept().await;
        answer(&mut stream).await;
        answer(&mut stream).await;
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.unwrap();
        stream
    };
    let client = async {
        let mut responses = Vec::new();
        for _ in 0..3 {
            responses.push(fixture.send(Method::GET, Body::empty()).await.unwrap());
        }
        responses
    };
    let (mut stream, responses) = tokio::join!(upstream, client);
    stream.write_all(b"lo").await.unwrap();
    for response in responses {
        assert_eq!(response.body().size_hint().exact(), Some(5));
        assert_eq!(text(response).await, "hello");
    }
}

#[tokio::test]
async fn drain_closes_idle_and_awaits_busy_connections() {
    let fixture = Fixture::new(Config::default()).await;
    let mut idle = fixture.first(HELLO).await;
    let upstream = async {
        // The first connection is busy now, so the next request opens a second one, which becomes idle.
        read_head(&mut idle).await;
        idle.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.unwrap();
    };
    let (response, ()) = tokio::join!(fixture.send(Method::GET, Body::empty()), upstream);
    let mut other = fixture.first(HELLO).await;
    fixture.tasks.drain();
    assert_eq!(other.read(&mut [0]).await.unwrap(), 0, "the idle connection is closed");
    idle.write_all(b"lo").await.unwrap();
    assert_eq!(text(response.unwrap()).await, "hello");
    assert!(fixture.tasks.drained(LONG).await);
}

#[tokio::test]
async fn get_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let upstream = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 23];
        stream.read_exact(&mut head).await.unwrap();
        stream.write_all(HELLO.as_bytes()).await.unwrap();
        (stream, head)
    };
    let tasks = Tasks::new();
    let target = Target::Unix(path);
    let fetched = get(&target, "/live".parse().unwrap(), &tasks, 5, LONG);
    let (response, (_stream, head)) = tokio::join!(fetched, upstream);
    assert_eq!(response.unwrap().into_body(), "hello");
    assert!(head.starts_with(b"GET /live HTTP/1.1\r\n"));
    assert!(tasks.drained(LONG).await, "its connection is closed");
}

#[tokio::test]
async fn fetch_is_bounded_in_size_and_time() {
    let fixture = Fixture::new(Config::default()).await;
    let request = || Request::new(Body::empty());
    let upstream = async {
        let mut stream = fixture.accept().await;
        answer(&mut stream).await;
        stream
    };
    let fetched = fixture.pool.fetch(request(), &fixture.tasks, 4, LONG);
    assert_eq!(tokio::join!(fetched, upstream).0.unwrap_err().kind(), ErrorKind::ResponseBody);
    let fetched = fixture.pool.fetch(request(), &fixture.tasks, 4, SHORT).await;
    assert_eq!(fetched.unwrap_err().kind(), ErrorKind::ResponseTimeout);
}

#[tokio::test]
async fn refused_connection_is_a_connect_error() {
    let directory = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tasks = Arc::new(Tasks::new());
    for target in
        [Target::Unix(directory.path().join("none")), format!("http://{free}").parse().unwrap()]
    {
        let error = get(&target, "/".parse().unwrap(), &tasks, 5, LONG).await.unwrap_err();
        assert!(error.is_connect() && !error.is_timeout(), "{error}");
    }
    let name: Target = format!("http://localhost:{}", free.port()).parse().unwrap();
    assert!(get(&name, "/".parse().unwrap(), &tasks, 5, LONG).await.unwrap_err().is_connect());
}
