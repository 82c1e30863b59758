//! docs/guides/operate/backup.md: its commands, as they are there, bring back the sessions of a damaged store.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::guide::{Guide, put, run};
use crate::support::{
    Browser, PATIENCE, Program, RedisServer, Script, Upstream, curl, needs, until,
};

const PAGE: &str = "backup.md";

/// The program with a store in its state directory, and a directory for backups.
struct World {
    upstream: Upstream,
    /// `None` while it is stopped.
    program: Option<Program>,
    public: SocketAddr,
    state: TempDir,
    backups: TempDir,
    redis: Option<RedisServer>,
}

impl World {
    /// Starts with this store, and with keys that the program generates if the store is embedded.
    async fn start(store: &str, redis: Option<RedisServer>) -> Self {
        let (state, backups) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let upstream = Upstream::start();
        let keys =
            redis.as_ref().map(|_| format!("[session]\nkeys = [\"{}\"]\n", crate::support::KEY));
        let toml = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"{store}\"\n{}\
             [[route]]\nupstream = \"{}\"\n",
            keys.unwrap_or_default(),
            upstream.url()
        );
        fs::write(state.path().join("cloakroom.toml"), toml).unwrap();
        let public = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { upstream, program: None, public, state, backups, redis };
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

    async fn start_redis(&self) {
        self.redis.as_ref().unwrap().restart();
        let ready =
            format!("http://{}/ready?store", self.program.as_ref().unwrap().serving().await.admin);
        let deadline = Instant::now() + PATIENCE;
        while curl([&ready]).await.status != 200 {
            assert!(Instant::now() < deadline, "Redis is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the commands of a block, with the directories and the services of the test.
    async fn follow(&mut self, block: &str) {
        for line in block.lines() {
            match line {
                "sudo systemctl stop cloakroom" => self.stop_program().await,
                "sudo systemctl start cloakroom" => self.start_program().await,
                "sudo systemctl stop redis-server" => self.redis.as_ref().unwrap().kill(),
                "sudo systemctl start redis-server" => self.start_redis().await,
                line => run(&self.with_places(line)),
            }
        }
    }

    fn with_places(&self, line: &str) -> String {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut places = vec![
            ("/var/lib/cloakroom", text(self.state.path())),
            ("/var/backups/cloakroom", text(self.backups.path())),
        ];
        if let Some(redis) = &self.redis {
            places.push(("/var/lib/redis", text(redis.socket().parent().unwrap())));
            places.push(("redis-cli ", format!("redis-cli -p {} ", redis.port())));
        }
        let places: Vec<_> = places
            .iter()
            .filter(|(place, _)| line.contains(place))
            .map(|(place, instead)| (*place, instead.as_str()))
            .collect();
        assert!(!places.is_empty(), "{line:?} is about no place of the test");
        put(line, &places)
    }
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

/// Makes a backup while visitors write, lets `damage` happen, restores, and checks whose sessions are back.
async fn check(mut world: World, heading: &str, damage: impl AsyncFnOnce(&mut World)) {
    let page = Guide::open(PAGE);
    let mut visitors = Visitors::start(6, world.public).await;
    let [backup, restore] = page.blocks(heading, "sh");
    let before = visitors.counts();
    world.follow(&backup).await;
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

    damage(&mut world).await;
    world.follow(&restore).await;

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
    let mut world = World::start(store, None).await;
    let [backup, restore] = Guide::open(PAGE).blocks("Keys and tokens", "sh");
    world.follow(&backup).await;
    let secrets = ["auto-session-key", "admin-token"].map(|name| world.state.path().join(name));
    let read = || secrets.each_ref().map(|file| fs::read(file).unwrap());
    let before = read();
    check(world, heading, async |world| {
        world.crash();
        damage(world.state.path());
        for file in &secrets {
            fs::remove_file(file).unwrap();
        }
        world.follow(&restore).await;
        assert_eq!(read(), before);
    })
    .await;
}

#[tokio::test]
async fn sqlite_backup_restores_the_sessions() {
    needs!("sqlite3");
    check_embedded("sqlite:cloakroom.db", "SQLite", |state| {
        assert!(state.join("cloakroom.db-wal").exists());
        fs::write(state.join("cloakroom.db"), vec![7; 16_384]).unwrap();
    })
    .await;
}

#[tokio::test]
async fn files_backup_restores_the_sessions() {
    needs!("tar");
    check_embedded("file:sessions", "Files", |state| {
        for entry in fs::read_dir(state.join("sessions")).unwrap() {
            fs::write(entry.unwrap().path(), "damaged").unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn redis_backup_restores_the_sessions() {
    needs!("redis-server", "redis-cli", "curl");
    let server = RedisServer::start(&[]);
    let url = server.url();
    let world = World::start(&url, Some(server)).await;
    check(world, "Redis", async |world| {
        world.redis.as_ref().unwrap().command(&["FLUSHALL"]).done();
    })
    .await;
}
