//! Listeners, and the token that a start creates.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use tempfile::TempDir;

use super::{Operator, TOKEN, code};
use crate::support::{Authority, Cloakroom, Flaw, Program, Upstream, curl, needs};

/// Writes a configuration for the program. Returns the directory with it, which is also the state directory.
pub(super) fn configuration(upstream: &Upstream, more: &str, admin: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "{more}\n[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n[admin]\n{admin}\n\
         [[route]]\nupstream = \"{}\"\n",
        upstream.url()
    );
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

#[tokio::test]
async fn embedded_stores_make_a_token() {
    let upstream = Upstream::start();
    for url in ["memory:", "sqlite:cloakroom.db", "file:sessions"] {
        let more = format!("[store]\nurl = \"{url}\"\n[log]\nlevel = \"trace\"");
        let (directory, file) = configuration(&upstream, &more, "address = \"127.0.0.1:0\"");
        let path = directory.path().join("admin-token");
        let mut program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        let token = std::fs::read_to_string(&path).unwrap().trim_end().to_owned();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let created = path.display().to_string();
        assert!(
            program.log().lines().any(|line| line.contains("created=") && line.contains(&created))
        );
        assert_eq!(operator.bearer(&token).get("/sessions").await.status, 200);
        let browser = operator.log_in(&token).await;
        let cookie = browser.headers.iter().find(|(name, _)| name == "cookie").unwrap().1.clone();
        assert_eq!(browser.get("/sessions").await.status, 200);
        assert_eq!(operator.bearer("wrong-token-for-the-log").get("/sessions").await.status, 401);
        program.wait_for_log("wrong token at the admin listener").await;
        program.signal("-TERM");
        program.ended().await;
        let log = program.log();
        let id = cookie.split('=').nth(1).unwrap();
        for secret in [&token, id, "wrong-token-for-the-log"] {
            assert!(!log.contains(secret), "{log}");
        }
        // The next start uses it, and creates nothing.
        let program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        assert_eq!(operator.bearer(&token).get("/sessions").await.status, 200);
        assert!(!program.log().contains("admin-token"), "{}", program.log());
    }
}

#[tokio::test]
async fn pages_are_off_without_a_token_of_their_own() {
    let upstream = Upstream::start();
    let token = format!("token = \"{TOKEN}\"\n");
    for (address, token, reason) in [
        ("0.0.0.0:0", "", "there is no [admin] token"),
        ("0.0.0.0:0", token.as_str(), "off loopback, tokens need [admin] tls"),
    ] {
        let admin = format!("address = \"{address}\"\n{token}");
        let (directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
        let program = Program::start(&file);
        let mut address = program.serving().await.admin;
        address.set_ip([127, 0, 0, 1].into());
        let operator = Operator::to(address);
        for (method, path) in [
            ("GET", "/sessions"),
            ("GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA"),
            ("GET", "/sessions/end?principal=a"),
            ("POST", "/sessions/end"),
            ("POST", "/login"),
            ("POST", "/logout"),
            ("GET", "/audit"),
        ] {
            let page = operator.bearer(TOKEN).send(method, path, "").await;
            assert_eq!((page.status.as_u16(), code(&page).as_str()), (404, "not_found"), "{path}");
        }
        for path in ["/", "/live", "/ready", "/metrics"] {
            assert_eq!(operator.get(path).await.status, 200, "{path}");
        }
        let log = program.log();
        let lines = log.lines().filter(|line| line.contains("admin pages about sessions are off"));
        let lines: Vec<_> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(reason), "{log}");
        assert!(!directory.path().join("admin-token").exists());
    }
}

