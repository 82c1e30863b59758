//! Socket activation: a service manager listens for the proxy and restarts it.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::support::{Browser, Cloakroom, KEY, PATIENCE, Program, Script, Upstream};

/// Writes a configuration whose only public listener is at the socket's address.
fn write(file: &Path, socket: &TcpListener, upstream: &Upstream) {
    let text = format!(
        "[[listen]]\naddress = \"{}\"\n[limits]\npredrain = \"300ms\"\n\
         [api]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [session]\nkeys = [\"{KEY}\"]\n[store]\nurl = \"sqlite:sessions.db\"\n\
         [[route]]\nupstream = \"{}\"\n",
        socket.local_addr().unwrap(),
        upstream.url()
    );
    std::fs::write(file, text).unwrap();
}

struct Manager {
    socket: TcpListener,
    states: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let states = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        states.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket: TcpListener::bind("127.0.0.1:0").unwrap(), states, directory }
    }

    fn start(&self) -> Program {
        let file = self.directory.path().join("cloakroom.toml");
        Program::start_with_socket(&self.socket, &file, &self.directory.path().join("notify"))
    }

    fn hears(&self) -> String {
        let mut state = [0; 256];
        let length = self.states.recv(&mut state).unwrap();
        String::from_utf8_lossy(&state[..length]).lines().next().unwrap().to_owned()
    }
}

#[tokio::test]
async fn no_request_is_lost_across_a_restart() {
    let (upstream, manager) = (Upstream::start(), Manager::new());
    write(&manager.directory.path().join("cloakroom.toml"), &manager.socket, &upstream);
    let browser = Browser::to(manager.socket.local_addr().unwrap());
    let over = Arc::new(AtomicBool::new(false));
    let visits = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let count = Script::new().call("POST", "/values/n/increment", "");
            let mut visits = 0;
            while !over.load(Ordering::Relaxed) {
                visits += 1;
                assert_eq!(browser.navigate("/", &count).await.json(), json!(visits));
            }
            visits
        }
    });
    for _ in 0..3 {
        let mut program = manager.start();
        assert_eq!(manager.hears(), "READY=1");
        let served = upstream.seen().len();
        crate::support::until("pages are served", || upstream.seen().len() > served + 5).await;
        program.signal("-HUP");
        assert_eq!((manager.hears(), manager.hears()), ("RELOADING=1".into(), "READY=1".into()));
        program.signal("-TERM");
        assert_eq!(manager.hears(), "STOPPING=1");
        assert!(program.ended().await.success());
    }
    let _last = manager.start();
    over.store(true, Ordering::Relaxed);
    assert!(visits.await.unwrap() > 15);
}

#[tokio::test]
async fn unconfigured_inherited_socket_is_an_error() {
    let (upstream, manager) = (Upstream::start(), Manager::new());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    write(&manager.directory.path().join("cloakroom.toml"), &other, &upstream);
    drop(other);
    let mut program = manager.start();
    let handed = manager.socket.local_addr().unwrap();
    program
        .wait_for_log(&format!("inherited socket {handed} matches no configured listener"))
        .await;
    assert_eq!(program.ended().await.code(), Some(1));
    assert_ne!(handed, address);
}

#[tokio::test]
async fn predrain_announces_the_shutdown() {
    let upstream = Upstream::start();
    let proxy = Cloakroom::with(&upstream, "[limits]\npredrain = \"20s\"\n").await;
    let (browser, public, admin) = (Browser::new(&proxy), proxy.public(), proxy.admin());
    assert_eq!(browser.navigate("/", &Script::new()).await.header("connection"), None);
    assert_eq!(proxy.admin_get("/ready").await.0, 200);
    let _stopping = tokio::spawn(proxy.stop());
    let ready = async || {
        let path = http::uri::PathAndQuery::from_static("/ready");
        let target = format!("http://{admin}").parse().unwrap();
        let tasks = cloakroom::server::Tasks::new();
        cloakroom::client::get(&target, path, &tasks, 1 << 20, PATIENCE).await.unwrap().status()
    };
    while ready().await == 200 {}
    let page = Browser::to(public).navigate("/", &Script::new()).await;
    assert_eq!((page.status.as_u16(), page.header("connection")), (200, Some("close")));
}
