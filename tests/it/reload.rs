//! Reloads of the configuration while requests are in flight.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::raw::exchange;
use crate::support::{
    Authority, Browser, Cloakroom, Flaw, Program, Script, Upstream, curl, needs, until,
};

fn count() -> Script {
    Script::new().call("POST", "/values/n/increment", "")
}

#[tokio::test]
async fn requests_in_flight_keep_the_old_configuration() {
    let (old, new) = (Upstream::start(), Upstream::start());
    let mut proxy = Cloakroom::start(&old).await;
    let browser = Browser::new(&proxy);
    browser.navigate("/", &count()).await;
    let slow = tokio::spawn({
        let browser = browser.clone();
        async move { browser.navigate("/", &count().wait_before("reload")).await }
    });
    old.arrived("reload", 1).await;
    let more = "[[route]]\nupstream = \"UPSTREAM\"\n[cookie]\nname = \"__Host-other\"\n";
    assert_eq!(proxy.reload(&new, "").unwrap(), [""; 0]);
    // The store is the same, and so are the keys.
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
    assert_eq!((old.seen().len(), new.seen().len()), (1, 1));
    // The request in flight still reaches the API and its site.
    old.open("reload");
    assert_eq!(slow.await.unwrap().json(), json!(3));
    assert_eq!(proxy.reload(&new, more).unwrap(), [""; 0]);
    let page = browser.navigate("/", &Script::new().get("")).await;
    assert_eq!(page.json()["id"], json!(null));
    assert_eq!(page.saw("cookie").unwrap().split('=').next(), Some("__Host-id"));
}

#[tokio::test]
async fn invalid_configuration_is_ignored() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    let mut proxy = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&proxy);
    browser.navigate("/", &count()).await;
    for wrong in [
        "[session]\nidle_timeout = \"soon\"\n",
        "no toml",
        "[[route]]\nupstream = \"https://a\"\nupstream_tls = { ca = \"/nowhere\" }\n",
        "[cookie]\npath = \"x\"\n",
    ] {
        assert!(proxy.reload(&other, wrong).is_err(), "{wrong}");
    }
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn keys_that_need_a_restart_are_reported() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    let mut proxy = Cloakroom::start(&upstream).await;
    let browser = Browser::new(&proxy);
    browser.navigate("/", &count()).await;
    let restart = "[store]\nurl = \"sqlite:other.db\"\n[limits]\nconnections = 7\n\
                   [api]\naddress = \"127.0.0.1:0\"\nprefix = \"/s\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n\
                   [telemetry]\notlp_url = \"http://127.0.0.1:4318\"\n\
                   [[listen]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let named = proxy.reload(&other, restart).unwrap();
    assert_eq!(
        named,
        ["listen", "limits", "api.url", "api.prefix", "store", "log.format", "telemetry"]
    );
    // The rest is in effect.
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
    assert_eq!(other.seen().len(), 1);
}

#[tokio::test]
async fn next_handshake_gets_the_new_certificate() {
    needs!("curl");
    let (upstream, authorities) = (Upstream::start(), [Authority::new(), Authority::new()]);
    let files = tempfile::tempdir().unwrap();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| files.path().join(name));
    let put = |authority: &Authority| {
        let identity = authority.server(Flaw::None);
        std::fs::copy(identity.certificate, &certificate).unwrap();
        std::fs::copy(identity.key, &key).unwrap();
    };
    put(&authorities[0]);
    let toml = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        certificate.display(),
        key.display()
    );
    let mut proxy = Cloakroom::with(&upstream, &toml).await;
    let url = format!("https://localhost:{}/", proxy.public().port());
    let trusting = async |authority: &Authority| {
        curl(["--cacert", authority.certificate().to_str().unwrap(), &url]).await.exit
    };
    assert_eq!((trusting(&authorities[0]).await, trusting(&authorities[1]).await), (0, 60));
    put(&authorities[1]);
    assert_eq!(trusting(&authorities[0]).await, 0, "before the reload");
    assert_eq!(proxy.reload(&upstream, &toml).unwrap(), [""; 0]);
    assert_eq!((trusting(&authorities[0]).await, trusting(&authorities[1]).await), (60, 0));
    std::fs::write(&key, "no key").unwrap();
    assert!(proxy.reload(&upstream, &toml).is_err());
    assert_eq!(trusting(&authorities[1]).await, 0);
}

#[tokio::test]
async fn generated_keys_of_a_memory_store_stay() {
    let upstream = Upstream::start();
    let toml = "[session]\nkeys = []\n";
    let mut proxy = Cloakroom::with(&upstream, toml).await;
    let browser = Browser::new(&proxy);
    browser.navigate("/", &count()).await;
    proxy.reload(&upstream, toml).unwrap();
    assert_eq!(browser.navigate("/", &count()).await.json(), json!(2));
}

#[tokio::test]
async fn sighup_reloads_and_the_outcome_is_logged() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let write = |more: &str| {
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n{more}\
             [[route]]\nupstream = \"http://127.0.0.1:9\"\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    write("");
    let mut program = Program::start(&file);
    program.wait_for_log("serving").await;
    write("timeout = \"1s\"\n");
    program.signal("-HUP");
    program.wait_for_log("configuration reloaded").await;
    program.wait_for_log("requires a restart; keeping the running value key=\"store\"").await;
    write("tiemout = \"1s\"\n");
    program.signal("-HUP");
    program.wait_for_log("reload failed, keeping the running configuration: ").await;
    program.wait_for_log("unknown key; did you mean `timeout`?").await;
    let admin = program.serving().await.admin;
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let metrics = exchange(admin, ask).await;
    for line in [
        "cloakroom_config_reloads_total{outcome=\"success\"} 1",
        "cloakroom_config_reloads_total{outcome=\"failure\"} 1",
        "cloakroom_config_last_reload_successful 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    program.signal("-TERM");
    assert!(program.ended().await.success());
}

#[tokio::test]
async fn sighup_changes_the_level_and_the_lines_of_requests() {
    let upstream = Upstream::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let write = |log: &str| {
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n[log]\n{log}\
             [[route]]\nupstream = \"{}\"\n",
            upstream.url()
        );
        std::fs::write(&file, text).unwrap();
    };
    write("");
    let program = Program::start(&file);
    let public = program.serving().await.public;
    let get = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        exchange(public, &request).await;
    };
    get("/first").await;
    program.wait_for_log("path=\"/first\"").await;
    // The request is refused, which is logged at `debug`.
    get("/_session").await;
    program.wait_for_log("path=\"/_session\"").await;
    assert!(!program.log().contains("request refused"), "{}", program.log());

    write("level = \"debug\"\naccess = false\nslow = \"1ms\"\n");
    program.signal("-HUP");
    program.wait_for_log("configuration reloaded").await;
    assert!(!program.log().contains("requires a restart"), "{}", program.log());
    get("/second/_session").await;
    get("/_session").await;
    program.wait_for_log("request refused").await;
    assert!(!program.log().contains("access: method=GET path=\"/second"), "{}", program.log());

    let slow = Script::new().wait("gate").to_header();
    let request = format!("GET /third HTTP/1.1\r\nHost: a\r\nX-Script: {slow}\r\n\r\n");
    let mut client = TcpStream::connect(public).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived("gate", 1).await;
    drop(client);
    program.wait_for_log("slow request").await;

    write("");
    program.signal("-HUP");
    let reloads = || program.log().matches("configuration reloaded").count();
    until("the second reload", || reloads() == 2).await;
    get("/fourth").await;
    program.wait_for_log("access: method=GET path=\"/fourth\"").await;
}
