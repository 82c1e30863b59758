//! What Redis is sent for each kind of request, and what is left of sessions that are over.

use std::time::Duration;

use cloakroom::time::Clock;
use serde_json::json;

use crate::report::{Counted, Report};
use crate::stores::directory;
use crate::support::{Browser, Cloakroom, Connection, RedisServer, Reply, Script, Upstream, until};

pub async fn run(report: &mut Report) {
    for (cache, name) in
        [("", "without the cache"), ("cache = { max_bytes = \"4MiB\" }", "with it")]
    {
        report
            .row(
                format!("pages of each kind, {name}; commands as MONITOR shows them, those of scripts apart"),
                "once each",
                "a session that is only read: 1, or 0 from the cache; a patch: 1",
                per_request(cache),
            )
            .await;
    }
    report
        .row(
            "sessions of 50 principals and of nobody, touched, rotated, some destroyed; then all are over",
            "300 sessions",
            "DBSIZE is 0, indexes included",
            nothing_is_left(),
        )
        .await;
    report
        .row(
            "50 increments of one value at once, half of the pages by one instance and half by another, each with API calls at the other",
            "20 rounds",
            "all are there",
            across_instances(),
        )
        .await;
}

/// Everything that clients send to a server.
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

    /// The names of the commands since the last call, without what keeps connections alive.
    fn sent(&mut self) -> Vec<String> {
        self.server.command(&["ECHO", "until here"]);
        let mut names = Vec::new();
        loop {
            let Reply::Text(line) = self.connection.read().unwrap() else { panic!("no line") };
            if line.contains("\"until here\"") {
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

async fn per_request(cache: &str) -> Counted {
    let server = RedisServer::start(&[]);
    let upstream = Upstream::start();
    let clock = Clock::manual(Clock::System.now());
    let toml = format!("[store]\nurl = \"{}\"\ntimeout = \"20s\"\n{cache}\n", server.url());
    let proxy = Cloakroom::at(&upstream, &toml, clock, directory()).await;
    let mut monitor = Monitor::of(server);
    let browser = Browser::new(&proxy);
    let set = Script::new().call("PUT", "/values/a", "1");
    let log_in = Script::new().patch(&json!({"principal": "ada"}));
    // What is sent once for each connection, script and worker.
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
    let mut told = Vec::new();
    let mut held = true;
    let mut count = async |name: &str, script: Script, of: &Browser, at_most: usize| {
        monitor.sent();
        of.navigate("/", &script).await;
        let sent = monitor.sent();
        held &= sent.len() <= at_most;
        told.push(format!("{name} {} ({})", sent.len(), sent.join(" ")));
    };
    let cached = usize::from(cache.is_empty());
    count("no cookie", Script::new(), &Browser::new(&proxy), 0).await;
    count("page", Script::new(), &browser, cached).await;
    count("page that reads by the API", Script::new().get(""), &browser, 2 * cached).await;
    count("page that patches", set.clone(), &browser, cached + 1).await;
    count("first visit that writes", set, &Browser::new(&proxy), 1).await;
    // What a patch took out of the cache is read again.
    count("page after it", Script::new(), &browser, 1).await;
    proxy.advance(Duration::from_secs(61));
    count("page with a touch due", Script::new(), &browser, cached + 1).await;
    browser.navigate("/", &Script::new()).await;
    // The index, the patch, and the generation once more as the head leaves.
    count("log-in", log_in, &browser, cached + 3).await;
    browser.navigate("/", &Script::new()).await;
    proxy.advance(Duration::from_secs(3601));
    count("page with rotation and touch due", Script::new(), &browser, cached + 2).await;
    count("page that promotes", Script::new(), &browser, 2).await;
    browser.navigate("/", &Script::new()).await;
    count("log-out", Script::new().call("DELETE", "", ""), &browser, cached + 2).await;
    Counted { text: told.join("; "), held }
}

async fn nothing_is_left() -> Counted {
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
    // Redis removes what is over some time later, of itself.
    until("all is over", || size() == 0).await;
    let left = size();
    Counted {
        text: format!("{most} keys at most, {left} in the end"),
        held: left == 0 && most > 50,
    }
}

async fn across_instances() -> Counted {
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
    Counted {
        text: format!("{acknowledged} answered 200, {found} found"),
        held: acknowledged == PARALLEL * ROUNDS && found == acknowledged,
    }
}
