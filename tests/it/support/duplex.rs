//! Full-duplex requests: the test sends both bodies piece by piece, over HTTP/1.1 or HTTP/2 on
//! either side.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use cloakroom::server::Tasks;
use futures_util::stream::{BoxStream, unfold};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn as client;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::PATIENCE;

/// HTTP version of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

type Pieces = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Sending half of a body. Dropping it ends the body.
pub struct Sending(mpsc::Sender<Bytes>);

impl Sending {
    fn new() -> (Self, Pieces) {
        let (sender, receiver) = mpsc::channel(1);
        let pieces = unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (Ok(Frame::data(piece)), receiver))
        });
        (Self(sender), StreamBody::new(Box::pin(pieces)))
    }

    pub async fn send(&self, piece: &'static str) {
        self.0
            .send(Bytes::from_static(piece.as_bytes()))
            .await
            .expect("the receiver is still there");
    }

    /// Sends until the receiver drops the body.
    pub async fn wait_until_dropped(&self) {
        let sends = async { while self.0.send(Bytes::from_static(b"more")).await.is_ok() {} };
        timeout(PATIENCE, sends).await.expect("the body is dropped");
    }
}

/// Receiving half of a body.
pub struct Receiving(Incoming);

impl Receiving {
    /// Waits for the next piece. Returns `None` at the end of the body, `Some(Err)` if it was
    /// aborted.
    pub async fn next(&mut self) -> Option<Result<String, hyper::Error>> {
        loop {
            let frame = timeout(PATIENCE, self.0.frame()).await.expect("more comes");
            match frame? {
                Ok(frame) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    return Some(Ok(String::from_utf8_lossy(&data).into_owned()));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    pub async fn piece(&mut self) -> String {
        self.next().await.expect("a piece").expect("no error")
    }

    /// Returns true if neither data nor the end arrives for this duration.
    pub async fn is_silent(&mut self, duration: Duration) -> bool {
        timeout(duration, self.0.frame()).await.is_err()
    }

    /// Reads on. Returns true if the body is aborted, false if it ends.
    pub async fn is_aborted(&mut self) -> bool {
        loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return true,
                None => return false,
            }
        }
    }
}

/// A request as its site handles it; the head of the response, an event stream, was sent.
pub struct Call {
    pub upload: Receiving,
    pub answer: Sending,
}

/// A site that gives the bodies of each request to the test.
pub struct Site {
    pub address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    tasks: Tasks,
}

impl Site {
    pub async fn start(version: Version) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::channel(8);
        let tasks = Tasks::new();
        let serving = tasks.clone();
        let accept = async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.run(serve(stream, version, sender.clone(), serving.clone())).detach();
            }
        };
        let drained = tasks.clone();
        let until_drained = async move {
            tokio::select! { () = accept => {}, () = drained.draining() => {} }
        };
        tasks.run(until_drained).detach();
        Self { address, calls, tasks }
    }

    /// Returns the configuration of a route to it.
    pub fn route(&self, version: Version) -> String {
        let protocol = match version {
            Version::Http1 => "http1",
            Version::Http2 => "h2c",
        };
        format!(
            "[[route]]\nupstream = \"http://{}\"\nupstream_protocol = \"{protocol}\"\n",
            self.address
        )
    }

    /// Waits for its next request.
    pub async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.expect("a request comes").unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.tasks.drain();
    }
}

async fn serve(stream: TcpStream, version: Version, calls: mpsc::Sender<Call>, tasks: Tasks) {
    let service = service_fn(move |request: Request<Incoming>| {
        let calls = calls.clone();
        async move {
            let (answer, pieces) = Sending::new();
            let call = Call { upload: Receiving(request.into_body()), answer };
            let _ = calls.send(call).await;
            let mut response = Response::new(pieces);
            let media_type = header::HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, media_type);
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    let draining = tasks.clone();
    let served = async {
        let _ = match version {
            Version::Http1 => {
                server::http1::Builder::new().half_close(true).serve_connection(io, service).await
            }
            Version::Http2 => {
                server::http2::Builder::new(tasks).serve_connection(io, service).await
            }
        };
    };
    tokio::select! { () = served => {}, () = draining.draining() => {} }
}

/// A connection of a client.
pub struct Connection {
    to: Sender,
    tasks: Tasks,
}

enum Sender {
    Http1(client::http1::SendRequest<Pieces>),
    Http2(client::http2::SendRequest<Pieces>),
}

impl Connection {
    pub async fn open(address: SocketAddr, version: Version) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let tasks = Tasks::new();
        let to = match version {
            Version::Http1 => {
                let (sender, connection) = client::http1::handshake(io).await.unwrap();
                tasks.run(connection).detach();
                Sender::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) =
                    client::http2::handshake(tasks.clone(), io).await.unwrap();
                tasks.run(connection).detach();
                Sender::Http2(sender)
            }
        };
        Self { to, tasks }
    }

    /// Sends the head of a request and receives the head of its response; both bodies stay open.
    pub async fn ask(&mut self, path: &str, cookie: Option<&str>) -> (Sending, Receiving) {
        let (upload, pieces) = Sending::new();
        let mut request = match self.to {
            Sender::Http1(_) => Request::post(path).header(header::HOST, "localhost"),
            Sender::Http2(_) => Request::post(format!("http://localhost{path}")),
        };
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let request = request.body(pieces).unwrap();
        let response = async {
            match &mut self.to {
                Sender::Http1(sender) => sender.send_request(request).await,
                Sender::Http2(sender) => sender.send_request(request).await,
            }
        };
        let response = timeout(PATIENCE, response).await.expect("an answer comes").unwrap();
        assert_eq!(response.status(), 200);
        (upload, Receiving(response.into_body()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.drain();
    }
}
