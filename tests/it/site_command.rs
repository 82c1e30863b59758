//! `run … -- COMMAND`: the site starts and stops with the proxy.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::raw::exchange;
use crate::support::{Program, until};

/// A site that shows its environment, waits for `/slow`, and ends with status 3 at `/end`.
const SITE: &str = r#"
import http.server, os, sys, time

class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            os._exit(3)
        if self.path == "/slow":
            print("slow request", file=sys.stderr, flush=True)
            time.sleep(1)
        body = os.environ["CLOAKROOM_CLIENT_URL"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

time.sleep(0.3)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Site).serve_forever()
"#;

struct Scene {
    _directory: TempDir,
    file: PathBuf,
    port: u16,
    api: SocketAddr,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cloakroom.toml");
        let [port, api] = [(); 2].map(|()| free_address());
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n[api]\naddress = \"{api}\"\n\
             [admin]\naddress = \"127.0.0.1:0\"\n[store]\nurl = \"memory:\"\n"
        );
        std::fs::write(&file, text).unwrap();
        Self { _directory: directory, file, port: port.port(), api }
    }

    fn start(&self, site: &[&str]) -> Program {
        let upstream = format!("http://127.0.0.1:{}", self.port);
        Program::start_with_site(&self.file, Some(&upstream), site)
    }

    fn start_site(&self) -> Program {
        self.start(&["python3", "-c", SITE, &self.port.to_string()])
    }

    fn is_site_running(&self) -> bool {
        TcpListener::bind(("127.0.0.1", self.port)).is_err()
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn site_starts_before_and_stops_after_the_proxy() {
    let scene = Scene::new();
    let mut program = scene.start_site();
    let public = program.serving().await.public;
    let response = exchange(public, &get("/")).await;
    assert!(response.ends_with(&format!("http://{}/_session", scene.api)), "{response}");

    let slow = tokio::spawn(async move { exchange(public, &get("/slow")).await });
    program.wait_for_log("slow request").await;
    program.signal("-INT");
    assert!(slow.await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.log());
    until("the site has stopped", || !scene.is_site_running()).await;
}

#[tokio::test]
async fn proxy_ends_with_the_site() {
    let scene = Scene::new();
    let mut program = scene.start_site();
    exchange(program.serving().await.public, &get("/end")).await;
    assert_eq!(program.ended().await.code(), Some(1));
    assert!(program.log().contains("the site ended: exit status: 3"), "{}", program.log());
}

#[tokio::test]
async fn proxy_killed_while_it_waits_stops_the_site() {
    let scene = Scene::new();
    let mut program = scene.start(&["sh", "-c", "echo site $$ >&2; sleep 600 & wait"]);
    let printed =
        |log: String| log.lines().find_map(|line| line.strip_prefix("site ").map(str::to_owned));
    until("the site has started", || printed(program.log()).is_some()).await;
    let group = format!("-{}", printed(program.log()).unwrap());
    program.signal("-TERM");
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.log());
    let is_gone = || !Command::new("kill").args(["-0", "--", &group]).status().unwrap().success();
    until("the processes of the site are gone", is_gone).await;
}

#[tokio::test]
async fn upstream_is_that_of_the_file() {
    let scene = Scene::new();
    let routes = format!("[[route]]\nupstream = \"http://127.0.0.1:{}\"\n", scene.port);
    let text = std::fs::read_to_string(&scene.file).unwrap() + &routes;
    std::fs::write(&scene.file, &text).unwrap();
    let site = ["python3", "-c", SITE, &scene.port.to_string()];
    let mut program = Program::start_with_site(&scene.file, None, &site);
    let response = exchange(program.serving().await.public, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    program.signal("-TERM");
    assert_eq!(program.ended().await.code(), Some(0), "{}", program.log());

    let other = "[[route]]\npath = \"/other\"\nupstream = \"http://127.0.0.1:1\"\n";
    std::fs::write(&scene.file, text + other).unwrap();
    let mut program = Program::start_with_site(&scene.file, None, &["true"]);
    assert_eq!(program.ended().await.code(), Some(2));
    program.wait_for_log("more than one upstream").await;
}

#[tokio::test]
async fn site_is_not_started_without_the_ports_of_the_proxy() {
    let scene = Scene::new();
    let _other = TcpListener::bind(scene.api).unwrap();
    let mut program = scene.start(&["sh", "-c", "echo started >&2"]);
    assert_eq!(program.ended().await.code(), Some(1));
    program.wait_for_log(&format!("cannot listen on {} ([api] address)", scene.api)).await;
    assert!(!program.log().contains("started"), "{}", program.log());
}

#[tokio::test]
async fn failures_to_start_are_reported() {
    let taken = Scene::new();
    let _other = TcpListener::bind(("127.0.0.1", taken.port)).unwrap();
    for (scene, command, message) in [
        (&taken, &["true"][..], "another program already listens at http://127.0.0.1:"),
        (&Scene::new(), &["/no/such/program"], "cannot start /no/such/program: No such file"),
        (&Scene::new(), &["sh", "-c", "exit 4"], "the site ended before it listened at http"),
    ] {
        let mut program = scene.start(command);
        assert_eq!(program.ended().await.code(), Some(1), "{message}");
        until(message, || program.log().contains(message)).await;
    }
}
