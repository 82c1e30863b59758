//! The sites of README and docs, each for real behind the proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::docs::markdown;
use crate::support::raw::exchange;
use crate::support::{Browser, Cloakroom, Script, Upstream, needs, until};

/// A site in another language. Dropping it ends it.
struct Site(Child);

impl Site {
    async fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Self {
        Self::with_secrets("", program, arguments, address).await
    }

    /// Starts a site that verifies `X-Session-Proof` with the secrets in these files.
    async fn with_secrets(
        files: &str,
        program: &str,
        arguments: &[&str],
        address: SocketAddr,
    ) -> Self {
        let site = Command::new(program)
            .args(arguments)
            .env("NODE_PATH", NODE_PATH)
            .env("CLIENT_SECRETS", files)
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

/// README and docs, as one text.
fn documentation() -> String {
    markdown().into_iter().map(|(_, text)| text).collect()
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
    browser.navigate("/login?name=Zo%C3%AB", &nothing).await;
    assert_eq!(browser.navigate("/", &nothing).await.body, "Hello Zo\u{eb}, visit 1\n");
    browser
        .navigate("/login?name=x%22%2C%22values%22%3A%7B%22visits%22%3A9%7D%2C%22a", &nothing)
        .await;
    let page = browser.navigate("/", &nothing).await;
    assert!(page.body.ends_with(", visit 1\n"), "the name is text alone: {}", page.body);
    browser.navigate("/logout", &nothing).await;
    assert_eq!(browser.cookie(), None);
    assert_eq!(browser.navigate("/", &nothing).await.body, "Hello stranger, visit 1\n");
}

/// Targets that readers of URLs take for something else, or cannot read at all.
const HOSTILE: [&str; 19] = [
    "//",
    "/\\",
    "//:",
    "//a:b/",
    "//[/",
    "///",
    "//x/login",
    "/\\x/login",
    "/%",
    "/%00",
    "/%ff",
    "/%5b%5d",
    "/..//..",
    "/;a=b",
    "/?",
    "/?%",
    "/?name[]=1&name[a]=2",
    "/login%00",
    "//@:@/",
];

/// Sends them all; each is answered, and not by its failure to answer.
async fn survive(cloakroom: &Cloakroom) {
    for target in HOSTILE {
        for method in ["GET", "HEAD"] {
            let head =
                format!("{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = exchange(cloakroom.public(), &head).await;
            let status = answer.split(' ').nth(1).unwrap_or_default();
            assert_ne!(status, "502", "{method} {target}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 "), "{method} {target}: {answer}");
        }
    }
}

/// By the program of this machine's configuration, and by one without a php.ini.
#[tokio::test]
async fn a_site_in_php() {
    needs!("php");
    for option in [&[][..], &["-n"]] {
        let address = free_address();
        let (file, at) = (example("site.php"), address.to_string());
        let arguments = [option, &["-S", &at, file.to_str().unwrap()]].concat();
        let _site = Site::start("php", &arguments, address).await;
        let cloakroom = before(address, "").await;
        survive(&cloakroom).await;
        visit(&cloakroom).await;
    }
}

#[tokio::test]
async fn a_site_in_python() {
    needs!("python3");
    let address = free_address();
    let file = example("site.py");
    let _site =
        Site::start("python3", &[file.to_str().unwrap(), &address.port().to_string()], address)
            .await;
    let cloakroom = before(address, "").await;
    survive(&cloakroom).await;
    visit(&cloakroom).await;
}

#[tokio::test]
async fn a_site_in_node() {
    needs!("node");
    let address = free_address();
    let file = example("site.mjs");
    let _site =
        Site::start("node", &[file.to_str().unwrap(), &address.port().to_string()], address).await;
    let cloakroom = before(address, "").await;
    survive(&cloakroom).await;
    visit(&cloakroom).await;
}

#[tokio::test]
async fn a_site_of_shell_scripts() {
    needs!("python3", "curl");
    let address = free_address();
    let (runner, script, port) =
        (example("cgi.py"), example("site.cgi"), address.port().to_string());
    let arguments = [runner.to_str().unwrap(), script.to_str().unwrap(), &port];
    let _site = Site::start("python3", &arguments, address).await;
    let cloakroom = before(address, "").await;
    survive(&cloakroom).await;
    visit(&cloakroom).await;
}

#[tokio::test]
async fn a_shell_script_that_makes_no_call() {
    needs!("python3");
    let address = free_address();
    let (runner, script, port) =
        (example("cgi.py"), example("exchange.cgi"), address.port().to_string());
    let arguments = [runner.to_str().unwrap(), script.to_str().unwrap(), &port];
    let _site = Site::start("python3", &arguments, address).await;
    let cloakroom = before(address, "header_exchange = true\n").await;
    survive(&cloakroom).await;
    let browser = Browser::new(&cloakroom);
    for data in ["{}", "{\"visits\":1}", "{\"visits\":2}"] {
        let page = browser.navigate("/", &Script::new()).await;
        assert_eq!(page.body, format!("The session was {data}\n"));
        assert_eq!(page.header("x-session-patch"), None);
    }
}

/// Secrets of `X-Session-Proof`, while the site has both and the proxy still the old one.
const OLD_SECRET: &str = "the old secret of the proxy and its sites";
const NEW_SECRET: &str = "the new secret of the proxy and its sites";

/// Copies an example into a directory, with a line of it replaced as the guide says.
fn copy(directory: &Path, name: &str, replaced: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(example(name)).unwrap();
    for (line, by) in replaced {
        assert!(text.contains(line), "{name} has no {line}");
        text = text.replace(line, by);
    }
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Writes the secrets, and returns their files for the site.
fn write_secrets(directory: &Path) -> String {
    let files = [("new", NEW_SECRET), ("old", OLD_SECRET)].map(|(name, secret)| {
        let path = directory.join(name);
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    });
    files.join(":")
}

/// Visits a verifying site through the proxy, and sends it forged headers without.
async fn refuses_forgeries(site: SocketAddr) {
    let upstream = Upstream::start();
    let toml = format!(
        "[api]\naddress = \"127.0.0.1:0\"\nclient_secret = \"{OLD_SECRET}\"\n[[route]]\nupstream = \"http://{site}\"\n\
         [[route]]\npath = \"/held\"\nupstream = \"UPSTREAM\"\n"
    );
    let cloakroom = Cloakroom::with(&upstream, &toml).await;
    visit(&cloakroom).await;
    // The headers of another request that lasts.
    let browser = Browser::new(&cloakroom);
    let held =
        tokio::spawn(async move { browser.navigate("/held", &Script::new().wait("forged")).await });
    upstream.arrived("forged", 1).await;
    let headers = upstream.seen().pop().unwrap().headers.into_iter();
    let genuine: Vec<String> = headers
        .filter(|(name, _)| name.starts_with("x-session-"))
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let without =
        |name: &str| genuine.iter().filter(|line| !line.starts_with(name)).cloned().collect();
    let genuine: String = genuine.concat();
    let own = format!(
        "X-Session-Url: http://{site}/\r\nX-Session-Token: a\r\nX-Session-Principal: admin\r\n"
    );
    let without_next: String = without("x-session-next-id");
    let without_proof: String = without("x-session-proof");
    for forged in [
        String::new(),
        own.clone(),
        format!("{own}X-Session-Proof: v1 t=1800000000 m={}\r\n", "A".repeat(43)),
        format!("{genuine}X-Session-Principal: admin\r\n"),
        format!("{genuine}X-Session-Token: a\r\n"),
        format!("X-Session-Url: http://{site}/\r\n{genuine}"),
        without_next,
        without_proof,
    ] {
        assert_eq!(status_of(site, &forged).await, "403", "{forged}");
    }
    // Only because the request lasts, and for 300 s.
    assert_eq!(status_of(site, &genuine).await, "200", "{genuine}");
    upstream.open("forged");
    held.await.unwrap();
    let visitor = Browser::new(&cloakroom);
    cloakroom.advance(Duration::from_secs(290));
    assert_eq!(visitor.navigate("/", &Script::new()).await.status, 200);
    cloakroom.advance(Duration::from_secs(20));
    assert_eq!(visitor.navigate("/", &Script::new()).await.status, 403);
}

/// Sends a request straight to a site.
async fn status_of(site: SocketAddr, headers: &str) -> String {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}Connection: close\r\n\r\n");
    let answer = exchange(site, &head).await;
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// By a line in a router script, and by `auto_prepend_file`, which does not apply to one.
#[tokio::test]
async fn php_sites_refuse_forged_headers() {
    needs!("php");
    let directory = tempfile::tempdir().unwrap();
    let secrets = write_secrets(directory.path());
    copy(directory.path(), "proof.php", &[]);
    let site = copy(directory.path(), "site.php", &[("<?php\n", "<?php\nrequire 'proof.php';\n")]);
    let pages = tempfile::tempdir().unwrap();
    std::fs::copy(example("site.php"), pages.path().join("index.php")).unwrap();
    let proof = format!("auto_prepend_file={}", example("proof.php").display());
    for arguments in [&[&*site][..], &["-t", pages.path().to_str().unwrap(), "-d", &proof]] {
        let address = free_address();
        let at = address.to_string();
        let arguments = [&["-S", &at], arguments].concat();
        let _site = Site::with_secrets(&secrets, "php", &arguments, address).await;
        refuses_forgeries(address).await;
    }
}

/// Also the one that runs CGI scripts: a script has no safe place for a secret.
#[tokio::test]
async fn python_sites_refuse_forged_headers() {
    needs!("python3", "curl");
    let class = |name: &str| format!("class {name}(http.server.BaseHTTPRequestHandler)");
    for (file, name, script) in [("site.py", "Site", None), ("cgi.py", "Cgi", Some("site.cgi"))] {
        let (directory, address) = (tempfile::tempdir().unwrap(), free_address());
        copy(directory.path(), "proof.py", &[]);
        let verified = format!("class {name}(proof.Verified)");
        let imported = [("\nimport h", "\nimport proof\nimport h"), (&*class(name), &*verified)];
        let file = copy(directory.path(), file, &imported);
        let (script, port) = (script.map(example), address.port().to_string());
        let arguments: Vec<&str> =
            [Some(&*file), script.as_ref().and_then(|path| path.to_str()), Some(&*port)]
                .into_iter()
                .flatten()
                .collect();
        let secrets = write_secrets(directory.path());
        let _site = Site::with_secrets(&secrets, "python3", &arguments, address).await;
        refuses_forgeries(address).await;
    }
}

#[tokio::test]
async fn node_site_refuses_forged_headers() {
    needs!("node");
    let (directory, address) = (tempfile::tempdir().unwrap(), free_address());
    let lines = std::fs::read_to_string(copy(directory.path(), "proof.mjs", &[])).unwrap();
    let shown = |start: &str| {
        lines
            .lines()
            .find_map(|line| line.strip_prefix("//   ").filter(|line| line.starts_with(start)))
            .unwrap()
    };
    let node = "import { createServer } from \"node:http\";\n";
    let serve = "createServer((request, response) => {\n";
    let import = format!("{node}{}\n", shown("import"));
    let check = format!("{serve}{}\n", shown("if"));
    let file = copy(directory.path(), "site.mjs", &[(node, &import), (serve, &check)]);
    let arguments = [&*file, &address.port().to_string()];
    let secrets = write_secrets(directory.path());
    let _site = Site::with_secrets(&secrets, "node", &arguments, address).await;
    refuses_forgeries(address).await;
}

/// The scheme that a site sees, with and without TLS in front of the proxy.
async fn sees_the_scheme(program: &str, arguments: &[&str], address: SocketAddr) {
    let _site = Site::start(program, arguments, address).await;
    let unused = Upstream::start();
    let toml = format!(
        "[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n[[route]]\nupstream = \"http://{address}\"\n"
    );
    let cloakroom = Cloakroom::with(&unused, &toml).await;
    for (more, scheme) in [("X-Forwarded-Proto: https\r\n", "https"), ("", "http")] {
        let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n");
        let answer = exchange(cloakroom.public(), &head).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = if head.contains("chunked") { body.lines().nth(1).unwrap() } else { body };
        assert_eq!(body.trim_end(), scheme, "{program} {arguments:?}: {answer}");
    }
}

/// The first of these programs that succeeds with `check`; `None` if the framework is not installed.
fn installed(programs: &[&'static str], check: &[&str]) -> Option<&'static str> {
    let runs = |program: &&&str| {
        let mut command = Command::new(program);
        command.args(check).env("NODE_PATH", NODE_PATH).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    programs.iter().find(runs).copied()
}

/// The directory into which `tests/run` installs Express.
const NODE_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/node/node_modules");

/// Returns whether a missing framework is a failure, as a missing program is (`needs!`).
#[expect(clippy::disallowed_methods, reason = "tests know their environment")]
fn tools_are_required() -> bool {
    std::env::var_os("TESTS_NEED_TOOLS").is_some()
}

#[tokio::test]
async fn frameworks_see_the_scheme_behind_tls() {
    needs!("php", "node", "django-admin", "flask");
    let shown = documentation();
    for (file, line, programs, check) in [
        (
            "django_site.py",
            "SECURE_PROXY_SSL_HEADER",
            &["python3", "/usr/bin/python3"][..],
            &["-c", "import django"][..],
        ),
        (
            "flask_site.py",
            "app.wsgi_app",
            &["python3", "/usr/bin/python3"],
            &["-c", "import flask"],
        ),
        ("express_site.cjs", "app.set", &["node"], &["-e", "require('express')"]),
        ("site.php", "$_SERVER['HTTPS']", &["php"], &["-v"]),
    ] {
        let path = example("tls").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|found| found.starts_with(line)).unwrap();
        assert!(shown.contains(&format!("`{line}`")), "the documentation does not show {line}");
        let Some(program) = installed(programs, check) else {
            assert!(!tools_are_required(), "{file}: its framework is not installed");
            continue;
        };
        let address = free_address();
        let (path, at) = (path.to_str().unwrap(), address.to_string());
        let port = address.port().to_string();
        let arguments = if program == "php" { vec!["-S", &at, path] } else { vec![path, &port] };
        sees_the_scheme(program, &arguments, address).await;
    }
}

/// By itself it compresses nothing for requests with a Via.
#[tokio::test]
async fn nginx_compresses_behind_the_proxy() {
    needs!("nginx");
    let directory = tempfile::tempdir().unwrap();
    let (at, address) = (directory.path(), free_address());
    let shown = documentation();
    let line = "gzip_proxied any;";
    assert!(shown.contains(line));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {}/{name};\n", at.display()))
        .collect();
    let configuration = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error; events {{}}\n\
         http {{ access_log off; {temporary} default_type text/plain;\n\
         gzip on; gzip_types text/plain; {line}\n\
         server {{ listen {address}; root {0}; }} }}\n",
        at.display()
    );
    std::fs::write(at.join("nginx.conf"), configuration).unwrap();
    std::fs::write(at.join("page.txt"), "hello ".repeat(500)).unwrap();
    let file = at.join("nginx.conf");
    let _site = Site::start("nginx", &["-c", file.to_str().unwrap()], address).await;
    let cloakroom = before(address, "").await;
    let head =
        "GET /page.txt HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let answer = exchange(cloakroom.public(), head).await;
    assert!(answer.contains("\r\ncontent-encoding: gzip\r\n"), "{answer}");
}

#[test]
fn documentation_shows_these_files() {
    let shown = documentation();
    for name in [
        "site.php",
        "site.py",
        "site.mjs",
        "site.cgi",
        "exchange.cgi",
        "proof.php",
        "proof.py",
        "proof.mjs",
    ] {
        let text = std::fs::read_to_string(example(name)).unwrap();
        assert!(text.lines().count() < 33, "{name} is long");
        assert!(shown.contains(&text), "the documentation does not show {name}");
    }
}
