//! The audit trail and the counters of sessions, against what was done.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Browser, Cloakroom, Program, RedisServer, Script, Upstream, needs, until};

const MINUTE: Duration = Duration::from_mins(1);

fn log_in(name: &str) -> Script {
    Script::new().patch(&json!({"principal": name}))
}

fn write() -> Script {
    Script::new().call("PUT", "/values/secret", "\"a value\"")
}

/// Returns the counters of sessions that are not zero, e.g. `ended logout`.
async fn counters(cloakroom: &Cloakroom) -> BTreeMap<String, u64> {
    let (_, text) = cloakroom.admin_get("/metrics").await;
    let line = |line: &str| {
        let (series, count) = line.strip_prefix("cloakroom_sessions_")?.split_once(' ')?;
        let name = series.replace("_total", "").replace(['{', '"', '}'], " ");
        let name = name.replace("reason=", "").replace("within=", "");
        let words: Vec<&str> = name.split_whitespace().collect();
        Some((words.join(" "), count.parse().ok()?)).filter(|(_, count)| *count > 0)
    };
    text.lines().filter_map(line).collect()
}

/// Returns the lines of the trail's file once `event` was written `count` times.
async fn lines(cloakroom: &Cloakroom, event: &str, count: usize) -> Vec<Value> {
    let path = cloakroom.directory().join("audit.jsonl");
    let mut lines: Vec<Value> = Vec::new();
    until(event, || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().filter(|line| line["event"] == event).count() == count
    })
    .await;
    lines
}

/// An hour of log-ins, log-outs, expiries and revocations, in which every way to end a session is taken.
#[tokio::test]
async fn counters_are_exact() {
    needs!("redis-server");
    let redis = RedisServer::shared().url();
    for store in ["memory:", "sqlite:sessions.db", "file:sessions", &redis] {
        let upstream = Upstream::start();
        let toml = format!(
            "[session]\nidle_timeout = \"20m\"\nabsolute_timeout = \"45m\"\nunproven_timeout = \"2m\"\n\
             max_per_principal = 2\nrotate_every = \"12h\"\n\
             [audit]\npath = \"audit.jsonl\"\n[store]\nurl = \"{store}\"\nkey_prefix = \"audit:\"\n"
        );
        let cloakroom = Cloakroom::with(&upstream, &toml).await;
        let browser = || Browser::new(&cloakroom);
        let read = Script::new();

        // Created 1: logs in, and out.
        let one = browser();
        one.navigate("/", &write()).await;
        one.navigate("/", &log_in("ada")).await;
        one.navigate("/", &Script::new().call("DELETE", "", "")).await;
        // 2 to 4: the third log-in ends the first session; then the fourth logs out everywhere.
        let [two, three, four] = [browser(), browser(), browser()];
        for browser in [&two, &three, &four] {
            browser.navigate("/", &log_in("bob")).await;
            cloakroom.advance(Duration::from_secs(1));
        }
        four.navigate("/", &Script::new().call("DELETE", "?everywhere=true", "")).await;
        // 5: ended by the back office.
        let five = browser();
        let id = five.navigate("/", &write()).await.json()["id"].as_str().unwrap().to_owned();
        assert_eq!(cloakroom.service("DELETE", &format!("/{id}"), "").await.status, 204);
        // 6: no browser comes back with it. 7: idle after its use.
        browser().navigate("/", &write()).await;
        let seven = browser();
        seven.navigate("/", &write()).await;
        seven.navigate("/", &read).await;
        // 8: used until its absolute timeout. 9: until the date that the site has set.
        let [eight, nine] = [browser(), browser()];
        eight.navigate("/", &write()).await;
        let date = (cloakroom.now() + 30 * MINUTE).to_string();
        let script = Script::new().patch(&json!({"set": {"a": 1}, "expiry": {"at": date}}));
        assert_eq!(nine.navigate("/", &script).await.last().status, 200, "{store}");
        let active = counters(&cloakroom).await;
        assert_eq!([&active["active 5m"], &active["active 1h"]], [&9, &9], "{store}");
        for _ in 0..10 {
            eight.navigate("/", &read).await;
            nine.navigate("/", &read).await;
            cloakroom.advance(5 * MINUTE);
            assert_eq!(cloakroom.service("POST", "/clear-expired", "").await.status, 200);
        }

        let expected = [
            ("active 1h", 9),
            ("active 24h", 9),
            ("created", 9),
            ("ended absolute_timeout", 1),
            ("ended destroyed_by_service", 1),
            ("ended destroyed_elsewhere", 2),
            ("ended expired_by_date", 1),
            ("ended idle_timeout", 1),
            ("ended logout", 2),
            ("ended unproven_timeout", 1),
        ];
        let mut expected: BTreeMap<String, u64> =
            expected.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        if store == redis {
            // It removes expired sessions by itself.
            expected.retain(|name, _| !name.contains("timeout") && !name.contains("date"));
        }
        assert_eq!(counters(&cloakroom).await, expected, "{store}");

        let lines = lines(&cloakroom, "destroyed", 5).await;
        let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
        assert_eq!([count("created"), count("logged_in"), count("logged_out")], [9, 4, 0]);
    }
}

