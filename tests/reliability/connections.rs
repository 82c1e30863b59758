//! Many connections: the memory of an idle one, compared with other proxies, and the effect of slow
//! clients (slowloris attacks) on regular ones.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cloakroom::server::Tasks;
use http::Version;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::cpu_limit::CpuLimit;
use crate::load::{Clients, Tally, quantile, start_site};
use crate::process::{Addresses, Process};
use crate::process_stats::{descriptors_of, resident_of};
use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::frames::{END_STREAM, Frames, HEADERS, SETTINGS};
use crate::support::{Authority, Flaw, Identity, PATIENCE, until};

const IDLE: usize = 10_000;
const SLOW: usize = 4_000;
const HONEST: usize = 100;
/// Memory limits of an idle connection, in KiB.
const PLAIN: f64 = 12.0;
const WITH_TLS: f64 = 40.0;
/// Connections whose streams all stall. Their streams are fewer than a quarter of the connection
/// limit: from there on timeouts are shortened.
const STALLING: usize = 25;
/// Memory limit of a stalled stream, in KiB.
const STALLED: f64 = 4.0;

pub async fn run(report: &mut Report, wanted: &str) {
    for (name, tls, limit) in [("plain", false, PLAIN), ("tls", true, WITH_TLS)] {
        if name.contains(wanted) {
            let with = if tls { "with TLS" } else { "without TLS" };
            let requirement = format!(
                "at most {limit} KiB of resident memory each; file descriptors are released"
            );
            report
                .row(
                    format!("{IDLE} idle keep-alive connections {with}, each after one page"),
                    "once",
                    &requirement,
                    idle(tls, limit),
                )
                .await;
        }
    }
    if "stalled".contains(wanted) {
        report
            .row(
                format!("{STALLING} HTTP/2 connections of 100 streams each that read nothing of a response of two bytes"),
                "once",
                &format!("at most {STALLED} KiB of resident memory for each stream"),
                stalled(),
            )
            .await;
    }
    for (name, mode) in
        [("slow-head", ["-H"].as_slice()), ("slow-body", &["-B"]), ("slow-read", &["-X"])]
    {
        if name.contains(wanted) {
            report
                .row(
                    format!("slowhttptest {} with {SLOW} connections, by a process with a fifth of a CPU, while {HONEST} clients request pages", mode[0]),
                    "3 times 12 s without, 12 s with the attack",
                    "their p99 at most doubles in the median round, 0 requests fail",
                    slow_clients(mode),
                )
                .await;
        }
    }
}

fn configure(
    directory: &Path,
    addresses: &Addresses,
    site: SocketAddr,
    identity: Option<&Identity>,
) {
    let Addresses { public, api, admin } = addresses;
    let tls = identity.map_or_else(String::new, |identity| {
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n")
    });
    let text = format!(
        "[[listen]]\naddress = \"{public}\"\n{tls}[limits]\nconnections = 12000\nidle_timeout = \"10m\"\n\
         [api]\naddress = \"{api}\"\n[admin]\naddress = \"{admin}\"\n[log]\naccess = false\n[store]\nurl = \"memory:\"\n\
         [[route]]\nupstream = \"http://{site}\"\n"
    );
    std::fs::write(directory.join("cloakroom.toml"), text).unwrap();
}

/// Another proxy in front of the same site. Dropping it stops it.
struct Other {
    child: Child,
    public: SocketAddr,
}

impl Drop for Other {
    fn drop(&mut self) {
        // SIGTERM, so that it stops its worker processes.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Other {
    async fn start(program: &str, arguments: &[&str], public: SocketAddr) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let other = Self { child, public };
        until(program, || std::net::TcpStream::connect(public).is_ok()).await;
        other
    }

