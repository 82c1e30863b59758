//! WebSockets through the proxy, and their sessions.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use cloakroom::server::Tasks;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;

use crate::support::raw::{RawUpstream, exchange, read_until};
use crate::support::{
    Browser, Cloakroom, Echo, Message, RedisServer, Script, Socket, Upstream, needs, socket, until,
};

/// A site with pages, WebSockets at `/ws`, and WebSockets that outlive their session at `/free`.
struct World {
    upstream: Upstream,
    echo: Echo,
    proxy: Cloakroom,
    browser: Browser,
}

impl World {
    async fn new(more: &str) -> Self {
        let (upstream, echo) = (Upstream::start(), Echo::start().await);
        let proxy = Cloakroom::with(&upstream, &configuration(&echo, more)).await;
        let browser = Browser::new(&proxy);
        browser.navigate("/", &Script::new().call("PUT", "/values/cart", "[1]")).await;
        Self { upstream, echo, proxy, browser }
    }

    /// Opens a WebSocket in the browser.
    async fn socket(&self, path: &str) -> Socket {
        let cookie = format!("__Host-id={}", self.browser.cookie().unwrap());
        socket(self.proxy.public(), path, &[("cookie", &cookie)]).await.unwrap()
    }

    async fn id(&self) -> String {
        let page = self.browser.navigate("/", &Script::new().get("")).await;
        page.json()["id"].as_str().unwrap().to_owned()
    }
}

fn configuration(echo: &Echo, more: &str) -> String {
    let to = echo.address;
    format!(
        "{more}\n[[route]]\nupstream = \"UPSTREAM\"\n\
         [[route]]\npath = \"/ws\"\nupstream = \"http://{to}\"\n\
         [[route]]\npath = \"/free\"\nupstream = \"http://{to}\"\ntunnels = \"free\"\n"
    )
}

#[tokio::test]
async fn echoes_messages_of_any_kind() {
    let world = World::new("").await;
    let mut socket = world.socket("/ws").await;
    assert!(socket.echoes("hello").await);
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let bytes = Message::binary(vec![7_u8; length]);
        socket.send(bytes.clone()).await;
        assert_eq!(socket.next().await, Some(bytes));
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await;
    assert_eq!(socket.next().await, Some(Message::Pong(Bytes::from_static(b"there?"))));
    socket.send(Message::Close(None)).await;
    assert_eq!(socket.closed_with().await, None);
    until("the site's end is closed", || world.echo.closed().len() == 1).await;
}

#[tokio::test]
async fn request_token_is_valid_during_the_tunnel() {
    let world = World::new("").await;
    let id = world.id().await;
    let mut socket = world.socket("/ws").await;
    let head = world.echo.seen().pop().unwrap();
    assert_eq!(head["x-session-id"], id.as_str());
    assert_eq!(
        (&head["upgrade"], &head["connection"]),
        (&"websocket".parse().unwrap(), &"upgrade".parse().unwrap())
    );
    assert!(!head.contains_key("cookie"));
    let token = head["x-session-token"].to_str().unwrap();
    world.proxy.advance(Duration::from_hours(1));
    assert!(socket.echoes("still here").await);
    assert_eq!(world.proxy.call(token, ("PUT", "/values/late", "1")).await.status, 200);
    let page = world.browser.navigate("/", &Script::new().get("/values")).await;
    assert_eq!(page.json(), json!({"cart": [1], "late": 1}));
}

#[tokio::test]
async fn tunnels_work_without_a_session() {
    let world = World::new("").await;
    let mut socket = socket(world.proxy.public(), "/ws", &[]).await.unwrap();
    assert!(socket.echoes("hello").await);
    assert!(!world.echo.seen()[0].contains_key("x-session-id"));
}

#[tokio::test]
async fn tunnels_end_with_their_session() {
    let world = World::new("").await;
    let (mut bound, mut free) = (world.socket("/ws").await, world.socket("/free").await);
    assert!(bound.echoes("a").await && free.echoes("b").await);
    let id = world.id().await;
    assert_eq!(world.proxy.service("DELETE", &format!("/{id}"), "").await.status, 204);
    assert_eq!(bound.closed_with().await, Some(1008));
    until("the site receives the close", || world.echo.closed() == [Some(1008)]).await;
    assert!(free.echoes("c").await);
}

#[tokio::test]
async fn logout_at_another_instance_closes_tunnels() {
    needs!("redis-server");
    let store = format!(
        "[store]\nurl = \"{}\"\nkey_prefix = \"tunnels:\"\ntimeout = \"20s\"\n",
        RedisServer::shared().url()
    );
    let world = World::new(&store).await;
    let other = Cloakroom::with(&world.upstream, &configuration(&world.echo, &store)).await;
    let mut socket = world.socket("/ws").await;
    assert!(socket.echoes("a").await);
    world.browser.at(other.public()).navigate("/", &Script::new().call("DELETE", "", "")).await;
    assert_eq!(socket.closed_with().await, Some(1008));
}

