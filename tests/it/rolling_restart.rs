//! docs/guides/operate/upgrade.md: two instances behind the proxies of the guide are restarted one after the other,
//! and no request is lost.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::front::{Front, free_ports};
use crate::guide::{Guide, put, run};
use crate::support::{KEY, Program, RedisServer, Script, Seen, Upstream, needs, until};

const PAGE: &str = "upgrade.md";
const PROXIES: &str = "behind-a-proxy.md";

/// The addresses of the guide, and those of the test. All instances have the same two ports.
struct Places {
    public: u16,
    admin: u16,
}

const HOSTS: [(&str, &str); 2] = [("10.0.0.7", "127.0.0.1"), ("10.0.0.8", "127.0.0.3")];

impl Places {
    /// Puts the servers of the test into the configuration of a proxy.
    fn servers(&self, text: &str, health_check: Option<&str>) -> String {
        let servers = HOSTS
            .map(|(theirs, ours)| (format!("{theirs}:8080"), format!("{ours}:{}", self.public)));
        let port =
            health_check.map(|name| (format!("{name} 8082"), format!("{name} {}", self.admin)));
        let all: Vec<_> = servers.iter().chain(&port).map(|(from, to)| (&**from, &**to)).collect();
        put(text, &all)
    }
}

/// An instance with the configuration of the guide.
struct Instance {
    program: Program,
    file: PathBuf,
    public: String,
    admin: String,
    _directory: TempDir,
}

impl Instance {
    async fn start(host: &str, places: &Places, redis: &RedisServer, upstream: &Upstream) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("session-key"), KEY).unwrap();
        let [public, admin] = [places.public, places.admin].map(|port| format!("{host}:{port}"));
        let toml = put(
            &Guide::open(PAGE).block("Cloakroom", "toml"),
            &[
                ("10.0.0.7:8080", &public),
                ("10.0.0.7:8082", &admin),
                ("\"10.0.0.2\"", "\"127.0.0.1\""),
                ("redis://10.0.0.3:6379/0", &redis.url()),
                ("http://127.0.0.1:3000", &upstream.url()),
            ],
        );
        let file = directory.path().join("cloakroom.toml");
        fs::write(&file, format!("{toml}[api]\naddress = \"127.0.0.1:0\"\n")).unwrap();
        let program = Program::start(&file);
        program.serving().await;
        Self { program, file, public, admin, _directory: directory }
    }

    /// Follows the commands of the guide.
    async fn upgrade(&mut self, nginx: &Front) {
        let page = Guide::open(PAGE);
        let [take_out, put_back] = page.blocks("nginx", "sh");
        let restart = page.block("One after the other", "sh");
        for line in [take_out, restart, put_back].iter().flat_map(|block| block.lines()) {
            self.follow(line, nginx).await;
        }
    }

    /// Runs a command with the places of the test; the package restarts the service.
    async fn follow(&mut self, line: &str, nginx: &Front) {
        if line == "sudo systemctl reload nginx" {
            nginx.reload();
        } else if line.starts_with("sudo apt install ") {
            self.program.signal("-TERM");
            assert!(self.program.ended().await.success(), "{}", self.program.log());
            self.program = Program::start(&self.file);
        } else {
            let line = line
                .replace("10.0.0.7:8080", &self.public)
                .replace("10.0.0.7:8082", &self.admin)
                .replace("/etc/nginx/conf.d/cloakroom.conf", nginx.nginx_file().to_str().unwrap());
            assert!(!line.contains("10.0.0") && !line.contains("/etc"), "{line}");
            run(&line).await;
        }
    }
}

/// Visitors who request pages through each proxy all the time.
struct Visitors {
    running: JoinSet<()>,
    pages: Arc<Vec<AtomicUsize>>,
    stopped: Arc<AtomicBool>,
}

/// Pages that a visitor requests on one connection to the proxy.
const AT_ONCE: usize = 4;

impl Visitors {
    fn start(fronts: &[Arc<Front>]) -> Self {
        let pages: Arc<Vec<_>> = Arc::new(fronts.iter().map(|_| AtomicUsize::new(0)).collect());
        let stopped = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for (at, front) in fronts.iter().enumerate() {
            // curl repeats what a server has not handled on a connection that it closes, as browsers do, but not with
            // HTTP/2; the reload of nginx closes connections.
            let version = if at == 0 { "--http1.1" } else { "--http2" };
            for method in ["GET", "POST"] {
                let (front, pages, stopped) =
                    (Arc::clone(front), Arc::clone(&pages), Arc::clone(&stopped));
                running.spawn(async move {
                    let mut count = 0;
                    while !stopped.load(Ordering::Relaxed) {
                        visit(&front, [version, "--request", method], &mut count).await;
                        pages[at].fetch_add(AT_ONCE, Ordering::Relaxed);
                    }
                });
            }
        }
        Self { running, pages, stopped }
    }