    async fn nginx(directory: &Path, site: SocketAddr, identity: Option<&Identity>) -> Self {
        let public = free();
        let (listen, tls) = match identity {
            None => (format!("{public}"), String::new()),
            Some(Identity { certificate, key }) => (
                format!("{public} ssl"),
                format!(
                    "ssl_certificate {}; ssl_certificate_key {};",
                    certificate.display(),
                    key.display()
                ),
            ),
        };
        let text = format!(
            "daemon off; worker_processes 2; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 15000; }}\n\
             http {{ access_log off; keepalive_timeout 600; keepalive_requests 100000; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n\
             upstream site {{ server {site}; keepalive 64; }}\n\
             server {{ listen {listen}; {tls} location / {{ proxy_pass http://site; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let prefix = format!("{}/", directory.display());
        Self::start("nginx", &["-p", &prefix, "-c", file.to_str().unwrap()], public).await
    }

    async fn haproxy(directory: &Path, site: SocketAddr, identity: Option<&Identity>) -> Self {
        let public = free();
        let tls = identity.map_or_else(String::new, |identity| {
            let pem = directory.join("haproxy.pem");
            let parts =
                [&identity.certificate, &identity.key].map(|part| std::fs::read(part).unwrap());
            std::fs::write(&pem, parts.concat()).unwrap();
            format!(" ssl crt {}", pem.display())
        });
        let text = format!(
            "global\n nbthread 2\n maxconn 12000\n no strict-limits\n\
             defaults\n mode http\n timeout connect 5s\n timeout client 10m\n timeout server 1m\n timeout http-keep-alive 10m\n maxconn 12000\n\
             frontend f\n bind {public}{tls}\n default_backend b\nbackend b\n server s {site}\n"
        );
        let file = directory.join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        Self::start("haproxy", &["-db", "-f", file.to_str().unwrap()], public).await
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn idle(tls: bool, limit: f64) -> Measurement {
    let (tasks, directory, authority) = (Tasks::new(), directory(), Authority::new());
    let site = start_site(&tasks);
    let identity = tls.then(|| authority.server(Flaw::None));
    let trusting = tls.then(|| Arc::new(client_config(&authority)));
    let addresses = Addresses::free();
    configure(directory.path(), &addresses, site, identity.as_ref());
    let ours = Process::start(directory.path(), &addresses).await;
    let nginx = Other::nginx(directory.path(), site, identity.as_ref()).await;
    let haproxy = Other::haproxy(directory.path(), site, identity.as_ref()).await;
    let mut each = Vec::new();
    let mut returned = String::new();
    for (process, public) in [
        (ours.id(), addresses.public),
        (nginx.child.id(), nginx.public),
        (haproxy.child.id(), haproxy.public),
    ] {
        // Warm up: one-time allocations do not count.
        drop(open(public, 100, trusting.as_ref()).await);
        // Idle connections to upstreams are kept for 4 s.
        sleep(Duration::from_secs(6)).await;
        let (before, descriptors) = (resident_of(process), descriptors_of(process));
        let open_connections = open(public, IDLE, trusting.as_ref()).await;
        sleep(Duration::from_secs(5)).await;
        #[expect(clippy::cast_precision_loss, reason = "KiB of one process")]
        each.push((resident_of(process) - before) as f64 / IDLE as f64);
        assert_eq!(open_connections.len(), IDLE, "every connection is served");
        drop(open_connections);
        if process == ours.id() {
            until("the connections are closed", || descriptors_of(process) <= descriptors + 5)
                .await;
            returned =
                format!("descriptors {descriptors} before, {} after", descriptors_of(process));
        }
    }
    tasks.drain();
    let (own, nginx, haproxy) = (each[0], each[1], each[2]);
    Measurement {
        text: format!("{own:.1} KiB each; nginx {nginx:.1}, HAProxy {haproxy:.1}; {returned}"),
        passed: own <= limit,
    }
}

/// Measures the memory of streams to HTTP/2 clients that grant no flow-control window.
async fn stalled() -> Measurement {
    let (tasks, directory) = (Tasks::new(), directory());
    let site = start_site(&tasks);
    let addresses = Addresses::free();
    configure(directory.path(), &addresses, site, None);
    let file = directory.path().join("cloakroom.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[limits]", "h2c = true\n[limits]", 1)).unwrap();
    let ours = Process::start(directory.path(), &addresses).await;
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let open = async |connections: usize| {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let mut client = Frames::connect(addresses.public).await;
            client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
            for stream in 0..100 {
                client.open(2 * stream + 1, &get, END_STREAM).await;
            }
            let mut heads = 0;
            while heads < 100 {
                let frame = client.next().await.expect("the connection stays open");
                heads += usize::from(frame.kind == HEADERS);
            }
            clients.push(client);
        }
        clients
    };
    // Warm up: one-time allocations do not count.
    let first = open(5).await;
    let before = resident_of(ours.id());
    let rest = open(STALLING - 5).await;
    let grown = resident_of(ours.id()) - before;
    drop((first, rest));
    tasks.drain();
    #[expect(clippy::cast_precision_loss, reason = "KiB of one process")]
    let each = grown as f64 / ((STALLING - 5) * 100) as f64;
    Measurement { text: format!("{each:.1} KiB each"), passed: each <= STALLED }
}

fn client_config(authority: &Authority) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(authority.certificate()).unwrap();
    for certificate in rustls::pki_types::pem::PemObject::pem_slice_iter(&pem) {
        roots.add(Result::unwrap(certificate)).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Opens `count` connections and requests one page on each.
async fn open(
    address: SocketAddr,
    count: usize,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Vec<Box<dyn Stream>> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let mut opening = JoinSet::new();
        for _ in 0..50.min(count - streams.len()) {
            let tls = tls.map(Arc::clone);
            opening.spawn(timeout(PATIENCE, async move {
                let stream = TcpStream::connect(address).await?;
                let mut stream: Box<dyn Stream> = match tls {
                    None => Box::new(stream),
                    Some(config) => {
                        let name = ServerName::try_from("localhost").unwrap();
                        Box::new(TlsConnector::from(config).connect(name, stream).await?)
                    }
                };
                stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
                let mut answer = Vec::new();
                while !answer.ends_with(&[b'.'; crate::load::PAGE]) {
                    assert!(stream.read_buf(&mut answer).await? > 0, "closed");
                }
                std::io::Result::Ok(stream)
            }));
        }
        while let Some(opened) = opening.join_next().await {
            streams.push(opened.unwrap().unwrap().unwrap());
        }
    }
    streams
}

async fn slow_clients(mode: &[&str]) -> Measurement {
    let (tasks, directory, addresses) = (Tasks::new(), directory(), Addresses::free());
    let site = start_site(&tasks);
    configure(directory.path(), &addresses, site, None);
    let process = Process::start(directory.path(), &addresses).await;
    let before = descriptors_of(process.id());
    drop(measure(addresses.public, Duration::from_secs(3)).await);
    let cpu_limit =
        CpuLimit::open().unwrap_or_else(|error| panic!("cannot create a control group: {error}"));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (calm, without) = measure(addresses.public, SAMPLE).await;
        let mut attack = Attack::start(&cpu_limit, mode, addresses.public);
        let at_once = settled(process.id()).await.saturating_sub(before);
        let (attacked, with) = measure(addresses.public, SAMPLE).await;
        attack.end();
        until("the attack's connections are closed", || {
            descriptors_of(process.id()) <= before + HONEST + 5
        })
        .await;
        let [without, with] = [&without, &with].map(|took| quantile(took, 0.99).as_secs_f64());
        let served = Tally::of(&calm.whole) + Tally::of(&attacked.whole);
        let failed = calm.lost() + attacked.lost();
        rounds.push(Round { ratio: with / without, without, with, served, failed, at_once });
    }
    tasks.drain();
    rounds.sort_by(|one, other| one.ratio.total_cmp(&other.ratio));
    let figures: Vec<String> = rounds
        .iter()
        .map(|Round { ratio, without, with, .. }| {
            format!("{:.2} and {:.2} ms: {ratio:.2}×", without * 1000.0, with * 1000.0)
        })
        .collect();
    let all = |count: fn(&Round) -> usize| rounds.iter().map(count).sum::<usize>();
    let at_once = rounds.iter().map(|round| round.at_once).min().unwrap();
    let failed = all(|round| round.failed);
    Measurement {
        text: format!(
            "p99 without and with the attack {}; {} requests, {failed} failed; at least {at_once} more file descriptors at the peak of the attack",
            figures.join(", "),
            all(|round| round.served),
        ),
        passed: rounds[ROUNDS / 2].ratio <= 2.0 && failed == 0 && at_once > SLOW / 4,
    }
}

