//! The program behind sentinels: two instances leave an old primary when another is announced, and
//! not when the old one learns of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::support::{Browser, Instance, RedisServer, Script, Sentinels, Upstream, needs, until};

/// Two instances, a visitor of each who goes on writing, and the servers.
struct World {
    sentinels: Arc<Sentinels>,
    instances: Vec<Instance>,
    _upstream: Upstream,
}

/// What the servers know the program as, so that its connections can be told from others.
const USER: &str = "cloakroom";
const SERVICE: &str = Sentinels::SERVICE;
const PASSWORD: &str = "of-cloakroom";

/// What docs/guides/operate/redis.md says is enough, without what is for the cache, for clusters and for lists.
const RULES: &str = "~cloakroom:* -@all +hello +auth +select +ping +role +info +time +evalsha \
    +eval +exists +del +pexpireat +hget +hset +hdel +hmget +hgetall +hexists +hstrlen +hincrby \
    +zadd +zscore +zrange +zrangebyscore +zrem +wait +client|tracking";

impl World {
    async fn new() -> Self {
        let sentinels = Arc::new(spawn_blocking(Sentinels::start).await.unwrap());
        for server in sentinels.servers() {
            server.acl_user(USER, PASSWORD, RULES);
        }
        // Failovers go there and back.
        sentinels.servers()[2].command(&["CONFIG", "SET", "replica-priority", "0"]).done();
        let upstream = Upstream::start();
        let mut instances = Vec::new();
        // One of them caches: its own connection is to leave, too.
        for cache in ["", "cache = { max_bytes = \"4MiB\" }\n"] {
            let addresses = sentinels.addresses().join(",");
            let url = format!("redis+sentinel://{USER}:{PASSWORD}@{addresses}/{SERVICE}");
            let store = format!("url = \"{url}\"\n{cache}");
            instances.push(Instance::start(&upstream, &store).await);
        }
        let world = Self { sentinels, instances, _upstream: upstream };
        world.wait_for_subscriptions().await;
        world
    }

    /// Does what takes a while, so that upstream and visitors go on.
    async fn meanwhile<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sentinels) -> T + Send + 'static,
    ) -> T {
        let sentinels = Arc::clone(&self.sentinels);
        spawn_blocking(move || work(&sentinels)).await.unwrap()
    }

    /// Each sentinel has one subscription of each instance.
    async fn wait_for_subscriptions(&self) {
        let running = || self.sentinels.sentinels().iter().filter(|sentinel| sentinel.runs());
        until("every sentinel is subscribed to by both instances", || {
            running().all(|sentinel| subscriptions(sentinel) == self.instances.len())
        })
        .await;
    }

    /// Has the sentinels tell an old primary late that it is one: until then it takes writes.
    fn demote_after(&self, fourth: &str) {
        for sentinel in self.sentinels.sentinels().iter().filter(|sentinel| sentinel.runs()) {
            sentinel.command(&["SENTINEL", "DEBUG", "publish-period", fourth]).done();
        }
    }

    /// A failover by command. Answers the old primary, which still believes that it is one and has
    /// no client of ours any more.
    async fn fail_over(&self) -> &RedisServer {
        let old = self.primary_with_replicas().await;
        self.demote_after("5000");
        self.meanwhile(|sentinels| sentinels.failover().port()).await;
        until("the old primary has no client of ours", || clients(old).is_empty()).await;
        assert_eq!(old.info("role"), "master", "it was left because it was told that it is none");
        old
    }

    /// The primary, when both replicas have what it has taken until now.
    async fn primary_with_replicas(&self) -> &RedisServer {
        let replicated = |sentinels: &Sentinels| {
            let primary = sentinels.primary();
            let mut connection = primary.connect().unwrap();
            connection.command(&["SET", "marker", "1"]).unwrap().done();
            assert_eq!(connection.command(&["WAIT", "2", "4000"]).unwrap().number(), 2);
            primary.port()
        };
        self.sentinels.server(self.meanwhile(replicated).await)
    }

    async fn whole(&self) {
        self.demote_after("200");
        self.meanwhile(Sentinels::wait_until_whole).await;
    }

    fn writers(&self) -> Vec<Writer> {
        self.instances.iter().map(Writer::start).collect()
    }
}