    /// Waits until pages have come through each proxy.
    async fn go_on(&mut self) {
        let counts = || self.pages.iter().map(|pages| pages.load(Ordering::Relaxed));
        let before: Vec<_> = counts().collect();
        let all_have = || counts().zip(&before).all(|(now, before)| now > before + 2 * AT_ONCE);
        tokio::select! {
            () = until("pages come through each proxy", all_have) => {}
            Some(ended) = self.running.join_next() => panic!("a visitor stopped: {ended:?}"),
        }
    }

    async fn stop(mut self) -> Vec<usize> {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
        self.pages.iter().map(|pages| pages.load(Ordering::Relaxed)).collect()
    }
}

/// Requests pages that count in the session. Each has to arrive, and to be counted once.
async fn visit(front: &Front, request: [&str; 3], count: &mut u64) {
    let method = request[2];
    let script = Script::new().call("POST", "/values/n/increment", "").to_header();
    let script = format!("X-Script: {script}");
    let url = front.url("/");
    let mut arguments = [&request[..], &["-H", &script]].concat();
    arguments.extend(std::iter::repeat_n(&*url, AT_ONCE - 1));
    let page = front.curl(method, "/", &arguments).await;
    let text = format!("{}\n{}", page.head, page.body);
    let bodies: Vec<_> = text.lines().filter(|line| line.starts_with("{\"method\"")).collect();
    let log = front.log();
    assert_eq!((page.exit, bodies.len()), (0, AT_ONCE), "{method}: {text}\n{log}");
    for body in bodies {
        *count += 1;
        let seen: Seen = serde_json::from_str(body).unwrap();
        assert_eq!(seen.calls[0].body, count.to_string(), "{method}");
    }
}

/// Returns the proxies' configurations of behind-a-proxy.md with the servers of upgrade.md.
async fn fronts(places: &Places) -> [Arc<Front>; 3] {
    let (page, proxies) = (Guide::open(PAGE), Guide::open(PROXIES));
    let with = |text: String, start: &str, end: &str, instead: &str| {
        let (before, rest) = text.split_once(start).unwrap();
        let (_, after) = rest.split_once(end).unwrap();
        format!("{before}{instead}{after}")
    };
    let nginx = proxies.block("nginx", "nginx");
    let servers = places.servers(&page.block("nginx", "nginx"), None);
    let nginx = with(nginx, "upstream cloakroom {\n", "\n}\n", &servers);
    let haproxy = proxies.block("HAProxy", "haproxy");
    let servers = places.servers(&page.block("HAProxy", "haproxy"), Some("port"));
    let haproxy = with(haproxy + "END", "\nbackend cloakroom\n", "END", &format!("\n{servers}"));
    let caddy = proxies.block("Caddy", "caddyfile");
    let servers = places.servers(&page.block("Caddy", "caddyfile"), Some("health_port"));
    let caddy = with(caddy, "    reverse_proxy ", "\n    }\n", &servers);
    [
        Arc::new(Front::nginx(&nginx).await),
        Arc::new(Front::haproxy(&haproxy).await),
        Arc::new(Front::caddy(&caddy).await),
    ]
}

#[tokio::test]
async fn rolling_restart_behind_proxies_loses_no_request() {
    needs!("redis-server", "nginx", "haproxy", "caddy", "curl");
    let (upstream, redis) = (Upstream::start(), RedisServer::start(&[]));
    let [public, admin] = free_ports();
    let places = Places { public, admin };
    let mut instances = Vec::new();
    for (_, host) in HOSTS {
        instances.push(Instance::start(host, &places, &redis, &upstream).await);
    }
    let fronts = fronts(&places).await;
    let mut visitors = Visitors::start(&fronts);
    visitors.go_on().await;
    for instance in &mut instances {
        instance.upgrade(&fronts[0]).await;
        visitors.go_on().await;
    }
    let pages = visitors.stop().await;
    assert!(pages.iter().all(|pages| *pages > 100), "{pages:?}");
}