/// One measurement without the attack and one with it; p99 in seconds.
struct Round {
    ratio: f64,
    without: f64,
    with: f64,
    served: usize,
    failed: usize,
    at_once: usize,
}

/// Rounds of which the median one counts, since other load on the machine varies.
const ROUNDS: usize = 3;
const SAMPLE: Duration = Duration::from_secs(12);

struct Attack(Child);

impl Attack {
    fn start(cpu_limit: &CpuLimit, mode: &[&str], address: SocketAddr) -> Self {
        let (connections, url) = (SLOW.to_string(), format!("http://{address}/"));
        let attack = cpu_limit
            .command()
            .arg("slowhttptest")
            .args(mode)
            .args(["-c", &connections, "-r", "1000", "-l", "60", "-p", "3", "-u", &url])
            .stdout(Stdio::null())
            .spawn();
        Self(attack.unwrap_or_else(|error| panic!("slowhttptest: {error}")))
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until the number of file descriptors has stopped growing, and returns it: all connections
/// of the attack are open, and those to the site that they cause.
async fn settled(id: u32) -> usize {
    let mut last = 0;
    for _ in 0..30 {
        sleep(Duration::from_secs(1)).await;
        let now = descriptors_of(id);
        // Slow heads time out from the tenth second on.
        if now > SLOW / 4 && now < last + SLOW / 100 {
            return now;
        }
        last = now;
    }
    last
}

async fn measure(address: SocketAddr, duration: Duration) -> (Arc<Tally>, Vec<Duration>) {
    let clients = Clients::start(address, HONEST, &[Version::HTTP_11], Duration::from_millis(50));
    sleep(duration).await;
    clients.stop().await
}
