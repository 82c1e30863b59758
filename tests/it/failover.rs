//! The program with sentinels: two instances leave an old primary as soon as another one is announced,
//! and not only when the old one is demoted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};

use crate::support::{Browser, Instance, RedisServer, Script, Sentinels, Upstream, needs, until};

/// Two instances on a primary, its replicas and sentinels.
struct Setup {
    sentinels: Arc<Sentinels>,
    instances: Vec<Instance>,
    _upstream: Upstream,
}

/// The user of the program, which identifies its connections.
const USER: &str = "cloakroom";
const SERVICE: &str = Sentinels::SERVICE;
const PASSWORD: &str = "of-cloakroom";

/// The access list of docs/guides/operate/redis.md, without `SCAN`, which only lists need.
const RULES: &str = "~cloakroom:* -@all +hello +auth +select +ping +role +info +time +evalsha \
    +eval +exists +del +pexpireat +hget +hset +hdel +hmget +hgetall +hexists +hstrlen +hincrby \
    +zadd +zscore +zrange +zrangebyscore +zrem +wait +client|tracking";

impl Setup {
    async fn new() -> Self {
        let sentinels = Arc::new(spawn_blocking(Sentinels::start).await.unwrap());
        for server in sentinels.servers() {
            server.acl_user(USER, PASSWORD, RULES);
        }
        // This replica is never promoted, so that failovers alternate between the other two servers.
        sentinels.servers()[2].command(&["CONFIG", "SET", "replica-priority", "0"]).done();
        let upstream = Upstream::start();
        let mut instances = Vec::new();
        // The connection of the second one's cache must leave too.
        for cache in ["", "cache = { max_bytes = \"4MiB\" }\n"] {
            let addresses = sentinels.addresses().join(",");
            let url = format!("redis+sentinel://{USER}:{PASSWORD}@{addresses}/{SERVICE}");
            let store = format!("url = \"{url}\"\n{cache}");
            instances.push(Instance::start(&upstream, &store).await);
        }
        let setup = Self { sentinels, instances, _upstream: upstream };
        setup.wait_for_subscriptions().await;
        setup
    }

    /// Runs blocking work on another thread, so that the upstream and the writers continue.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sentinels) -> T + Send + 'static,
    ) -> T {
        let sentinels = Arc::clone(&self.sentinels);
        spawn_blocking(move || work(&sentinels)).await.unwrap()
    }

    /// Waits until every sentinel has one subscription of each instance.
    async fn wait_for_subscriptions(&self) {
        let running = || self.sentinels.sentinels().iter().filter(|sentinel| sentinel.runs());
        until("both instances are subscribed to every sentinel", || {
            running().all(|sentinel| subscriptions(sentinel) == self.instances.len())
        })
        .await;
    }

    /// Delays the demotion of an old primary by four of these periods; it accepts writes until then.
    fn set_publish_period(&self, milliseconds: &str) {
        for sentinel in self.sentinels.sentinels().iter().filter(|sentinel| sentinel.runs()) {
            sentinel.command(&["SENTINEL", "DEBUG", "publish-period", milliseconds]).done();
        }
    }

    /// Runs a failover by command. Returns the old primary, which is not demoted yet and has no
    /// connection of the program.
    async fn fail_over(&self) -> &RedisServer {
        let old = self.primary_with_replicas().await;
        self.set_publish_period("5000");
        self.run_blocking(|sentinels| sentinels.failover().port()).await;
        until("the old primary has no connection of the program", || clients(old).is_empty()).await;
        assert_eq!(old.info("role"), "master", "the instances left only after its demotion");
        old
    }

    /// Returns the primary, once both replicas have all its writes.
    async fn primary_with_replicas(&self) -> &RedisServer {
        let replicated = |sentinels: &Sentinels| {
            let primary = sentinels.primary();
            let mut connection = primary.connect().unwrap();
            connection.command(&["SET", "marker", "1"]).unwrap().done();
            assert_eq!(connection.command(&["WAIT", "2", "4000"]).unwrap().number(), 2);
            primary.port()
        };
        self.sentinels.server(self.run_blocking(replicated).await)
    }

    async fn wait_until_whole(&self) {
        self.set_publish_period("200");
        self.run_blocking(Sentinels::wait_until_whole).await;
    }

    fn writers(&self) -> Vec<Writer> {
        self.instances.iter().map(Writer::start).collect()
    }
}

