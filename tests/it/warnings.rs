//! Faults that would show only later, or to visitors alone: the program warns of them and counts them as what they are.

use std::process::Command;

use serde_json::json;

use crate::support::{
    Browser, Cloakroom, FakeClock, Program, RedisServer, Script, Upstream, needs,
};

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn expired_certificate_and_wrong_clock_are_reported_at_the_start() {
    needs!("redis-server");
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let kind =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let files = ["-keyout", &key, "-out", &certificate, "-subj", "/CN=shop.test", "-days", "1"];
    output("openssl", &[&kind[..], &files].concat());
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n\
         [api]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [session]\nkeys = [\"{}\"]\n[store]\nurl = \"{}\"\nkey_prefix = \"warnings:\"\n\
         [[route]]\nupstream = \"http://127.0.0.1:1\"\n",
        crate::support::KEY,
        RedisServer::shared().url()
    );
    std::fs::write(&file, text).unwrap();
    let clock = FakeClock::at(&output("date", &["-u", "-d", "+3 days", "+%F %T"]));
    let program = Program::start_with_clock(&clock, &file);
    program.wait_for_log("certificate has expired; renew it and reload").await;
    program.wait_for_log("the clock of this machine differs from that of Redis").await;
    program.serving().await;
    let log = program.log();
    let line = log.lines().find(|line| line.contains("differs from that of Redis")).unwrap();
    let ahead = line.split("seconds_ahead=").nth(1).unwrap().split_whitespace().next().unwrap();
    assert!((259_000..259_400).contains(&ahead.parse::<i64>().unwrap()), "{line}");
}

/// The site is blamed only for its own failures.
#[tokio::test]
async fn patch_that_the_store_refuses_is_an_error_of_the_store() {
    needs!("redis-server");
    let upstream = Upstream::start();
    let server = RedisServer::start(&[]);
    let toml = format!(
        "[store]\nurl = \"{}\"\n[[route]]\nupstream = \"{}\"\nheader_exchange = true\n",
        server.url(),
        upstream.url()
    );
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).done();
    let patch = json!({"set": {"a": 1}}).to_string();
    let page = Browser::new(&cloakroom)
        .navigate("/", &Script::new().header("X-Session-Patch", &patch))
        .await;
    assert_eq!(page.status, 502);
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    for line in ["{outcome=\"store_error\"} 1", "{outcome=\"upstream_error\"} 0"] {
        let line = format!("cloakroom_requests_total{line}");
        assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn failed_connections_are_counted() {
    let upstream = Upstream::start();
    let site = "http://127.0.0.1:1";
    let toml = format!("[[route]]\nupstream = \"{site}\"\n");
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    let browser = Browser::new(&cloakroom);
    for _ in 0..2 {
        assert_eq!(browser.navigate("/", &Script::new()).await.status, 502);
    }
    let (_, metrics) = cloakroom.admin_get("/metrics").await;
    let line = format!("cloakroom_upstream_connect_failures_total{{upstream=\"{site}\"}} 2");
    assert!(metrics.lines().any(|known| known == line), "{metrics}");
}
