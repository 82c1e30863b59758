//! docs/guides/operate/backup.md: its commands, as they are there, bring back the sessions of a damaged store.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::{JoinSet, spawn_blocking};

use crate::guide::{Guide, put, run};
use crate::support::{
    Browser, Cluster, KEY, PATIENCE, Program, RedisServer, Script, Sentinels, Upstream, curl,
    needs, until,
};

const PAGE: &str = "backup.md";

/// The Redis servers of a store.
enum Servers {
    None,
    One(RedisServer),
    Sentinels(Sentinels),
    Cluster(Cluster),
}

impl Servers {
    /// Returns the servers to back up, which are primaries from the start to the end of a test.
    fn primaries(&self) -> &[RedisServer] {
        match self {
            Self::None => &[],
            Self::One(server) => std::slice::from_ref(server),
            Self::Sentinels(all) => &all.servers()[..1],
            Self::Cluster(cluster) => &cluster.nodes()[..3],
        }
    }

    fn replicas(&self) -> &[RedisServer] {
        match self {
            Self::None | Self::One(_) => &[],
            Self::Sentinels(all) => &all.servers()[1..],
            Self::Cluster(cluster) => &cluster.nodes()[3..],
        }
    }

    fn sentinels(&self) -> &[RedisServer] {
        match self {
            Self::Sentinels(all) => all.sentinels(),
            Self::None | Self::One(_) | Self::Cluster(_) => &[],
        }
    }
}

/// The program with a store in its state directory, and a directory for backups.
struct World {
    upstream: Upstream,
    /// `None` while it is stopped.
    program: Option<Program>,
    public: SocketAddr,
    state: TempDir,
    backups: TempDir,
    servers: Servers,
}

impl World {
    /// Starts with an embedded store, and with keys that the program generates.
    async fn embedded(store: &str) -> Self {
        Self::start(tempfile::tempdir().unwrap(), store, Servers::None).await
    }

    /// Starts with this store and state directory.
    async fn start(state: TempDir, store: &str, servers: Servers) -> Self {
        let backups = tempfile::tempdir().unwrap();
        let upstream = Upstream::start();
        let keys = match servers {
            Servers::None => String::new(),
            _ => format!("[session]\nkeys = [\"{KEY}\"]\n"),
        };
        let toml = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"{store}\"\n{keys}\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        fs::write(state.path().join("cloakroom.toml"), toml).unwrap();
        let public = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { upstream, program: None, public, state, backups, servers };
        world.start_program().await;
        world
    }

    async fn start_program(&mut self) {
        let program = Program::start(&self.state.path().join("cloakroom.toml"));
        self.public = program.serving().await.public;
        self.program = Some(program);
    }

    async fn stop_program(&mut self) {
        let Some(mut program) = self.program.take() else { return };
        program.signal("-TERM");
        assert!(program.ended().await.success(), "{}", program.log());
    }

    fn crash(&mut self) {
        self.program = None;
    }

