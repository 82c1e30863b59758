//! Real caches in front of the proxy: no client gets another's cookie or page from them.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Browser, Cloakroom, Script, Upstream, needs, until};

/// A running cache that listens at `address`, and is stopped on drop.
struct Cache {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Cache {
    async fn start(
        program: &str,
        package: &str,
        prepare: impl FnOnce(&Path, SocketAddr) -> Vec<String>,
    ) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let arguments = prepare(directory.path(), address);
        let process = Command::new(program)
            .args(arguments)
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program} is to be installed (Debian: {package}): {error}")
            });
        let cache = Self { process, address, _directory: directory };
        until(&format!("{program} listens"), || TcpStream::connect(address).is_ok()).await;
        cache
    }

    /// Starts nginx, which stores every response for a minute, even with Set-Cookie, unless Cache-Control
    /// forbids it. It may be configured to ignore further fields.
    async fn nginx(origin: SocketAddr, ignored: &str) -> Self {
        Self::start("nginx", "nginx-light", |directory, address| {
            let place = directory.display();
            let configuration = format!(
                "daemon off; pid {place}/pid; error_log {place}/error.log; user root; worker_processes 1;\n\
                 events {{}}\n\
                 http {{ access_log off; proxy_cache_path {place}/cache keys_zone=z:1m; client_body_temp_path {place}/b;\n\
                 proxy_temp_path {place}/p; fastcgi_temp_path {place}/f; scgi_temp_path {place}/s; uwsgi_temp_path {place}/u;\n\
                 server {{ listen {address}; location / {{ proxy_pass http://{origin}; proxy_cache z; proxy_cache_valid 200 1m;\n\
                 proxy_ignore_headers Set-Cookie {ignored}; proxy_set_header Host $host;\n\
                 add_header X-Cache-Status $upstream_cache_status always; }} }} }}\n"
            );
            fs::write(directory.join("nginx.conf"), configuration).unwrap();
            vec!["-p".into(), place.to_string(), "-c".into(), format!("{place}/nginx.conf"), "-e".into(), format!("{place}/start.log")]
        })
        .await
    }

    /// Starts Varnish, which stores every response for a minute, even with Set-Cookie and for requests
    /// with a cookie, unless Cache-Control forbids it.
    async fn varnish(origin: SocketAddr) -> Self {
        Self::start("varnishd", "varnish", |directory, address| {
            let program = format!(
                "vcl 4.1;\nbackend origin {{ .host = \"{}\"; .port = \"{}\"; }}\n\
                 sub vcl_recv {{ if (req.method == \"GET\") {{ return (hash); }} }}\n\
                 sub vcl_backend_response {{ if (beresp.http.Cache-Control !~ \"(private|no-store)\") {{ set beresp.ttl = 60s; return (deliver); }} }}\n\
                 sub vcl_deliver {{ if (obj.hits > 0) {{ set resp.http.X-Cache-Status = \"HIT\"; }} else {{ set resp.http.X-Cache-Status = \"MISS\"; }} }}\n",
                origin.ip(),
                origin.port()
            );
            fs::write(directory.join("site.vcl"), program).unwrap();
            let place = directory.display().to_string();
            let listen = address.to_string();
            ["-F", "-n", &place, "-a", &listen, "-f", &format!("{place}/site.vcl"), "-s", "malloc,16m"].map(str::to_owned).to_vec()
        })
        .await
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // On SIGTERM the manager stops its worker; SIGKILL would leave the worker running.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Returns pages with different Cache-Control, and what they do with the session.
fn pages() -> Vec<(&'static str, Script)> {
    let write = || Script::new().call("PUT", "/values/secret", "\"mine\"").get("");
    let read = || Script::new().get("");
    let mut pages = vec![("/write", write()), ("/read", read()), ("/account.css", read())];
    for (path, directive) in [("/age", "max-age=60"), ("/smax", "private, max-age=60")] {
        pages.push((path, read().header("Cache-Control", directive)));
    }
    pages.push(("/write-public", write().header("Cache-Control", "public, s-maxage=60")));
    pages.push(("/expires", write().header("Expires", "Thu, 31 Dec 2099 23:59:59 GMT")));
    pages
}

/// The handling of Vary by a cache.
#[derive(Clone, Copy, PartialEq)]
enum Vary {
    Honoured,
    Ignored,
}

async fn check_isolation(vary: Vary, cache: impl AsyncFn(SocketAddr) -> Cache) {
    let upstream = Upstream::start();
    let cloakroom = Cloakroom::start(&upstream).await;
    let cache = cache(cloakroom.public()).await;
    let visitor = Browser::to(cache.address);
    let cookie = || visitor.cookie();
    visitor.navigate("/", &Script::new().call("PUT", "/values/secret", "\"mine\"")).await;
    assert!(cookie().is_some());
    for (path, script) in pages() {
        // Only Vary keeps apart the variants of a page that its site declares public.
        if vary == Vary::Ignored && path.ends_with("public") {
            continue;
        }
        // Each page is requested with a session. Pages that write are also requested as the first page of
        // a visitor. A page that only reads is the same for all visitors without a session, and may be
        // cached as such.
        let new = Browser::to(cache.address);
        let writes = script.calls.len() > 1;
        for (who, first) in
            std::iter::once(("known", &visitor)).chain(writes.then_some(("new", &new)))
        {
            // A URL of its own for each, so that their responses are cached separately.
            let path = &format!("{path}?{who}");
            let theirs = first.navigate(path, &script).await;
            let newcomer = Browser::to(cache.address);
            let page = newcomer.navigate(path, &Script::new().get("").header("X-Fresh", "1")).await;
            assert!(
                !page.body.contains("\\\"mine\\\"") || theirs.body != page.body,
                "{path}: a page of another's"
            );
            assert_eq!(
                (page.json()["values"].clone(), newcomer.cookie()),
                (json!({}), None),
                "{path}"
            );
            assert_eq!(page.header("x-fresh"), Some("1"), "{path} came out of the cache");
        }
    }
    // A page without a session is cached. Otherwise the test would prove nothing.
    let public = Script::new().body("for all").header("Cache-Control", "public, max-age=60");
    let newcomer = Browser::to(cache.address);
    newcomer.navigate("/public", &public).await;
    let page = Browser::to(cache.address).navigate("/public", &public).await;
    assert_eq!((page.header("x-cache-status"), page.body.as_str()), (Some("HIT"), "for all"));
}

#[tokio::test]
async fn nginx_keeps_sessions_apart() {
    needs!("nginx");
    check_isolation(Vary::Honoured, async |origin| Cache::nginx(origin, "").await).await;
}

#[tokio::test]
async fn nginx_ignoring_vary_keeps_sessions_apart() {
    needs!("nginx");
    check_isolation(Vary::Ignored, async |origin| Cache::nginx(origin, "Vary").await).await;
}

#[tokio::test]
async fn varnish_keeps_sessions_apart() {
    needs!("varnishd");
    check_isolation(Vary::Honoured, Cache::varnish).await;
}