/// A visitor who counts in a session, page after page.
struct Writer {
    ends: Arc<AtomicBool>,
    /// When a page began, and which count it was answered.
    counted: Arc<Mutex<Vec<(Instant, i64)>>>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(instance: &Instance) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let counted: Arc<Mutex<Vec<_>>> = Arc::default();
        let browser = Browser::to(instance.serving.public);
        let task = tokio::spawn({
            let (ends, counted) = (Arc::clone(&ends), Arc::clone(&counted));
            async move {
                let count = Script::new().call("POST", "/values/n/increment", "");
                while !ends.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let page = browser.navigate("/", &count).await;
                    if page.status == 200
                        && let Some(called) = page.calls().last()
                        && called.status == 200
                    {
                        counted.lock().unwrap().push((began, called.json().as_i64().unwrap()));
                    }
                }
            }
        });
        Self { ends, counted, task }
    }

    /// Waits until so many pages have been answered that began from now on; answers when that was.
    async fn goes_on(&self) -> Instant {
        let from = Instant::now();
        until("the visitor goes on", || {
            let counted = self.counted.lock().unwrap();
            counted.iter().filter(|(began, _)| *began > from).count() >= 5
        })
        .await;
        from
    }

    /// Ends it, and checks that since each of these moments, until the next, no count was lost.
    async fn kept_since(self, moments: &[(Instant, Instant)]) {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let counted = self.counted.lock().unwrap();
        for (from, to) in moments {
            let between = counted.iter().filter(|(began, _)| began > from && began < to);
            let counts: Vec<i64> = between.map(|(_, count)| *count).collect();
            assert!(counts.len() >= 5, "{counts:?}");
            assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "{counts:?}");
        }
    }
}

/// The connections of a sentinel that hear what it publishes.
fn subscriptions(sentinel: &RedisServer) -> usize {
    let clients = sentinel.command(&["CLIENT", "LIST"]).text();
    clients.lines().filter(|line| !line.contains(" sub=0 ")).count()
}

/// The connections of the program to a server.
fn clients(server: &RedisServer) -> Vec<String> {
    let clients = server.command(&["CLIENT", "LIST"]).text();
    let ours = |line: &&str| line.split(' ').any(|word| word == format!("user={USER}"));
    clients.lines().filter(ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn an_old_primary_is_left_before_it_is_demoted() {
    needs!("redis-server");
    let world = World::new().await;
    let writers = world.writers();
    let mut moments = Vec::new();
    for round in 0..4 {
        match round {
            1 => {
                for instance in &world.instances {
                    instance.program.signal("-HUP");
                    instance.program.wait_for_log("configuration reloaded").await;
                }
            }
            2 => {
                for server in world.sentinels.servers() {
                    server.command(&["CLIENT", "KILL", "USER", USER]);
                }
            }
            3 => {
                world.sentinels.sentinels().iter().for_each(RedisServer::kill);
                for instance in &world.instances {
                    instance.program.wait_for_log("cannot subscribe to any sentinel").await;
                }
                for writer in &writers {
                    writer.goes_on().await;
                }
                let restart =
                    |all: &Sentinels| all.sentinels().iter().for_each(RedisServer::restart);
                world.meanwhile(restart).await;
                for instance in &world.instances {
                    instance.program.wait_for_log("subscribed to a sentinel again").await;
                }
                world.meanwhile(Sentinels::wait_until_whole).await;
            }
            _ => {}
        }
        for writer in &writers {
            writer.goes_on().await;
        }
        world.wait_for_subscriptions().await;
        let old = world.fail_over().await;
        let from = Instant::now();
        for writer in &writers {
            writer.goes_on().await;
        }
        assert_eq!(clients(old), [""; 0], "nobody came back");
        world.whole().await;
        for writer in &writers {
            writer.goes_on().await;
        }
        moments.push((from, Instant::now()));
    }
    for writer in writers {
        writer.kept_since(&moments).await;
    }
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_back_as_replica() {
    needs!("redis-server");
    let world = World::new().await;
    let writers = world.writers();
    let mut moments = Vec::new();
    for _ in 0..2 {
        for writer in &writers {
            writer.goes_on().await;
        }
        let old = world.primary_with_replicas().await;
        old.kill();
        let port = old.port();
        world.meanwhile(move |all| all.wait_for_primary_other_than(port).port()).await;
        let from = Instant::now();
        for writer in &writers {
            writer.goes_on().await;
        }
        world.meanwhile(move |all| all.server(port).restart()).await;
        // It knows no users any more.
        old.acl_user(USER, PASSWORD, RULES);
        world.whole().await;
        for writer in &writers {
            writer.goes_on().await;
        }
        assert_eq!(clients(old), [""; 0]);
        moments.push((from, Instant::now()));
        world.wait_for_subscriptions().await;
    }
    for writer in writers {
        writer.kept_since(&moments).await;
    }
}

#[tokio::test]
async fn a_sentinel_that_was_frozen_leads_nobody_back() {
    needs!("redis-server");
    let world = World::new().await;
    let writers = world.writers();
    for writer in &writers {
        writer.goes_on().await;
    }
    // The first one that the instances are configured with.
    let frozen = &world.sentinels.sentinels()[0];
    world.demote_after("5000");
    frozen.stop();
    let old = world.fail_over().await;
    let from = Instant::now();
    frozen.cont();
    world.wait_for_subscriptions().await;
    for writer in &writers {
        writer.goes_on().await;
    }
    assert_eq!(clients(old), [""; 0], "nobody went back");
    let moments = [(from, Instant::now())];
    for writer in writers {
        writer.kept_since(&moments).await;
    }
}
