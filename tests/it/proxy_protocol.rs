//! Connections of a proxy that sends the PROXY protocol.

use crate::support::raw::{exchange, read_all};
use crate::support::{Authority, Cloakroom, Flaw, Seen, Upstream, curl, needs};

const GET: &str =
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.9.9.9\r\nConnection: close\r\n\r\n";

async fn before(upstream: &Upstream, trusted: &str, tls: &str) -> Cloakroom {
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nproxy_protocol = true\n{tls}\
         [limits]\ntrusted_proxies = [\"{trusted}\"]\nheader_timeout = \"300ms\"\nconnections_per_address = 2\n"
    );
    Cloakroom::with(upstream, &toml).await
}

fn forwarded<'a>(seen: &'a Seen, name: &str) -> &'a str {
    seen.headers
        .iter()
        .find_map(|(known, value)| (known == name).then_some(value.as_str()))
        .unwrap()
}

#[tokio::test]
async fn trusted_proxy_header_sets_the_client() {
    let upstream = Upstream::start();
    let proxy = before(&upstream, "127.0.0.1", "").await;
    let header = "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r\n";
    let answer = exchange(proxy.public(), &format!("{header}{GET}")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = upstream.take_seen().pop().unwrap();
    // The client is not a trusted proxy.
    assert_eq!(forwarded(&seen, "x-forwarded-for"), "203.0.113.9");
    // The header of an unknown client (`UNKNOWN`) or of a health check (`LOCAL`) gives no trust.
    exchange(proxy.public(), &format!("PROXY UNKNOWN\r\n{GET}")).await;
    assert_eq!(forwarded(&upstream.take_seen()[0], "x-forwarded-for"), "127.0.0.1");
    let mut connection = tokio::net::TcpStream::connect(proxy.public()).await.unwrap();
    let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"[..], GET.as_bytes()].concat();
    tokio::io::AsyncWriteExt::write_all(&mut connection, &local).await.unwrap();
    assert!(read_all(&mut connection).await.starts_with("HTTP/1.1 200"));
    assert_eq!(forwarded(&upstream.take_seen()[0], "x-forwarded-for"), "127.0.0.1");
    for other in ["", "PROXY TCP4 a b c d\r\n", "PROXY "] {
        assert_eq!(exchange(proxy.public(), &format!("{other}{GET}")).await, "", "{other:?}");
    }
    // A missing header is awaited for the header timeout only.
    assert_eq!(exchange(proxy.public(), "PROXY TCP4 20").await, "");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn address_limit_counts_proxied_clients() {
    let upstream = Upstream::start();
    let proxy = before(&upstream, "127.0.0.1", "").await;
    let open = async |client: &str| {
        let mut connection = tokio::net::TcpStream::connect(proxy.public()).await.unwrap();
        let ask =
            format!("PROXY TCP4 {client} 192.0.2.1 4000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut connection, ask.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        let read = tokio::io::AsyncReadExt::read_exact(&mut connection, &mut first).await;
        (read.is_ok(), connection)
    };
    let (first, second) = (open("203.0.113.9").await, open("203.0.113.9").await);
    assert!(first.0 && second.0);
    assert!(!open("203.0.113.9").await.0, "a third of one client");
    assert!(open("203.0.113.8").await.0, "another one's first");
}

#[tokio::test]
async fn untrusted_peers_send_no_header() {
    let upstream = Upstream::start();
    let proxy = before(&upstream, "10.0.0.0/8", "").await;
    assert!(exchange(proxy.public(), GET).await.starts_with("HTTP/1.1 200"));
    assert_eq!(forwarded(&upstream.take_seen()[0], "x-forwarded-for"), "127.0.0.1");
    let header = "PROXY TCP4 203.0.113.9 192.0.2.1 4000 80\r\n";
    assert!(exchange(proxy.public(), &format!("{header}{GET}")).await.starts_with("HTTP/1.1 400"));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn header_precedes_the_tls_handshake() {
    needs!("curl");
    let (upstream, authority) = (Upstream::start(), Authority::new());
    let identity = authority.server(Flaw::None);
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    let tls = format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n");
    let proxy = before(&upstream, "127.0.0.1", &tls).await;
    let url = format!("https://localhost:{}/", proxy.public().port());
    let trusting = ["--cacert", authority.certificate().to_str().unwrap(), &url].map(str::to_owned);
    let arguments = [vec!["--haproxy-protocol".to_owned()], trusting.to_vec()].concat();
    assert_eq!(curl(&arguments).await.exit, 0);
    assert_eq!(forwarded(&upstream.take_seen()[0], "x-forwarded-proto"), "https");
    assert_ne!(curl(&trusting).await.exit, 0, "a handshake is no header");
}