    async fn wait_until_ready(&self) {
        let admin = self.program.as_ref().unwrap().serving().await.admin;
        let ready = format!("http://{admin}/ready?store");
        let deadline = Instant::now() + PATIENCE;
        while curl([&ready]).await.status != 200 {
            assert!(Instant::now() < deadline, "the store is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the commands of a block on the machine of the program and its store.
    async fn follow(&mut self, block: &str) {
        for line in block.lines() {
            match line {
                "sudo systemctl stop cloakroom" => self.stop_program().await,
                "sudo systemctl start cloakroom" => self.start_program().await,
                line => run(&self.with_places(line)).await,
            }
        }
    }

    /// Runs the commands of a block on the machine of each of these servers.
    async fn follow_on(&self, servers: &[RedisServer], block: &str) {
        for server in servers {
            for line in block.lines() {
                match line {
                    "sudo systemctl stop redis-server" => self.stop_server(server).await,
                    "sudo systemctl start redis-server" => server.restart(),
                    "sudo systemctl stop redis-sentinel" => {
                        self.servers.sentinels().iter().for_each(RedisServer::kill);
                    }
                    "sudo systemctl start redis-sentinel" => {
                        self.servers.sentinels().iter().for_each(RedisServer::restart);
                    }
                    line => run(&self.with_places_of(server, line)).await,
                }
            }
        }
    }

    /// Stops a server: the last primary of a cluster until the cluster considers it failed.
    async fn stop_server(&self, server: &RedisServer) {
        server.kill();
        if let (Servers::Cluster(_), [.., last]) = (&self.servers, self.servers.primaries())
            && server.port() == last.port()
        {
            let replica = self.servers.replicas().last().unwrap();
            let nodes = || replica.command(&["CLUSTER", "NODES"]).text();
            until("the primary is considered failed", || nodes().contains("master,fail ")).await;
        }
    }

    /// Runs the commands of a block where the store is.
    async fn follow_at_store(&mut self, block: &str) {
        match self.servers {
            Servers::None => self.follow(block).await,
            _ => self.follow_on(self.servers.primaries(), block).await,
        }
    }

    fn with_places(&self, line: &str) -> String {
        let places = [
            ("/var/lib/cloakroom", self.state.path().to_str().unwrap()),
            ("/var/backups/cloakroom", self.backups.path().to_str().unwrap()),
        ];
        put_places(line, &places)
    }

    fn with_places_of(&self, server: &RedisServer, line: &str) -> String {
        let data = server.socket().parent().unwrap().to_str().unwrap().to_owned();
        let backups = self.backups.path().join(server.port().to_string());
        fs::create_dir_all(&backups).unwrap();
        let client = format!("redis-cli -p {} ", server.port());
        let sentinel = self.servers.sentinels().first().map_or(0, RedisServer::port).to_string();
        let is_of_sentinel = line.starts_with("redis-cli -p 26379 ");
        let places = [
            ("/var/lib/redis", data.as_str()),
            ("/var/backups/cloakroom", backups.to_str().unwrap()),
            ("/etc/redis", self.state.path().to_str().unwrap()),
            if is_of_sentinel { ("26379", &*sentinel) } else { ("redis-cli ", &*client) },
        ];
        put_places(line, &places)
    }
}

/// Replaces those of the places that a line has, at least one.
fn put_places(line: &str, places: &[(&str, &str)]) -> String {
    let places: Vec<_> = places.iter().filter(|(place, _)| line.contains(place)).copied().collect();
    assert!(!places.is_empty(), "{line:?} is about no place of the test");
    put(line, &places)
}

/// Visitors who count their own pages all the time.
struct Visitors {
    browsers: Vec<Browser>,
    /// The last count that each was shown.
    counts: Arc<Vec<AtomicU64>>,
    stopped: Arc<AtomicBool>,
    running: JoinSet<()>,
}

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

impl Visitors {
    async fn start(number: usize, public: SocketAddr) -> Self {
        let browsers: Vec<_> = (0..number).map(|_| Browser::to(public)).collect();
        let counts: Arc<Vec<_>> = Arc::new((0..number).map(|_| AtomicU64::new(0)).collect());
        let stopped = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for (at, browser) in browsers.iter().enumerate() {
            let (browser, counts, stopped) =
                (browser.clone(), Arc::clone(&counts), Arc::clone(&stopped));
            running.spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    let n = browser.navigate("/", &count()).await.json().as_u64().unwrap();
                    assert_eq!(counts[at].swap(n, Ordering::Relaxed) + 1, n, "visitor {at}");
                }
            });
        }
        let visitors = Self { browsers, counts, stopped, running };
        visitors.go_on().await;
        visitors
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until each visitor has counted two more pages.
    async fn go_on(&self) {
        let before = self.counts();
        let all_have = || self.counts().iter().zip(&before).all(|(now, before)| *now > before + 1);
        until("all visitors have counted", all_have).await;
    }

    async fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
    }
}

