//! The configurations of docs/guides/operate/behind-a-proxy.md, as they are there, with the real proxies.

use std::process::Stdio;
use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::front::{CLIENT, Front, HOST};
use crate::guide::{Guide, put};
use crate::support::raw::{RawUpstream, exchange};
use crate::support::{
    Echo, Identity, KEY, Message, PATIENCE, Program, Script, Seen, Serving, Upstream, needs,
};

/// Cloakroom with a configuration of the guide, in front of a site with pages, a WebSocket and an event stream.
struct Site {
    upstream: Upstream,
    echo: Echo,
    events: RawUpstream,
    program: Program,
    serving: Serving,
    _directory: TempDir,
}

impl Site {
    async fn start(toml: &str, replacements: &[(&str, &str)]) -> Self {
        let (upstream, echo, events) =
            (Upstream::start(), Echo::start().await, RawUpstream::start().await);
        let toml = put(toml, &[("http://127.0.0.1:3000", &upstream.url())]);
        let toml = format!(
            "{}[[route]]\npath = \"/socket\"\nupstream = \"http://{}\"\n\
             [[route]]\npath = \"/events\"\nupstream = \"http://{}\"\n\
             [api]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [session]\nkeys = [\"{KEY}\"]\n[store]\nurl = \"memory:\"\n",
            put(&toml, replacements),
            echo.address,
            events.address
        );
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        std::fs::write(&file, toml).unwrap();
        let program = Program::start(&file);
        let serving = program.serving().await;
        Self { upstream, echo, events, program, serving, _directory: directory }
    }

    /// Returns the number of connections that the public listener has accepted.
    async fn connections(&self) -> u64 {
        let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let text = exchange(self.serving.admin, ask).await;
        let public =
            format!("cloakroom_connections_total{{listener=\"{}\"}} ", self.serving.public);
        let count = text.lines().find_map(|line| line.strip_prefix(&public));
        count.unwrap_or_else(|| panic!("{public}: {text}")).trim().parse().unwrap()
    }
}

/// Checks all that the guide promises of a proxy in front of Cloakroom.
async fn check(front: &Front, site: &Site, proxies: &str) {
    session_counts(front).await;
    forged_headers_are_removed(front, site, proxies).await;
    connections_are_kept(front, site).await;
    socket_echoes(front, site).await;
    events_arrive_at_once(front, site).await;
    site.program.wait_for_log(&format!("client={CLIENT}")).await;
}

async fn session_counts(front: &Front) {
    let script = Script::new().call("POST", "/values/n/increment", "").to_header();
    let script = format!("X-Script: {script}");
    for n in 1..=3 {
        let page = front.curl("counts", "/", &["-H", &script]).await;
        assert_eq!((page.exit, page.status), (0, 200), "{page:?}");
        let seen: Seen = serde_json::from_str(&page.body).unwrap();
        assert_eq!(seen.calls[0].json(), json!(n));
        let cookie = page.header("set-cookie").unwrap_or_default();
        let is_secure = cookie.starts_with("__Host-id=") && cookie.contains("; Secure");
        assert!(n > 1 || is_secure, "{cookie}");
    }
}

/// Headers by which clients forge their address or host. Each has one of the texts in [`FORGED`].
const FORGERIES: [&str; 15] = [
    "X-Forwarded-For: 203.0.113.7",
    "X-Forwarded-Proto: http203.0.113.7",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Port: evil",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-Server: evil",
    "Forwarded: for=203.0.113.7;proto=http;host=evil.test",
    "X-Real-Ip: 203.0.113.7",
    "X-Original-Url: /evil",
    "X-Original-Host: evil.test",
    "X-Rewrite-Url: /evil",
    "Client-Ip: 203.0.113.7",
    "X-Client-Ip: 203.0.113.7",
    "True-Client-Ip: 203.0.113.7",
    "CF-Connecting-Ip: 203.0.113.7",
];

const FORGED: [&str; 2] = ["203.0.113.7", "evil"];

