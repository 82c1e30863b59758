//! The README's upstreams, each for real behind the proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Browser, Cloakroom, Script, Upstream, until};

/// A site in another language. Dropping it ends it.
struct Site(Child);

impl Site {
    async fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Self {
        let site = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} is to be installed: {error}"));
        until(&format!("{program} listens"), || TcpStream::connect(address).is_ok()).await;
        Self(site)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples").join(name)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn before(address: SocketAddr, route: &str) -> Cloakroom {
    // The kit's upstream is not asked: this site stands in its place.
    let unused = Upstream::start();
    Cloakroom::with(&unused, &format!("[[route]]\nupstream = \"http://{address}\"\n{route}")).await
}

/// Counts, logs in and out, as a visitor of the README's site.
async fn visit(cloakroom: &Cloakroom) {
    let browser = Browser::new(cloakroom);
    let nothing = Script::new();
    for visits in 1..=3 {
        let page = browser.navigate("/", &nothing).await;
        assert_eq!(page.body, format!("Hello stranger, visit {visits}\n"));
    }
    let before = browser.cookie().unwrap();
    let page = browser.navigate("/login?name=ada", &nothing).await;
    assert_eq!((page.status.is_redirection(), page.header("location")), (true, Some("/")));
    assert_ne!(browser.cookie().unwrap(), before);
    assert_eq!(browser.navigate("/", &nothing).await.body, "Hello ada, visit 4\n");
    browser.navigate("/logout", &nothing).await;
    assert_eq!(browser.cookie(), None);
    assert_eq!(browser.navigate("/", &nothing).await.body, "Hello stranger, visit 1\n");
}

#[tokio::test]
async fn a_site_in_php() {
    let address = free_address();
    let file = example("site.php");
    let _site =
        Site::start("php", &["-S", &address.to_string(), file.to_str().unwrap()], address).await;
    visit(&before(address, "").await).await;
}

#[tokio::test]
async fn a_site_in_python() {
    let address = free_address();
    let file = example("site.py");
    let _site =
        Site::start("python3", &[file.to_str().unwrap(), &address.port().to_string()], address)
            .await;
    visit(&before(address, "").await).await;
}

#[tokio::test]
async fn a_site_in_node() {
    let address = free_address();
    let file = example("site.mjs");
    let _site =
        Site::start("node", &[file.to_str().unwrap(), &address.port().to_string()], address).await;
    visit(&before(address, "").await).await;
}

#[tokio::test]
async fn a_site_of_shell_scripts() {
    let address = free_address();
    let (runner, script, port) =
        (example("cgi.py"), example("site.cgi"), address.port().to_string());
    let arguments = [runner.to_str().unwrap(), script.to_str().unwrap(), &port];
    let _site = Site::start("python3", &arguments, address).await;
    visit(&before(address, "").await).await;
}

#[tokio::test]
async fn a_shell_script_that_makes_no_call() {
    let address = free_address();
    let (runner, script, port) =
        (example("cgi.py"), example("exchange.cgi"), address.port().to_string());
    let arguments = [runner.to_str().unwrap(), script.to_str().unwrap(), &port];
    let _site = Site::start("python3", &arguments, address).await;
    let cloakroom = before(address, "header_exchange = true\n").await;
    let browser = Browser::new(&cloakroom);
    for data in ["{}", "{\"visits\":1}", "{\"visits\":2}"] {
        let page = browser.navigate("/", &Script::new()).await;
        assert_eq!(page.body, format!("The session was {data}\n"));
        assert_eq!(page.header("x-session-patch"), None);
    }
}

#[test]
fn the_readme_shows_these_files() {
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for name in ["site.php", "site.py", "site.mjs", "site.cgi", "exchange.cgi"] {
        let text = std::fs::read_to_string(example(name)).unwrap();
        assert!(text.lines().count() < 30, "{name} is long");
        assert!(readme.contains(&text), "README.md does not show {name} as it is");
    }
}