/// Makes a backup while visitors write, lets `restore` damage the store and run the commands that it gets, and checks
/// whose sessions are back.
async fn check(mut world: World, heading: &str, restore: impl AsyncFnOnce(&mut World, &str)) {
    let page = Guide::open(PAGE);
    let mut visitors = Visitors::start(6, world.public).await;
    let [backup, commands] = page.blocks(heading, "sh");
    let before = visitors.counts();
    world.follow_at_store(&backup).await;
    let after = visitors.counts();
    visitors.go_on().await;
    visitors.stop().await;

    // What happens after the backup.
    let [leaves, logs_in, rest @ ..] = &*visitors.browsers else { panic!("at least two") };
    let cookie_of_the_left = leaves.copy();
    leaves.navigate("/", &Script::new().call("DELETE", "", "")).await;
    logs_in.navigate("/", &Script::new().patch(&json!({"principal": "ada"}))).await;
    let late = Browser::to(world.public);
    late.navigate("/", &count()).await;

    restore(&mut world, &commands).await;
    world.wait_until_ready().await;

    let read = Script::new().get("/values/n");
    let now = async |browser: &Browser| {
        let page = browser.at(world.public).navigate("/", &read).await;
        let called = page.last();
        (called.status == 200).then(|| called.json().as_u64().unwrap())
    };
    for (at, browser) in rest.iter().enumerate() {
        let at = at + 2;
        let n = now(browser).await.unwrap_or_default();
        let is_of_then = (before[at]..=after[at] + 1).contains(&n);
        assert!(is_of_then, "visitor {at}: {n}, not {} to {}", before[at], after[at]);
        // And it can be changed.
        let next = browser.at(world.public).navigate("/", &count()).await.json();
        assert_eq!(next, json!(n + 1));
    }
    assert!(now(&cookie_of_the_left).await.is_some(), "sessions that have ended are back");
    assert_eq!(now(logs_in).await, None, "logged in since");
    assert_eq!(now(&late).await, None, "begun since");
}

/// Checks an embedded store. A crash leaves its files damaged, and its key and token are lost.
async fn check_embedded(store: &str, heading: &str, damage: impl FnOnce(&Path)) {
    let mut world = World::embedded(store).await;
    let [backup, restore] = Guide::open(PAGE).blocks("Keys and tokens", "sh");
    world.follow(&backup).await;
    let secrets = ["auto-session-key", "admin-token"].map(|name| world.state.path().join(name));
    let read = || secrets.each_ref().map(|file| fs::read(file).unwrap());
    let before = read();
    check(world, heading, async |world, commands| {
        world.crash();
        damage(world.state.path());
        for file in &secrets {
            fs::remove_file(file).unwrap();
        }
        world.follow(&restore).await;
        assert_eq!(read(), before);
        world.follow(commands).await;
    })
    .await;
}

#[tokio::test]
async fn sqlite_backup_restores_the_sessions() {
    needs!("sqlite3", "curl");
    check_embedded("sqlite:cloakroom.db", "SQLite", |state| {
        assert!(state.join("cloakroom.db-wal").exists());
        fs::write(state.join("cloakroom.db"), vec![7; 16_384]).unwrap();
    })
    .await;
}

#[tokio::test]
async fn files_backup_restores_the_sessions() {
    needs!("tar", "curl");
    check_embedded("file:sessions", "Files", |state| {
        for entry in fs::read_dir(state.join("sessions")).unwrap() {
            fs::write(entry.unwrap().path(), "damaged").unwrap();
        }
    })
    .await;
}

/// Empties the primaries, and with them their replicas.
fn flush(servers: &Servers) {
    for server in servers.primaries() {
        server.command(&["FLUSHALL"]).done();
    }
}

#[tokio::test]
async fn redis_backup_restores_the_sessions() {
    needs!("redis-server", "redis-cli", "curl");
    let server = RedisServer::start(&[]);
    let (url, state) = (server.url(), tempfile::tempdir().unwrap());
    let world = World::start(state, &url, Servers::One(server)).await;
    check(world, "Redis", async |world, restore| {
        flush(&world.servers);
        world.follow_at_store(restore).await;
    })
    .await;
}

