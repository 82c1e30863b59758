//! TLS and HTTP/2 from clients, as curl and hyper speak them.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use cloakroom::server::Tasks;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::raw::{RawUpstream, exchange};
use crate::support::{
    Authority, Browser, Cloakroom, CurlResponse, Flaw, Identity, Script, Seen, Upstream, curl,
    needs, until,
};

/// A proxy with TLS for these, and what goes with it.
struct World {
    _upstream: Upstream,
    proxy: Cloakroom,
    authority: Authority,
}

impl World {
    async fn new(names: &[&[&str]]) -> Self {
        let authority = Authority::new();
        let identities: Vec<Identity> = names.iter().map(|names| authority.of(names)).collect();
        Self::with(authority, &identities, "").await
    }

    async fn with(authority: Authority, identities: &[Identity], more: &str) -> Self {
        let upstream = Upstream::start();
        let toml = format!("{}{more}", listen(identities));
        let proxy = Cloakroom::with(&upstream, &toml).await;
        Self { _upstream: upstream, proxy, authority }
    }

    /// Requests a path of a host with curl.
    async fn curl(&self, host: &str, path: &str, arguments: &[&str]) -> CurlResponse {
        let port = self.proxy.public().port();
        let authority = self.authority.certificate();
        let (ca, to) = (authority.to_str().unwrap(), format!("{host}:{port}:127.0.0.1"));
        let url = format!("https://{host}:{port}{path}");
        let own = ["--cacert", ca, "--resolve", &to, &url];
        curl(own.iter().chain(arguments)).await
    }
}

fn listen(identities: &[Identity]) -> String {
    let one = |identity: &Identity| {
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        format!("{{ certificate = \"{certificate}\", key = \"{key}\" }}")
    };
    let identities: Vec<String> = identities.iter().map(one).collect();
    format!("[[listen]]\naddress = \"127.0.0.1:0\"\ntls = [{}]\n", identities.join(", "))
}

fn seen(answer: &CurlResponse) -> Seen {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn saw(seen: &Seen, name: &str) -> Vec<String> {
    let named = seen.headers.iter().filter(|(found, _)| found == name);
    named.map(|(_, value)| value.clone()).collect()
}

#[tokio::test]
async fn sessions_work_over_both_protocols() {
    needs!("curl");
    let world = World::new(&[&["localhost"]]).await;
    let visit = Script::new().call("POST", "/values/visits/increment", "").to_header();
    let visit = format!("x-script: {visit}");
    let jar = world.proxy.directory().join("jar");
    let jar = jar.to_str().unwrap();
    for (expected, (option, version)) in
        [("--http1.1", "1.1"), ("--http2", "2"), ("--http1.1", "1.1"), ("--http2", "2")]
            .into_iter()
            .enumerate()
    {
        let arguments = [option, "--header", &visit, "--cookie", jar, "--cookie-jar", jar];
        let answer = world.curl("localhost", "/a?b=c", &arguments).await;
        assert_eq!((answer.exit, answer.status, answer.version.as_str()), (0, 200, version));
        let page = seen(&answer);
        assert_eq!(page.calls[0].json(), json!(expected + 1), "{answer:?}");
        assert_eq!(page.target, "/a?b=c");
        assert_eq!(saw(&page, "x-forwarded-proto"), ["https"]);
        let host = format!("localhost:{}", world.proxy.public().port());
        assert_eq!(saw(&page, "host"), [host]);
    }
}

#[tokio::test]
async fn certificate_is_chosen_by_server_name() {
    needs!("curl");
    let world =
        World::new(&[&["first.test"], &["second.test", "third.test"], &["*.wide.test"]]).await;
    for host in ["first.test", "second.test", "third.test", "a.wide.test", "SECOND.test"] {
        let answer = world.curl(host, "/", &[]).await;
        assert_eq!((answer.exit, answer.status), (0, 200), "{host}");
    }
    // No certificate matches this name, and curl rejects the default one.
    for host in ["wide.test", "a.b.wide.test", "other.test"] {
        assert_eq!(world.curl(host, "/", &[]).await.exit, 60, "{host}");
        let answer = world.curl(host, "/", &["--insecure"]).await;
        assert_eq!(answer.status, 200, "{host}");
    }
}

#[tokio::test]
async fn only_tls_1_2_and_1_3() {
    needs!("curl");
    let world = World::new(&[&["localhost"]]).await;
    for (arguments, exit) in [
        (["--tlsv1.2", "--tls-max", "1.2"], 0),
        (["--tlsv1.3", "--tls-max", "1.3"], 0),
        (["--tlsv1.0", "--tls-max", "1.1"], 35),
    ] {
        assert_eq!(world.curl("localhost", "/", &arguments).await.exit, exit, "{arguments:?}");
    }
}

#[tokio::test]
async fn silent_handshake_times_out_alone() {
    needs!("curl");
    let authority = Authority::new();
    let identity = authority.server(Flaw::None);
    let limits = "[limits]\nheader_timeout = \"300ms\"\n";
    let world = World::with(authority, &[identity], limits).await;
    let mut silent = Vec::new();
    for hello in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut connection = TcpStream::connect(world.proxy.public()).await.unwrap();
        connection.write_all(hello).await.unwrap();
        silent.push(connection);
    }
    assert_eq!(world.curl("localhost", "/", &[]).await.status, 200);
    for mut connection in silent {
        let mut rest = Vec::new();
        // A reset is fine too. Only an alert may precede it, not a page.
        let _ = connection.read_to_end(&mut rest).await;
        assert!(rest.len() < 20, "{rest:?}");
    }
}