#[tokio::test]
async fn client_messages_extend_the_session() {
    let world = World::new("").await;
    let mut socket = world.socket("/ws").await;
    let used = || world.proxy.metrics().store_calls("use");
    for _ in 0..3 {
        world.proxy.advance(Duration::from_hours(13 * 24));
        let before = used();
        assert!(socket.echoes("here").await);
        until("the use is written down", || used() > before).await;
    }
    let page = world.browser.navigate("/", &Script::new().get("/values")).await;
    assert_eq!(page.json(), json!({"cart": [1]}));
    // Without messages, the session expires, and the tunnel with it.
    world.proxy.advance(Duration::from_hours(15 * 24));
    assert_eq!(socket.closed_with().await, Some(1008));
}

/// An attacker who opened the tunnel with a planted cookie cannot keep the visitor logged in.
#[tokio::test]
async fn tunnels_before_login_extend_nothing() {
    let world = World::new("").await;
    let mut socket = world.socket("/ws").await;
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    world.browser.navigate("/", &log_in).await;
    let looks = || world.proxy.metrics().store_calls("load");
    for days in [7, 6] {
        world.proxy.advance(Duration::from_hours(days * 24));
        assert!(socket.echoes("here").await);
        let before = looks();
        until("its session is checked", || looks() > before + 1).await;
    }
    world.proxy.advance(Duration::from_hours(2 * 24));
    assert_eq!(socket.closed_with().await, Some(1008));
    let page = world.browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.json()["id"], serde_json::Value::Null);
}

#[tokio::test]
async fn drain_sends_going_away() {
    let world = World::new("").await;
    let mut socket = world.socket("/ws").await;
    assert!(socket.echoes("a").await);
    let drained = tokio::spawn(world.proxy.stop());
    assert_eq!(socket.closed_with().await, Some(1001));
    assert!(drained.await.unwrap());
    until("the site receives the close", || world.echo.closed() == [Some(1001)]).await;
}

/// Returns the head of a handshake request.
fn handshake(fields: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Starts a proxy in front of a site that the test plays.
async fn before_raw() -> (RawUpstream, Cloakroom, Upstream) {
    let (raw, upstream) = (RawUpstream::start().await, Upstream::start());
    let route = format!(
        "[[route]]\nupstream = \"UPSTREAM\"\n[[route]]\npath = \"/ws\"\nupstream = \"http://{}\"\n",
        raw.address
    );
    let proxy = Cloakroom::with(&upstream, &route).await;
    (raw, proxy, upstream)
}

#[tokio::test]
async fn close_waits_for_a_frame_boundary() {
    let (raw, proxy, _upstream) = before_raw().await;
    let browser = Browser::new(&proxy);
    browser.navigate("/", &Script::new().call("PUT", "/values/a", "1")).await;
    let cookie = format!("Cookie: __Host-id={}\r\n", browser.cookie().unwrap());
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client.write_all(handshake(&cookie).as_bytes()).await.unwrap();
    let (mut site, head) = raw.head().await;
    assert!(head.contains("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), "{head}");
    // The first bytes arrive with the head, and end within a frame.
    site.write_all(&[SWITCH, b"\x82\x04ab"].concat()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut part = [0; 4];
    client.read_exact(&mut part).await.unwrap();
    let id = browser.navigate("/", &Script::new().get("")).await.json()["id"].clone();
    proxy.service("DELETE", &format!("/{}", id.as_str().unwrap()), "").await;
    // The site is at a frame boundary, and receives the close; then the frame to the client ends.
    let mut close = [0; 8];
    site.read_exact(&mut close).await.unwrap();
    assert_eq!(close[..2], [0x88, 0x82]);
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], 1008_u16.to_be_bytes());
    site.write_all(b"cd\x82\x01x").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [b"cd\x88\x02".as_slice(), &1008_u16.to_be_bytes()].concat());
}

#[tokio::test]
async fn unfinished_frames_are_aborted() {
    let (raw, proxy, _upstream) = before_raw().await;
    let mut client = TcpStream::connect(proxy.public()).await.unwrap();
    client.write_all(handshake("").as_bytes()).await.unwrap();
    let (mut site, _) = raw.head().await;
    site.write_all(&[SWITCH, b"\x82\x04ab"].concat()).await.unwrap();
    read_until(&mut client, "ab").await;
    let drained = tokio::spawn(proxy.stop());
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    assert!(drained.await.unwrap());
}

/// A tunnel whose client has closed waits a second for the site. One whose site resets the connection
/// ends at once.
#[tokio::test]
async fn upstream_reset_ends_the_tunnel_at_once() {
    let (raw, proxy, _upstream) = before_raw().await;
    let open = async || {
        let mut client = TcpStream::connect(proxy.public()).await.unwrap();
        client.write_all(handshake("").as_bytes()).await.unwrap();
        let (mut site, _) = raw.head().await;
        site.write_all(SWITCH).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        (client, site)
    };
    let (mut closed, mut its_site) = open().await;
    let (mut broken, mut site) = open().await;
    closed.shutdown().await.unwrap();
    assert_eq!(its_site.read(&mut [0]).await.unwrap(), 0, "its end has passed");
    site.write_all(b"\x82\x01x").await.unwrap();
    site.set_zero_linger().unwrap();
    drop(site);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    tokio::select! {
        _ = closed.read_to_end(&mut first) => panic!("the tunnel of a site that is gone lasts"),
        _ = broken.read_to_end(&mut second) => assert_eq!(second, b"\x82\x01x"),
    }
}

#[tokio::test]
async fn refused_upgrades_are_plain_responses() {
    let (raw, proxy, _upstream) = before_raw().await;
    for (answer, expected) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 403 Forbidden"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 502 Bad Gateway",
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 502 Bad Gateway"),
    ] {
        let answers = async {
            let (mut site, _) = raw.head().await;
            site.write_all(answer.as_bytes()).await.unwrap();
        };
        let asks = handshake("").replace("keep-alive, Upgrade", "close, Upgrade");
        let (answered, ()) = tokio::join!(exchange(proxy.public(), &asks), answers);
        assert!(answered.starts_with(expected), "{answered}");
    }
}

