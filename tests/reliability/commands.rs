//! Redis commands for each kind of request, and keys that are left of ended sessions.

use std::time::Duration;

use cloakroom::time::Clock;
use serde_json::json;

use crate::report::{Measurement, Report};
use crate::stores::directory;
use crate::support::{Browser, Cloakroom, Connection, RedisServer, Reply, Script, Upstream, until};

pub async fn run(report: &mut Report) {
    for (cache, name) in
        [("", "without the cache"), ("cache = { max_bytes = \"4MiB\" }", "with the cache")]
    {
        report
            .row(
                format!("requests of each kind, {name}; commands as listed by MONITOR, without those inside scripts"),
                "once each",
                "to read a session: 1 command, or 0 from the cache; a patch: 1",
                per_request(cache),
            )
            .await;
    }
    report
        .row(
            "sessions of 50 principals and anonymous ones, touched, rotated, some destroyed; then all expire",
            "300 sessions",
            "DBSIZE is 0, indexes included",
            leaves_no_keys(),
        )
        .await;
    report
        .row(
            "50 concurrent increments of one value; two instances serve half of the pages each, and each page calls the API of the other instance",
            "20 rounds",
            "no increment is lost",
            across_instances(),
        )
        .await;
}

/// The commands that clients send to a server.
struct Monitor {
    connection: Connection,
    server: RedisServer,
}

impl Monitor {
    fn of(server: RedisServer) -> Self {
        let mut connection = server.connect().unwrap();
        connection.command(&["MONITOR"]).unwrap();
        Self { connection, server }
    }

    /// Returns the names of the commands since the last call, without those that only maintain
    /// connections.
    fn sent(&mut self) -> Vec<String> {
        self.server.command(&["ECHO", "end marker"]);
        let mut names = Vec::new();
        loop {
            let Reply::Text(line) = self.connection.read().unwrap() else { panic!("no line") };
            if line.contains("\"end marker\"") {
                return names;
            }
            let (client, command) = line.split_once("] ").unwrap();
            let name = command.split('"').nth(1).unwrap().to_uppercase();
            if !client.ends_with("lua") && !["PING", "ROLE", "HELLO"].contains(&&*name) {
                names.push(name);
            }
        }
    }
}

async fn instance(upstream: &Upstream, url: &str, more: &str, clock: Clock) -> Cloakroom {
    let toml = format!(
        "[api]\naddress = \"127.0.0.1:0\"\n{more}\n[store]\nurl = \"{url}\"\ntimeout = \"20s\"\n"
    );
    Cloakroom::at(upstream, &toml, clock, directory()).await
}

async fn per_request(cache: &str) -> Measurement {
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let clock = Clock::manual(Clock::System.now());
    let toml = format!("[store]\nurl = \"{}\"\ntimeout = \"20s\"\n{cache}\n", server.url());
    let proxy = Cloakroom::at(&upstream, &toml, clock, directory()).await;
    let mut monitor = Monitor::of(server);
    let browser = Browser::new(&proxy);
    let set = Script::new().call("PUT", "/values/a", "1");
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    // Warm up: some commands are sent once for each connection, script or worker.
    for _ in 0..20 {
        let warm = Browser::new(&proxy);
        warm.navigate("/", &set).await;
        warm.navigate("/", &log_in).await;
        proxy.advance(Duration::from_secs(61));
        warm.navigate("/", &Script::new().get("")).await;
        warm.navigate("/", &Script::new().call("DELETE", "", "")).await;
    }
    browser.navigate("/", &set).await;
    browser.navigate("/", &Script::new()).await;
    let mut figures = Vec::new();
    let mut passed = true;
    let mut count = async |name: &str, script: Script, of: &Browser, at_most: usize| {
        monitor.sent();
        of.navigate("/", &script).await;
        let sent = monitor.sent();
        passed &= sent.len() <= at_most;
        figures.push(format!("{name} {} ({})", sent.len(), sent.join(" ")));
    };
    let cached = usize::from(cache.is_empty());
    count("no cookie", Script::new(), &Browser::new(&proxy), 0).await;
    count("page", Script::new(), &browser, cached).await;
    count("page that reads by the API", Script::new().get(""), &browser, 2 * cached).await;
    count("page that patches", set.clone(), &browser, cached + 1).await;
    count("first visit that writes", set, &Browser::new(&proxy), 1).await;
    // The patch has removed the session from the cache.
    count("page after it", Script::new(), &browser, 1).await;
    proxy.advance(Duration::from_secs(61));
    count("page with a touch due", Script::new(), &browser, cached + 1).await;
    browser.navigate("/", &Script::new()).await;
    // The index, the patch, and the generation again when the response head is sent.
    count("log-in", log_in, &browser, cached + 3).await;
    browser.navigate("/", &Script::new()).await;
    proxy.advance(Duration::from_secs(3601));
    count("page with rotation and touch due", Script::new(), &browser, cached + 2).await;
    count("page that promotes", Script::new(), &browser, 2).await;
    browser.navigate("/", &Script::new()).await;
    count("log-out", Script::new().call("DELETE", "", ""), &browser, cached + 2).await;
    Measurement { text: figures.join("; "), passed }
}

async fn leaves_no_keys() -> Measurement {
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let session =
        "[session]\nidle_timeout = \"3s\"\nrotate_every = \"1s\"\nrotation_grace = \"1s\"";
    let proxy = instance(&upstream, &server.url(), session, Clock::System).await;
    let mut most = 0;
    for number in 0..300 {
        let browser = Browser::new(&proxy);
        let patch = if number % 3 == 0 {
            json!({"values": {"a": 1}})
        } else {
            json!({"principal": format!("user {}", number % 50)})
        };
        browser.navigate("/", &Script::new().patch(&patch)).await;
        browser.navigate("/", &Script::new().get("")).await;
        if number % 10 == 0 {
            browser.navigate("/", &Script::new().call("DELETE", "", "")).await;
        }
        most = most.max(server.command(&["DBSIZE"]).number());
    }
    let size = || server.command(&["DBSIZE"]).number();
    // Redis removes expired keys with a delay.
    until("all keys have expired", || size() == 0).await;
    let left = size();
    Measurement {
        text: format!("at most {most} keys, {left} at the end"),
        passed: left == 0 && most > 50,
    }
}

async fn across_instances() -> Measurement {
    const PARALLEL: i64 = 50;
    const ROUNDS: i64 = 20;
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let a = instance(&upstream, &server.url(), "", Clock::System).await;
    let b = instance(&upstream, &server.url(), "", Clock::System).await;
    let browser = Browser::new(&a);
    browser.navigate("/", &Script::new().patch(&json!({"values": {"n": 0}}))).await;
    let mut acknowledged = 0;
    for _ in 0..ROUNDS {
        let mut pages = tokio::task::JoinSet::new();
        for number in 0..PARALLEL {
            let (at, other) = if number % 2 == 0 { (&a, &b) } else { (&b, &a) };
            let browser = browser.at(at.public());
            let api = format!("http://{}/_session", other.api());
            pages.spawn(async move {
                let increment = Script::new().call("POST", "/values/n/increment", "");
                let headers = [(crate::support::API, &*api)];
                browser.send("GET", "/", &headers, &increment).await
            });
        }
        for page in pages.join_all().await {
            acknowledged += i64::from(page.last().status == 200);
        }
    }
    let found = browser.fetch("/", &Script::new().get("/values/n")).await.json().as_i64().unwrap();
    Measurement {
        text: format!("{acknowledged} acknowledged, {found} found"),
        passed: acknowledged == PARALLEL * ROUNDS && found == acknowledged,
    }
}