#[tokio::test]
async fn plain_listener_redirects_to_tls() {
    needs!("curl");
    let authority = Authority::new();
    let identity = authority.server(Flaw::None);
    let redirect = "[[listen]]\naddress = \"127.0.0.1:0\"\nredirect_to_https = true\n";
    let world = World::with(authority, &[identity], redirect).await;
    let (tls, clear) = (world.proxy.public().port(), world.proxy.listener(1).port());
    let url = format!("http://localhost:{clear}/a%2Fb?c=d");
    let answer = curl(["--data", "x=1", &url]).await;
    let location = format!("https://localhost:{tls}/a%2Fb?c=d");
    assert_eq!((answer.status, answer.header("location")), (308, Some(&*location)));
    let head = "GET /\u{e9} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let raw = exchange(world.proxy.listener(1), head).await;
    assert!(raw.contains(&format!("location: https://localhost:{tls}/%C3%A9\r\n")), "{raw}");
    let ca = world.authority.certificate();
    let followed = ["--location", "--data", "x=1", "--cacert", ca.to_str().unwrap(), &url];
    let followed = curl(followed).await;
    let (_, page) = followed.body.split_once("\r\n\r\n").unwrap();
    let page: Seen = serde_json::from_str(page).unwrap();
    assert_eq!((page.method.as_str(), page.body.as_str()), ("POST", "x=1"));
}

/// Opens a cleartext HTTP/2 connection with small flow-control windows.
async fn h2c(address: SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let tasks = Tasks::new();
    let mut builder = http2::Builder::new(tasks.clone());
    builder.initial_stream_window_size(1000);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tasks.run(connection).detach();
    sender
}

#[tokio::test]
async fn unread_stream_is_reset_alone() {
    let (upstream, raw) = (Upstream::start(), RawUpstream::start().await);
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n\
         [limits]\nbody_idle_timeout = \"300ms\"\n[[route]]\nupstream = \"UPSTREAM\"\n\
         [[route]]\npath = \"/large\"\nupstream = \"http://{}\"\n",
        raw.address
    );
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let mut sender = h2c(proxy.public()).await;
    let get = |path: &str, script: &Script| {
        let request = Request::get(format!("http://{}{path}", proxy.public()));
        request.header("x-script", script.to_header()).body(Empty::new()).unwrap()
    };
    // More than the window of its stream, and it is not read.
    let large = async {
        let (mut site, _) = raw.head().await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 500000\r\n\r\n";
        site.write_all(&[head.to_vec(), vec![b'x'; 500_000]].concat()).await.unwrap();
    };
    let asked = sender.send_request(get("/large", &Script::new()));
    let (stalled, ()) = tokio::join!(asked, large);
    let stalled = stalled.unwrap();
    assert_eq!(stalled.status(), 200);
    until("the stream is reset", || proxy.metrics().requests_in_flight().get() == 0).await;
    assert!(stalled.into_body().collect().await.is_err());
    let page = sender.send_request(get("/", &Script::new().body("small"))).await.unwrap();
    assert_eq!(page.into_body().collect().await.unwrap().to_bytes(), "small");
}