async fn forged_headers_are_removed(front: &Front, site: &Site, proxies: &str) {
    site.upstream.take_seen();
    let mut arguments = vec!["-H", "X-Request-Id: evil"];
    for forgery in &FORGERIES {
        arguments.extend(["-H", forgery]);
    }
    let page = front.curl("forges", "/", &arguments).await;
    assert_eq!((page.exit, page.status), (0, 200), "{page:?}");
    let seen = site.upstream.take_seen().pop().unwrap();
    for (name, value) in &seen.headers {
        assert!(!FORGED.iter().any(|forged| value.contains(forged)), "{name}: {value}");
    }
    let header = |name: &str| {
        let found = seen.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let host = format!("{HOST}:{}", front.https);
    assert_eq!(header("x-forwarded-for"), format!("{CLIENT}{proxies}"));
    assert_eq!(header("x-real-ip"), CLIENT);
    assert_eq!((header("x-forwarded-proto"), header("x-forwarded-host")), ("https", &*host));
    let element = format!("for={CLIENT};host=\"{host}\";proto=https");
    assert_eq!(header("forwarded").split(", ").next(), Some(&*element));
    assert_eq!(header("host"), host);
}

/// Sends several requests on one connection, which share one to Cloakroom.
async fn connections_are_kept(front: &Front, site: &Site) {
    let before = site.connections().await;
    site.upstream.take_seen();
    let urls: Vec<_> = (0..8).map(|n| front.url(&format!("/{n}"))).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    assert_eq!(front.curl("keeps", "/", &urls).await.exit, 0);
    assert_eq!(site.upstream.take_seen().len(), 9);
    let opened = site.connections().await - before;
    assert!(opened <= 1, "{opened} connections");
}

async fn socket_echoes(front: &Front, site: &Site) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(front.authority.certificate()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", front.https)).await.unwrap();
    let name = ServerName::try_from(HOST).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let request = format!("wss://{HOST}:{}/socket", front.https).into_client_request().unwrap();
    let (mut socket, response) = client_async(request, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        let echoed = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        assert_eq!(echoed.unwrap().unwrap(), Message::text(text));
    }
    assert_eq!(site.echo.seen()[0]["x-forwarded-proto"], "https");
}

/// Each event arrives before the site sends the next one, with or without a known length of the response.
async fn events_arrive_at_once(front: &Front, site: &Site) {
    let events = (1..=3).map(|n| format!("data: {n}\n\n"));
    let chunked = events.clone().map(|event| (format!("{:x}\r\n{event}\r\n", event.len()), event));
    let plain = events.map(|event| (event.clone(), event));
    let (chunked, plain): (Vec<_>, Vec<_>) = (chunked.collect(), plain.collect());
    stream(front, site, "Transfer-Encoding: chunked", &chunked, "0\r\n\r\n").await;
    stream(front, site, "Content-Length: 31", &plain, "end\n").await;
}

/// Sends events in these bytes, each as soon as the last has arrived.
async fn stream(front: &Front, site: &Site, framing: &str, events: &[(String, String)], end: &str) {
    let mut client = Command::new("curl")
        .args(["--silent", "--no-buffer", "--noproxy", "*"])
        .args(front.arguments("events", "/events"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut connection, _) = site.events.head().await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n{framing}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    for (bytes, event) in events {
        connection.write_all(bytes.as_bytes()).await.unwrap();
        assert_eq!(&read(&mut client, event.len()).await, event, "{framing}");
    }
    connection.write_all(end.as_bytes()).await.unwrap();
    assert!(client.wait().await.unwrap().success(), "{framing}");
}

async fn read(client: &mut Child, length: usize) -> String {
    let mut bytes = vec![0; length];
    let read = client.stdout.as_mut().unwrap().read_exact(&mut bytes);
    tokio::time::timeout(PATIENCE, read).await.expect("an event arrives").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Plain http is redirected to https.
async fn redirects(front: &Front) {
    let url = format!("http://{HOST}:{}/cart?a=b", front.http);
    let to = format!("{HOST}:{}:127.0.0.1", front.http);
    let page = crate::support::curl(["--resolve", &to, &url]).await;
    assert!(matches!(page.status, 301 | 308), "{page:?}");
    let location = page.header("location").unwrap_or_default();
    let is_there =
        location.starts_with(&format!("https://{HOST}")) && location.ends_with("/cart?a=b");
    assert!(is_there, "{location}");
}

const PAGE: &str = "behind-a-proxy.md";
const ADDRESS: &str = "127.0.0.1:8080";

/// Starts Cloakroom, and returns the proxy's configuration with its address.
async fn site_and(heading: &str, language: &str) -> (Site, String) {
    let page = Guide::open(PAGE);
    let toml = page.block("Cloakroom", "toml");
    let site = Site::start(&toml, &[(ADDRESS, "127.0.0.1:0")]).await;
    let address = site.serving.public.to_string();
    (site, put(&page.block(heading, language), &[(ADDRESS, &address)]))
}

#[tokio::test]
async fn nginx_configuration_works_as_pasted() {
    needs!("nginx", "curl");
    let (site, text) = site_and("nginx", "nginx").await;
    let front = Front::nginx(&text).await;
    check(&front, &site, ", 127.0.0.1").await;
    redirects(&front).await;
}

#[tokio::test]
async fn haproxy_configuration_works_as_pasted() {
    needs!("haproxy", "curl");
    let (site, text) = site_and("HAProxy", "haproxy").await;
    let front = Front::haproxy(&text).await;
    check(&front, &site, ", 127.0.0.1").await;
    redirects(&front).await;
}

#[tokio::test]
async fn caddy_configuration_works_as_pasted() {
    needs!("caddy", "curl");
    let (site, text) = site_and("Caddy", "caddyfile").await;
    let front = Front::caddy(&text).await;
    check(&front, &site, ", 127.0.0.1").await;
    redirects(&front).await;
}

#[tokio::test]
async fn haproxy_passes_tls_through_as_pasted() {
    needs!("haproxy", "curl");
    let page = Guide::open(PAGE);
    let heading = "HAProxy that passes TLS through";
    let authority = crate::support::Authority::new();
    let Identity { certificate, key } = authority.of(&[HOST]);
    let site = Site::start(
        &page.block(heading, "toml"),
        &[
            ("127.0.0.1:8443", "127.0.0.1:0"),
            ("fullchain.pem", certificate.to_str().unwrap()),
            ("\"key.pem\"", &format!("\"{}\"", key.display())),
        ],
    )
    .await;
    let address = site.serving.public.to_string();
    let text = put(&page.block(heading, "haproxy"), &[("127.0.0.1:8443", &address)]);
    let mut front = Front::haproxy(&text).await;
    front.authority = authority;
    check(&front, &site, "").await;
}