/// Off loopback, a token is taken over TLS, and the cookie is for TLS alone.
#[tokio::test]
async fn tokens_are_taken_over_tls() {
    needs!("curl");
    let upstream = Upstream::start();
    let authority = Authority::new();
    let identity = authority.of(&["127.0.0.1"]);
    let admin = format!(
        "address = \"0.0.0.0:0\"\ntoken = \"{TOKEN}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        identity.certificate.display(),
        identity.key.display()
    );
    let (_directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
    let program = Program::start(&file);
    let port = program.serving().await.admin.port();
    let ca = authority.certificate();
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let json = "Accept: application/json";
    let ask = async |path: &str, more: &[&str]| {
        let url = url(path);
        let own = ["--cacert", ca.to_str().unwrap(), "-H", json, &url];
        curl(own.iter().chain(more)).await
    };
    assert_eq!(ask("/sessions", &[]).await.status, 401);
    assert_eq!(ask("/sessions", &["-H", &bearer]).await.status, 200);
    let login = ask("/login", &["-H", &bearer, "-X", "POST"]).await;
    assert_eq!(login.status, 200, "{login:?}");
    let line = login.header("set-cookie").unwrap();
    assert!(line.ends_with("; Secure"), "{line}");
    assert_eq!(ask("/ready", &[]).await.status, 200);
    let metrics = ask("/metrics", &[]).await;
    assert!(metrics.body.contains(&format!("listener=\"0.0.0.0:{port}\",certificate=")));
    // The health command knows the listener from the same file.
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("address = \"0.0.0.0:0\"", &format!("address = \"0.0.0.0:{port}\""));
    std::fs::write(&file, text).unwrap();
    let mut health = std::process::Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    health.args(["health", "--config", file.to_str().unwrap()]);
    let output = health.env("STATE_DIRECTORY", file.parent().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn client_ca_keeps_others_out() {
    needs!("curl");
    let upstream = Upstream::start();
    let authority = Authority::new();
    let (server, client) = (authority.of(&["127.0.0.1"]), authority.client(Flaw::None));
    let ca = authority.certificate();
    let admin = format!(
        "address = \"127.0.0.1:0\"\nclient_ca = \"{}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        ca.display(),
        server.certificate.display(),
        server.key.display()
    );
    let (directory, file) = configuration(&upstream, "[store]\nurl = \"memory:\"", &admin);
    let program = Program::start(&file);
    let url = format!("https://{}/sessions", program.serving().await.admin);
    let token = std::fs::read_to_string(directory.path().join("admin-token")).unwrap();
    let bearer = format!("Authorization: Bearer {}", token.trim_end());
    let own = ["--cacert", ca.to_str().unwrap(), "-H", &bearer, &url];
    let refused = curl(own).await;
    assert!(refused.exit != 0 && refused.status == 0, "{refused:?}");
    let (certificate, key) = (client.certificate.to_str().unwrap(), client.key.to_str().unwrap());
    let accepted = curl(own.iter().chain(&["--cert", certificate, "--key", key])).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
}

#[tokio::test]
async fn tokens_are_taken_over_a_unix_socket() {
    let upstream = Upstream::start();
    let (directory, file) =
        configuration(&upstream, "[store]\nurl = \"memory:\"", "address = \"unix:admin.sock\"");
    let program = Program::start(&file);
    program.wait_for_log("serving public=").await;
    let socket = directory.path().join("admin.sock");
    let token = std::fs::read_to_string(directory.path().join("admin-token")).unwrap();
    let target: Target = format!("unix:{}", socket.display()).parse().unwrap();
    let operator = Operator {
        pool: Pool::new(target, Config::default()),
        tasks: Tasks::new(),
        headers: Vec::new(),
    };
    // Any host name leads to a socket: no page in a browser does.
    let operator = operator.with("host", "any.test");
    assert_eq!(operator.bearer(token.trim_end()).get("/sessions").await.status, 200);
    for _ in 0..5 {
        assert_eq!(operator.bearer("wrong").get("/sessions").await.status, 401);
    }
    assert_eq!(operator.bearer("wrong").get("/sessions").await.status, 429);
}

#[tokio::test]
async fn reload_takes_another_token_from_its_file() {
    let upstream = Upstream::start();
    let mut cloakroom = Cloakroom::with(&upstream, "").await;
    let path = cloakroom.directory().join("admin-token");
    let read = || std::fs::read_to_string(&path).unwrap().trim_end().to_owned();
    let (stranger, old) = (Operator::to(cloakroom.admin()), read());
    assert_eq!(stranger.bearer(&old).get("/sessions").await.status, 200);
    std::fs::remove_file(&path).unwrap();
    assert!(cloakroom.reload(&upstream, "").unwrap().is_empty());
    assert_ne!(read(), old);
    assert_eq!(stranger.bearer(&old).get("/sessions").await.status, 401);
    assert_eq!(stranger.bearer(&read()).get("/sessions").await.status, 200);
}

#[tokio::test]
async fn start_needs_no_admin_token() {
    let upstream = Upstream::start();
    let store = "[store]\nurl = \"memory:\"";
    for text in [None, Some("something else\n")] {
        let (directory, file) = configuration(&upstream, store, "address = \"127.0.0.1:0\"");
        let path = directory.path().join("admin-token");
        match text {
            None => std::fs::create_dir(&path).unwrap(),
            Some(text) => std::fs::write(&path, text).unwrap(),
        }
        let program = Program::start(&file);
        let operator = Operator::to(program.serving().await.admin);
        assert_eq!(operator.get("/").await.status, 200);
        assert_eq!(operator.get("/sessions").await.status, 404);
        assert!(program.log().contains("no admin token; set [admin] token"), "{}", program.log());
        assert!(!program.log().contains("something else"), "{}", program.log());
        if let Some(text) = text {
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