#[tokio::test]
async fn append_only_file_gives_way_to_the_backup() {
    needs!("redis-server", "redis-cli", "curl");
    let state = tempfile::tempdir().unwrap();
    let settings = state.path().join("redis.conf");
    fs::write(&settings, "appendonly yes\n").unwrap();
    let server = RedisServer::start(&["--include", settings.to_str().unwrap()]);
    let url = server.url();
    let world = World::start(state, &url, Servers::One(server)).await;
    let [before, after] = Guide::open(PAGE).blocks("Redis with an append-only file", "sh");
    check(world, "Redis", async |world, restore| {
        flush(&world.servers);
        let [server] = world.servers.primaries() else { panic!("one server") };

        world.follow_on(world.servers.primaries(), restore).await;
        assert_eq!(sessions_in(server), 0, "the append-only file is loaded");
        for block in [&before, restore, &after] {
            world.follow_on(world.servers.primaries(), block).await;
        }
        let restored = sessions_in(server);
        assert!(restored > 0);
        assert_eq!(fs::read_to_string(&settings).unwrap(), "appendonly yes\n");
        server.restart();
        assert_eq!(sessions_in(server), restored, "the new append-only file has them too");
    })
    .await;
}

#[tokio::test]
async fn sentinels_keep_the_restored_primary() {
    needs!("redis-server", "redis-cli", "curl");
    let sentinels = spawn_blocking(Sentinels::start).await.unwrap();
    let addresses = sentinels.addresses().join(",");
    let url = format!("redis+sentinel://{addresses}/{}", Sentinels::SERVICE);
    let state = tempfile::tempdir().unwrap();
    let world = World::start(state, &url, Servers::Sentinels(sentinels)).await;
    let [before, after] = Guide::open(PAGE).blocks("Redis with sentinels", "sh");
    check(world, "Redis", async |world, restore| {
        flush(&world.servers);
        for block in [&before, restore, &after] {
            world.follow_on(world.servers.primaries(), block).await;
        }
        let Servers::Sentinels(sentinels) = &world.servers else { panic!("sentinels") };
        sentinels.wait_until_whole();
        assert_eq!(sentinels.primary().port(), sentinels.servers()[0].port());
        check_replicas(&world.servers).await;
    })
    .await;
}

#[tokio::test]
async fn each_primary_of_a_cluster_is_restored() {
    needs!("redis-server", "redis-cli", "curl");
    let cluster = spawn_blocking(Cluster::start).await.unwrap();
    let url = format!("redis+cluster://{}", cluster.seeds().join(","));
    let state = tempfile::tempdir().unwrap();
    let world = World::start(state, &url, Servers::Cluster(cluster)).await;
    let [before, after] = Guide::open(PAGE).blocks("Redis Cluster", "sh");
    check(world, "Redis", async |world, restore| {
        flush(&world.servers);
        world.follow_on(world.servers.replicas(), &before).await;
        world.follow_on(world.servers.primaries(), restore).await;
        world.follow_on(world.servers.replicas(), &after).await;
        let Servers::Cluster(cluster) = &world.servers else { panic!("a cluster") };
        cluster.wait_until_whole();
        check_replicas(&world.servers).await;
    })
    .await;
}

/// Checks that no replica was promoted, and waits until all have the data of the restored primaries.
async fn check_replicas(servers: &Servers) {
    let sessions = |servers: &[RedisServer]| servers.iter().map(sessions_in).sum::<usize>();
    let (primaries, replicas) = (servers.primaries(), servers.replicas());
    assert!(primaries.iter().all(|server| server.info("role") == "master"));
    let copies = replicas.len() / primaries.len();
    until("the replicas have the restored sessions", || {
        let restored = sessions(primaries);
        restored > 0 && sessions(replicas) == restored * copies
    })
    .await;
}

fn sessions_in(server: &RedisServer) -> usize {
    server.command(&["KEYS", "cloakroom:s:*"]).list().len()
}