#[tokio::test]
async fn incomplete_handshakes_are_plain_requests() {
    let (raw, proxy, _upstream) = before_raw().await;
    for (from, to) in [
        ("HTTP/1.1", "HTTP/1.0"),
        ("keep-alive, Upgrade", "close"),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("GET", "POST"),
    ] {
        let answers = async {
            let (mut site, head) = raw.head().await;
            assert!(!head.contains("upgrade"), "{from}: {head}");
            site.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let asks = handshake("Connection: close\r\n").replacen(from, to, 1);
        let (answered, ()) = tokio::join!(exchange(proxy.public(), &asks), answers);
        assert!(answered.contains(" 200 OK"), "{from}: {answered}");
    }
}

#[tokio::test]
async fn plain_connect_is_rejected() {
    let world = World::new("").await;
    let asks = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n";
    let answered = exchange(world.proxy.public(), asks).await;
    assert!(answered.starts_with("HTTP/1.1 405"), "{answered}");
}

/// Opens an HTTP/2 connection on which extended CONNECT is allowed.
async fn http2_client(address: SocketAddr, tasks: &Tasks) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(tasks.clone(), TokioIo::new(stream)).await.unwrap();
    tasks.run(connection).detach();
    // The settings that allow it arrive with the first response.
    let get = Request::get(format!("http://{address}/")).body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(get).await.unwrap().status(), StatusCode::OK);
    sender
}

#[tokio::test]
async fn http2_tunnels_share_the_connection() {
    let world = World::new("[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n").await;
    let address = world.proxy.public();
    let tasks = Tasks::new();
    let mut sender = http2_client(address, &tasks).await;
    let connect = |path: &str, protocol: Option<&'static str>| {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://{address}{path}"))
            .header("sec-websocket-version", "13")
            .header("cookie", format!("__Host-id={}", world.browser.cookie().unwrap()))
            .body(Empty::<Bytes>::new())
            .unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        request
    };
    let response = sender.send_request(connect("/ws", Some("websocket"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let head = world.echo.seen().pop().unwrap();
    assert_eq!(head["x-session-id"], world.id().await.as_str());
    // A masked frame, and its echo.
    socket.write_all(&[0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3]).await.unwrap();
    let mut frame = [0; 5];
    socket.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"\x82\x03abc");
    world.proxy.service("DELETE", &format!("/{}", world.id().await), "").await;
    let mut close = Vec::new();
    socket.read_to_end(&mut close).await.unwrap();
    assert_eq!(close, [&[0x88, 2][..], &1008_u16.to_be_bytes()].concat());
    let refused = sender.send_request(connect("/ws", Some("connect-udp"))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
}

/// A silent tunnel is closed after `tunnel_idle_timeout` only.
#[tokio::test]
async fn upload_limits_do_not_apply_to_tunnels() {
    const WINDOW: Duration = Duration::from_millis(200);
    let tables = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n\
                  [limits]\nbody_idle_timeout = \"200ms\"\n";
    let echo = Echo::start().await;
    let routes = configuration(&echo, tables)
        .replace("path = \"/ws\"", "path = \"/ws\"\nmin_body_rate = \"1KiB\"");
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, &routes).await;

    let mut plain = socket(proxy.public(), "/ws", &[]).await.unwrap();
    assert!(plain.echoes("a").await);
    let tasks = Tasks::new();
    let mut sender = http2_client(proxy.public(), &tasks).await;
    let connect = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://{}/ws", proxy.public()))
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(connect).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut multiplexed = TokioIo::new(hyper::upgrade::on(response).await.unwrap());

    let mut byte = [0];
    let ends = async {
        tokio::select! { _ = plain.0.next() => {}, _ = multiplexed.read(&mut byte) => {} }
    };
    assert!(timeout(5 * WINDOW, ends).await.is_err(), "a silent tunnel was closed");
    assert!(plain.echoes("b").await);
    multiplexed.write_all(&[0x82, 0x81, 0, 0, 0, 0, b'b']).await.unwrap();
    let mut frame = [0; 3];
    multiplexed.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"\x82\x01b");
}

#[tokio::test]
async fn http2_clients_receive_refusals() {
    let world = World::new("").await;
    match socket(world.proxy.public(), "/nowhere", &[]).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 200),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