#[tokio::test]
async fn replayed_token_ends_the_session() {
    let upstream = Upstream::start();
    let toml = "[session]\non_replay = \"revoke\"\n[audit]\npath = \"audit.jsonl\"\n";
    let cloakroom = Cloakroom::with(&upstream, toml).await;
    let browser = Browser::new(&cloakroom);
    browser.navigate("/", &write()).await;
    let stolen = browser.copy();
    cloakroom.advance(60 * MINUTE);
    // The rotation that is due, and its confirmation by the browser.
    for _ in 0..2 {
        browser.navigate("/", &Script::new()).await;
    }
    cloakroom.advance(4 * MINUTE);
    stolen.navigate("/", &Script::new()).await;
    let counters = counters(&cloakroom).await;
    assert_eq!(counters.get("ended replayed"), Some(&1), "{counters:?}");
    let lines = lines(&cloakroom, "destroyed", 1).await;
    let events: Vec<_> = lines.iter().map(|line| [&line["event"], &line["by"]]).collect();
    assert_eq!(events, [["created", "request"], ["replayed", "request"], ["destroyed", "replay"]]);
}

/// The trail says who did what, from where; no line has a value or a token.
#[tokio::test]
async fn lines_tell_what_was_done_by_what() {
    let upstream = Upstream::start();
    let toml = "[session]\nrecord_client = true\n[audit]\npath = \"audit.jsonl\"\n";
    let cloakroom = Cloakroom::with(&upstream, toml).await;
    let [one, other] = [Browser::new(&cloakroom), Browser::new(&cloakroom)];
    let page = one.navigate("/", &write()).await;
    let id = page.json()["id"].as_str().unwrap().to_owned();
    let mut tokens = vec![one.cookie().unwrap()];
    for script in [log_in("ada"), Script::new().call("POST", "/rotate", ""), log_in("ada")] {
        one.navigate("/", &script).await;
        tokens.push(one.cookie().unwrap());
    }
    one.navigate("/", &Script::new().patch(&json!({"principal": null}))).await;
    other.navigate("/", &log_in("bob")).await;
    let all = "/_sessions?principal=bob";
    let call = |token: &str| {
        let address = cloakroom.api();
        let request = format!(
            "DELETE {all} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        async move { crate::support::raw::exchange(address, &request).await }
    };
    assert!(call("wrong-token-of-the-test").await.starts_with("HTTP/1.1 401"));
    cloakroom.service("DELETE", "?principal=bob", "").await;

    let lines = lines(&cloakroom, "destroyed", 1).await;
    let seen: Vec<(&str, &str, Option<&str>)> = lines
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str();
            (text("event").unwrap(), text("by").unwrap(), text("principal"))
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("created", "request", None),
            ("logged_in", "request", Some("ada")),
            ("rotated", "request", Some("ada")),
            ("logged_in", "request", Some("ada")),
            ("logged_out", "request", Some("ada")),
            ("created", "request", Some("bob")),
            ("logged_in", "request", Some("bob")),
            ("wrong_token", "service", None),
            ("destroyed", "service", Some("bob")),
        ]
    );
    for line in &lines[..7] {
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert_eq!(line["trace"].as_str().map(str::len), Some(32), "{line}");
        assert!(line["route"].is_string() && line["instance"].is_string(), "{line}");
    }
    assert_eq!(lines[0]["session"], id);
    let text = format!("{lines:?}");
    assert!(!text.contains("a value") && !text.contains("wrong-token-of-the-test"), "{text}");
    assert!(tokens.iter().all(|token| !text.contains(token)), "{text}");
}

/// A file that was renamed, as by logrotate, is created again, even if the configuration is invalid by then.
#[tokio::test]
async fn sighup_opens_the_file_again() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let [file, audit] = ["cloakroom.toml", "audit.jsonl"].map(|name| directory.path().join(name));
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n\
         [audit]\npath = \"audit.jsonl\"\n[[route]]\nupstream = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, &text).unwrap();
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let create = async || {
        Browser::to(public).navigate("/", &write()).await;
        until("a line", || std::fs::read_to_string(&audit).is_ok_and(|text| !text.is_empty()))
            .await;
        std::fs::read_to_string(&audit).unwrap()
    };
    assert_eq!(create().await.lines().count(), 1);
    for (text, logged) in [
        (text.as_str(), "configuration reloaded"),
        ("not TOML", "reload failed, keeping the running configuration"),
    ] {
        std::fs::write(&file, text).unwrap();
        std::fs::rename(&audit, audit.with_extension("1")).unwrap();
        program.signal("-HUP");
        program.wait_for_log(logged).await;
        assert_eq!(create().await.lines().count(), 1, "{logged}");
    }
}