#[tokio::test]
async fn cookie_crumbs_are_joined() {
    needs!("curl");
    let upstream = Upstream::start();
    let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let proxy = Cloakroom::with(&upstream, toml).await;
    let mut sender = h2c(proxy.public()).await;
    let request = Request::get(format!("http://{}/", proxy.public()))
        .header("cookie", "a=1")
        .header("cookie", "__Host-id=nonsense")
        .header("cookie", "b=\"2;  3\"")
        .body(Empty::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let page = response.into_body().collect().await.unwrap().to_bytes();
    let page: Seen = serde_json::from_slice(&page).unwrap();
    assert_eq!(saw(&page, "cookie"), ["a=1; b=\"2;  3\""]);
    assert_eq!(saw(&page, "via").len(), 1);
    assert!(saw(&page, "via")[0].starts_with("2 "), "{:?}", saw(&page, "via"));
    // That listener accepts HTTP/1 too; the others accept no cleartext HTTP/2.
    let url = format!("http://{}/", proxy.public());
    assert_eq!(curl(["--http1.1", &url]).await.version, "1.1");
    let upgraded = curl(["--http2", &url]).await;
    assert_eq!((upgraded.status, upgraded.version.as_str()), (200, "1.1"));
    let clear = Cloakroom::start(&upstream).await;
    let refused = curl(["--http2-prior-knowledge", &format!("http://{}/", clear.public())]).await;
    assert_ne!(refused.exit, 0);
}

/// RFC 9110, section 15.5.20: a browser that reuses a connection for another host of the same certificate retries on a new
/// one.
#[tokio::test]
async fn coalesced_requests_for_unserved_hosts_are_misdirected() {
    needs!("curl");
    let authority = Authority::new();
    let identity = authority.of(&["*.example.test"]);
    let route = "[[route]]\nhost = \"a.example.test\"\nupstream = \"UPSTREAM\"\n";
    let world = World::with(authority, &[identity], route).await;
    for (version, host, status) in [
        ("--http2", "Host: b.example.test", 421),
        ("--http2", "Host: B.example.test:99", 421),
        ("--http2", "Host: A.example.test", 200),
        ("--http2", "Host: a.example.test:99", 200),
        ("--http1.1", "Host: b.example.test", 404),
    ] {
        let answer = world.curl("a.example.test", "/", &[version, "--header", host]).await;
        assert_eq!((answer.exit, answer.status), (0, status), "{version} {host}");
        assert_eq!(answer.header("cache-control").is_some(), status != 200, "{version} {host}");
    }
    // On a connection for that host, there is no such page, and a retry would not help.
    assert_eq!(world.curl("b.example.test", "/", &["--http2"]).await.status, 404);
}

#[tokio::test]
async fn hosts_of_another_listeners_certificate_are_misdirected() {
    needs!("curl");
    let authority = Authority::new();
    let [one, other] = ["one.test", "other.test"].map(|name| authority.of(&[name]));
    let second = listen(&[other]);
    let world = World::with(authority, &[one], &second).await;
    for (host, status) in
        [("other.test", 421), ("OTHER.test:1", 421), ("one.test", 200), ("third.test", 200)]
    {
        let host = format!("Host: {host}");
        let answer = world.curl("one.test", "/", &["--http2", "--header", &host]).await;
        assert_eq!((answer.exit, answer.status), (0, status), "{host}");
    }
    // The listener that has the certificate serves it.
    let port = world.proxy.listener(1).port();
    let (ca, to) = (world.authority.certificate(), format!("other.test:{port}:127.0.0.1"));
    let url = format!("https://other.test:{port}/");
    let own = curl(["--http2", "--cacert", ca.to_str().unwrap(), "--resolve", &to, &url]).await;
    assert_eq!((own.exit, own.status), (0, 200));
}

/// Returns the status and body of a page through a proxy with `site` as upstream and `tls` added to its route.
async fn through(site: &World, host: &str, tls: &str) -> (u16, Option<String>) {
    let upstream = Upstream::start();
    let port = site.proxy.public().port();
    let toml = format!("[[route]]\nupstream = \"https://{host}:{port}\"\n{tls}");
    let proxy = Cloakroom::with(&upstream, &toml).await;
    let page = Browser::new(&proxy).navigate("/", &Script::new()).await;
    let seen = page.status.is_success().then(|| page.saw("x-forwarded-proto").unwrap());
    (page.status.as_u16(), seen)
}

#[tokio::test]
async fn upstream_certificate_is_verified() {
    let site = World::new(&[&["app.test", "localhost"]]).await;
    let stranger = Authority::new();
    let (ours, other) = (site.authority.certificate(), stranger.certificate());
    let trusting =
        |ca: &Path, more: &str| format!("upstream_tls = {{ ca = \"{}\"{more} }}\n", ca.display());
    let served = (200, Some("https".to_owned()));
    assert_eq!(through(&site, "localhost", &trusting(&ours, "")).await, served);
    let named = trusting(&ours, ", name = \"app.test\"");
    assert_eq!(through(&site, "127.0.0.1", &named).await, served);
    let anybody = "upstream_tls = { verify = false }\n";
    assert_eq!(through(&site, "127.0.0.1", anybody).await, served);
    for refused in [trusting(&ours, ""), trusting(&ours, ", name = \"other.test\"")] {
        assert_eq!(through(&site, "127.0.0.1", &refused).await, (502, None), "{refused}");
    }
    assert_eq!(through(&site, "localhost", &trusting(&other, "")).await, (502, None));
}

#[tokio::test]
async fn https_upstream_never_falls_back_to_http() {
    let upstream = Upstream::start();
    let https = upstream.url().replacen("http:", "https:", 1);
    let route = format!("[[route]]\nupstream = \"{https}\"\nupstream_tls = {{ verify = false }}\n");
    let proxy = Cloakroom::with(&upstream, &route).await;
    let page = Browser::new(&proxy).navigate("/", &Script::new()).await;
    assert_eq!((page.status.as_u16(), upstream.seen().len()), (502, 0));
}
