//! HTTP/2 to upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cloakroom::server::Tasks;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Authority, Browser, Cloakroom, Echo, Flaw, Script, Upstream, socket, until};

type Frames = StreamBody<
    futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::io::Error>>>,
>;

fn frames(data: &[&str], trailer: Option<(&'static str, &'static str)>) -> Frames {
    let data = data.iter().map(|text| Frame::data(Bytes::copy_from_slice(text.as_bytes())));
    let trailers = trailer.map(|(name, value)| {
        let mut trailers = HeaderMap::new();
        trailers.insert(name, HeaderValue::from_static(value));
        Frame::trailers(trailers)
    });
    let frames: Vec<_> = data.chain(trailers).map(Ok).collect();
    StreamBody::new(futures_util::stream::iter(frames))
}

/// A site that accepts HTTP/2 only, like gRPC, with the number of its connections so far.
struct Grpc {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl Grpc {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new());
        let (count, all) = (Arc::clone(&connections), tasks.clone());
        tasks
            .run(async move {
                loop {
                    let (stream, _) = tokio::select! {
                        () = all.draining() => return,
                        accepted = listener.accept() => accepted.unwrap(),
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    let builder = server::Builder::new(all.clone());
                    let served = builder.serve_connection(TokioIo::new(stream), service_fn(answer));
                    let drained = all.clone();
                    all.run(async move {
                        tokio::select! {
                            _ = served => {}
                            () = drained.draining() => {}
                        }
                    })
                    .detach();
                }
            })
            .detach();
        Self { address, connections, tasks }
    }

    fn route(&self) -> String {
        format!("[[route]]\nupstream = \"http://{}\"\nupstream_protocol = \"h2c\"\n", self.address)
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.tasks.drain();
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Frames>, std::io::Error> {
    assert_eq!(request.version(), Version::HTTP_2);
    let headers = request.headers();
    assert_eq!(headers["te"], "trailers");
    for name in ["host", "connection", "transfer-encoding"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let id = headers.get("x-session-id").cloned();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?;
    let said = body.trailers().map_or("none", |trailers| trailers["x-said"].to_str().unwrap());
    let said = said.to_owned();
    let text = format!("{said}: {}", String::from_utf8_lossy(&body.to_bytes()));
    let mut response = Response::new(frames(&[&text], Some(("grpc-status", "0"))));
    response.headers_mut().insert("x-had-session", HeaderValue::from(u16::from(id.is_some())));
    Ok(response)
}

async fn connected(address: SocketAddr, tasks: &Tasks) -> client::SendRequest<Frames> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        client::handshake(tasks.clone(), TokioIo::new(stream)).await.unwrap();
    tasks.run(connection).detach();
    sender
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let (grpc, tasks) = (Grpc::start().await, Tasks::new());
    let toml = format!("[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n{}", grpc.route());
    let proxy = Cloakroom::with(&Upstream::start(), &toml).await;
    let sender = connected(proxy.public(), &tasks).await;
    let call = || {
        let mut sender = sender.clone();
        let request = Request::post(format!("http://{}/svc/Method", proxy.public()))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(frames(&["one ", "two"], Some(("x-said", "well"))))
            .unwrap();
        async move {
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.headers()["x-had-session"], "0");
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(body.to_bytes(), "well: one two");
        }
    };
    call().await;
    futures_util::future::join_all((0..50).map(|_| call())).await;
    let most = std::thread::available_parallelism().unwrap().get();
    assert!(grpc.connections.load(Ordering::Relaxed) <= most, "one a worker");
}

#[tokio::test]
async fn closed_connection_is_reopened() {
    let (grpc, upstream) = (Grpc::start().await, Upstream::start());
    let proxy = Cloakroom::with(&upstream, &grpc.route()).await;
    let browser = Browser::new(&proxy);
    let ask = async || browser.send("GET", "/", &[("te", "trailers")], &Script::new()).await;
    assert_eq!(ask().await.body, "none: ");
    let address = grpc.address;
    drop(grpc);
    until("it is down", || std::net::TcpStream::connect(address).is_err()).await;
    assert_eq!(ask().await.status, 502);
}

#[tokio::test]
async fn sessions_work_over_http2_upstreams() {
    let upstream = Upstream::start();
    let route = "[[route]]\nupstream = \"UPSTREAM\"\nupstream_protocol = \"h2c\"\n";
    let proxy = Cloakroom::with(&upstream, route).await;
    let browser = Browser::new(&proxy);
    for expected in 1..=3 {
        let count = Script::new().call("POST", "/values/n/increment", "");
        let page = browser.send("POST", "/a?b=c", &[], &count).await;
        assert_eq!(
            (page.json(), page.seen().target),
            (json!(expected), "http://localhost/a?b=c".to_owned())
        );
    }
}

#[tokio::test]
async fn alpn_selects_the_upstream_protocol() {
    let upstream = Upstream::start();
    let authority = Authority::new();
    let identity = authority.server(Flaw::None);
    let listen = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let site = Cloakroom::with(&upstream, &listen).await;
    for (protocol, version) in [("alpn", "2"), ("http1", "1.1")] {
        let route = format!(
            "[[route]]\nupstream = \"https://localhost:{}\"\nupstream_protocol = \"{protocol}\"\n\
             upstream_tls = {{ ca = \"{}\" }}\n",
            site.public().port(),
            authority.certificate().display()
        );
        let proxy = Cloakroom::with(&upstream, &route).await;
        let seen = Browser::new(&proxy).navigate("/", &Script::new()).await.seen();
        let hops: Vec<_> = seen.headers.into_iter().filter(|(name, _)| name == "via").collect();
        assert!(hops[1].1.starts_with(&format!("{version} ")), "{protocol}: {hops:?}");
    }
}

#[tokio::test]
async fn websocket_uses_http1() {
    let (echo, upstream) = (Echo::start().await, Upstream::start());
    let route =
        format!("[[route]]\nupstream = \"http://{}\"\nupstream_protocol = \"h2c\"\n", echo.address);
    let proxy = Cloakroom::with(&upstream, &route).await;
    let mut socket = socket(proxy.public(), "/", &[]).await.unwrap();
    assert!(socket.echoes("hello").await);
}