/// A client that increments a counter in its session, request after request.
struct Writer {
    stops: Arc<AtomicBool>,
    /// The start of each successful request, and the count in its response.
    counted: Arc<Mutex<Vec<(Instant, i64)>>>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(instance: &Instance) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let counted: Arc<Mutex<Vec<_>>> = Arc::default();
        let browser = Browser::to(instance.serving.public);
        let task = tokio::spawn({
            let (stops, counted) = (Arc::clone(&stops), Arc::clone(&counted));
            async move {
                let count = Script::new().call("POST", "/values/n/increment", "");
                while !stops.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let page = browser.navigate("/", &count).await;
                    if page.status == 200
                        && let Some(called) = page.calls().last()
                        && called.status == 200
                    {
                        counted.lock().unwrap().push((start, called.json().as_i64().unwrap()));
                    }
                }
            }
        });
        Self { stops, counted, task }
    }

    /// Waits until five requests that start after this call have succeeded. Returns the time of the call.
    async fn wait_for_progress(&self) -> Instant {
        let from = Instant::now();
        until("the writer makes progress", || {
            let counted = self.counted.lock().unwrap();
            counted.iter().filter(|(start, _)| *start > from).count() >= 5
        })
        .await;
        from
    }

    /// Stops it, and checks that no count was lost in these intervals.
    async fn stop_and_check(self, intervals: &[(Instant, Instant)]) {
        self.stops.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let counted = self.counted.lock().unwrap();
        for (from, to) in intervals {
            let between = counted.iter().filter(|(start, _)| start > from && start < to);
            let counts: Vec<i64> = between.map(|(_, count)| *count).collect();
            assert!(counts.len() >= 5, "{counts:?}");
            assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "{counts:?}");
        }
    }
}

/// Returns the number of subscribed connections to a sentinel.
fn subscriptions(sentinel: &RedisServer) -> usize {
    let clients = sentinel.command(&["CLIENT", "LIST"]).text();
    clients.lines().filter(|line| !line.contains(" sub=0 ")).count()
}

/// Returns the connections of the program to a server.
fn clients(server: &RedisServer) -> Vec<String> {
    let clients = server.command(&["CLIENT", "LIST"]).text();
    let ours = |line: &&str| line.split(' ').any(|word| word == format!("user={USER}"));
    clients.lines().filter(ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn old_primary_is_left_before_its_demotion() {
    needs!("redis-server");
    let setup = Setup::new().await;
    let writers = setup.writers();
    let mut intervals = Vec::new();
    for round in 0..4 {
        match round {
            1 => {
                for instance in &setup.instances {
                    instance.program.signal("-HUP");
                    instance.program.wait_for_log("configuration reloaded").await;
                }
            }
            2 => {
                for server in setup.sentinels.servers() {
                    server.command(&["CLIENT", "KILL", "USER", USER]);
                }
            }
            3 => {
                setup.sentinels.sentinels().iter().for_each(RedisServer::kill);
                for instance in &setup.instances {
                    instance.program.wait_for_log("cannot subscribe to any sentinel").await;
                }
                for writer in &writers {
                    writer.wait_for_progress().await;
                }
                let restart =
                    |all: &Sentinels| all.sentinels().iter().for_each(RedisServer::restart);
                setup.run_blocking(restart).await;
                for instance in &setup.instances {
                    instance.program.wait_for_log("subscribed to a sentinel again").await;
                }
                setup.run_blocking(Sentinels::wait_until_whole).await;
            }
            _ => {}
        }
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        setup.wait_for_subscriptions().await;
        let old = setup.fail_over().await;
        let from = Instant::now();
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        assert_eq!(clients(old), [""; 0], "reconnected to the old primary");
        setup.wait_until_whole().await;
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        intervals.push((from, Instant::now()));
    }
    for writer in writers {
        writer.stop_and_check(&intervals).await;
    }
}

#[tokio::test]
async fn killed_primary_is_replaced_and_rejoins() {
    needs!("redis-server");
    let setup = Setup::new().await;
    let writers = setup.writers();
    let mut intervals = Vec::new();
    for _ in 0..2 {
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        let old = setup.primary_with_replicas().await;
        old.kill();
        let port = old.port();
        setup.run_blocking(move |all| all.wait_for_primary_other_than(port).port()).await;
        let from = Instant::now();
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        setup.run_blocking(move |all| all.server(port).restart()).await;
        // The user was lost with the process.
        old.acl_user(USER, PASSWORD, RULES);
        setup.wait_until_whole().await;
        for writer in &writers {
            writer.wait_for_progress().await;
        }
        assert_eq!(clients(old), [""; 0]);
        intervals.push((from, Instant::now()));
        setup.wait_for_subscriptions().await;
    }
    for writer in writers {
        writer.stop_and_check(&intervals).await;
    }
}

#[tokio::test]
async fn frozen_sentinel_does_not_revive_old_primary() {
    needs!("redis-server");
    let setup = Setup::new().await;
    let writers = setup.writers();
    for writer in &writers {
        writer.wait_for_progress().await;
    }
    // The first one in the URL.
    let frozen = &setup.sentinels.sentinels()[0];
    setup.set_publish_period("5000");
    frozen.stop();
    let old = setup.fail_over().await;
    let from = Instant::now();
    frozen.cont();
    setup.wait_for_subscriptions().await;
    for writer in &writers {
        writer.wait_for_progress().await;
    }
    assert_eq!(clients(old), [""; 0], "reconnected to the old primary");
    let intervals = [(from, Instant::now())];
    for writer in writers {
        writer.stop_and_check(&intervals).await;
    }
}
