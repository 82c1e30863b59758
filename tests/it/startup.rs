//! The start of the program: signals during it, its log line, its arguments.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::support::raw::exchange;
use crate::support::{Program, Upstream, until};

/// Writes a configuration with free ports into a directory of its own.
fn configuration(upstream: &Upstream, more: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    let text = format!(
        "{more}\n[listen]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"{}\"\n",
        upstream.url()
    )
    .replace("[listen]", "[[listen]]");
    std::fs::write(&file, text).unwrap();
    (directory, file)
}

/// Starts a program that waits for its store: a Redis that accepts connections and never responds.
async fn start_blocked(upstream: &Upstream) -> (TempDir, Program, TcpListener) {
    let redis = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let key = cloakroom::config::generate_key();
    let (directory, file) = configuration(
        upstream,
        &format!(
            "[session]\nkeys = [\"{}\"]\n[store]\nurl = \"redis://{}\"\ntimeout = \"1m\"\n",
            key.reveal(),
            redis.local_addr().unwrap()
        ),
    );
    let program = Program::start(&file);
    (directory, program, redis)
}

#[tokio::test]
async fn sighup_during_startup_reloads_after_it() {
    let upstream = Upstream::start();
    let (_directory, program, redis) = start_blocked(&upstream).await;
    let (connection, _) = redis.accept().await.unwrap();
    program.signal("-HUP");
    drop((connection, redis));
    program.serving().await;
    program.wait_for_log("configuration reloaded").await;
}

#[tokio::test]
async fn termination_during_startup_stops_it() {
    for signal in ["-TERM", "-INT"] {
        let upstream = Upstream::start();
        let (_directory, mut program, redis) = start_blocked(&upstream).await;
        let connection = redis.accept().await.unwrap();
        program.signal(signal);
        assert_eq!(program.ended().await.code(), Some(0), "{signal}: {}", program.log());
        assert!(!program.log().contains("serving"), "{}", program.log());
        drop(connection);
    }
}

#[tokio::test]
async fn start_is_logged_with_addresses_and_created_files() {
    let upstream = Upstream::start();
    let (directory, file) = configuration(&upstream, "");
    let state = directory.path().display().to_string();
    let (key, database) = (format!("{state}/auto-session-key"), format!("{state}/cloakroom.db"));
    let mut program = Program::start(&file);
    program.serving().await;
    let line = serving_line(&program);
    assert!(line.contains(&format!("upstream=\"{}\"", upstream.url())), "{line}");
    assert!(line.contains(&format!("state_directory=\"{state}\"")), "{line}");
    let token = format!("{state}/admin-token");
    assert!(line.contains(&format!("created=\"{key}, {database}, {token}\"")), "{line}");
    program.signal("-TERM");
    program.ended().await;

    // The second start creates nothing.
    let program = Program::start(&file);
    program.serving().await;
    assert!(!serving_line(&program).contains("created"), "{}", program.log());
}

fn serving_line(program: &Program) -> String {
    let log = program.log();
    log.lines().find(|line| line.contains("serving public=")).unwrap().to_owned()
}

#[tokio::test]
async fn run_takes_the_file_as_an_argument() {
    let upstream = Upstream::start();
    let (directory, file) = configuration(&upstream, "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloakroom"))
        .args([Path::new("run"), &file])
        .env("STATE_DIRECTORY", directory.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the database exists", || directory.path().join("cloakroom.db").exists()).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn local_404_for_the_api_has_its_address() {
    let upstream = Upstream::start();
    let (_directory, file) =
        configuration(&upstream, "[limits]\ntrusted_proxies = [\"127.0.0.1\"]");
    let program = Program::start(&file);
    let serving = program.serving().await;
    let url = format!("http://{}/_session", serving.api);
    let get = async |host: &str, path: &str, more: &str| {
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
        let answer = exchange(serving.public, &head).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        answer.contains(&url)
    };
    for host in ["localhost", "localhost:8080", "127.0.0.1", "[::1]:8080"] {
        assert!(get(host, "/_session", "").await, "{host}");
        assert!(get(host, "/_session/values/a", "").await, "{host}");
        assert!(get(host, "/_sessions", "").await, "{host}");
    }
    assert!(get("localhost", "/_session", "Accept: application/json\r\n").await);
    assert!(!get("shop.example", "/_session", "").await);
    for more in
        ["X-Forwarded-For: 203.0.113.7\r\n", "Forwarded: for=203.0.113.7\r\n", "Via: 1.1 a\r\n"]
    {
        assert!(!get("localhost", "/_session", more).await, "{more}");
    }
}

/// Returns what a command prints.
fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cloakroom")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn example_config_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloakroom.toml");
    std::fs::write(&file, printed(&["example-config"])).unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_cloakroom"))
        .args(["check", file.to_str().unwrap()])
        .env("STATE_DIRECTORY", directory.path())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}

#[test]
fn completions_and_man_pages_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(printed(&["completions", shell]).contains("clear-expired"), "{shell}");
    }
    let page = printed(&["man"]);
    assert!(page.contains(".TH cloakroom 1") && page.contains("cloakroom\\-health(1)"), "{page}");
    let page = printed(&["man", "health"]);
    assert!(page.contains(".TH cloakroom-health 1") && page.contains("\\-\\-store"), "{page}");
}

#[test]
fn man_pages_lead_to_further_commands() {
    let page = printed(&["man", "sessions"]);
    assert!(page.contains("cloakroom\\-sessions\\-list(1)"), "{page}");
    assert!(!page.contains("help(1)"), "{page}");
    let page = printed(&["man", "sessions", "list"]);
    assert!(page.contains(".TH cloakroom-sessions-list 1"), "{page}");
    assert!(page.contains("\\-\\-principal") && page.contains("\\-\\-config"), "{page}");

    let mut unknown = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    let output = unknown.args(["man", "sessions", "lits"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("unknown command sessions lits"), "{error}");
}

/// Without user and password.
#[tokio::test]
async fn start_line_and_page_have_the_store() {
    let upstream = Upstream::start();
    let key = cloakroom::config::generate_key();
    let keys = format!("[session]\nkeys = [\"{}\"]\n", key.reveal());
    let database = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", database.path().join("s.db").display());
    for (url, shown) in [
        ("redis://lovelace:hunter2@127.0.0.1:1/3", "redis://127.0.0.1:1/3"),
        ("redis+cluster://lovelace:hunter2@127.0.0.1:1", "redis+cluster://127.0.0.1:1"),
        (&*database, &*database),
        ("memory:", "memory:"),
    ] {
        let text = format!("{keys}[store]\nurl = \"{url}\"\ntimeout = \"200ms\"\n");
        let (_directory, file) = configuration(&upstream, &text);
        let program = Program::start(&file);
        let admin = program.serving().await.admin;
        let log = program.log();
        let line = log.lines().find(|line| line.contains("serving public=")).unwrap();
        assert!(line.contains(&format!(" store=\"{shown}\" ")), "{line}");
        let request = |accept: &str| {
            format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
            )
        };
        let json = exchange(admin, &request("application/json")).await;
        assert!(json.contains(&format!("\"url\":\"{shown}\"")), "{json}");
        let page = exchange(admin, &request("text/html")).await;
        let is_shown = page.contains(&format!("<code>{shown}</code>"));
        assert!(is_shown || url == "memory:", "{page}");
        for text in [log, json, page] {
            assert!(!text.contains("hunter2") && !text.contains("lovelace"), "{text}");
        }
    }
}
