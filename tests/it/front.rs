//! nginx, `HAProxy` and Caddy in the configurations of the guides, on free ports.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::guide::put;
use crate::support::{Authority, CurlResponse, curl, until};

/// The host name in the guides.
pub(crate) const HOST: &str = "shop.example.org";

/// The address of the clients, which is not that of the proxy.
pub(crate) const CLIENT: &str = "127.0.0.2";

/// A running proxy with a certificate for [`HOST`]. Dropping it stops the process.
pub(crate) struct Front {
    process: Child,
    pub(crate) authority: Authority,
    pub(crate) https: u16,
    pub(crate) http: u16,
    directory: TempDir,
}

impl Front {
    /// Starts nginx with this file in `conf.d`.
    pub(crate) async fn nginx(site: &str) -> Self {
        Self::start("nginx", |front| {
            let place = front.directory.path();
            let (certificate, key) = front.identity();
            let site = put(
                site,
                &[
                    ("listen 80;", &format!("listen 127.0.0.1:{};", front.http)),
                    ("listen 443 ssl", &format!("listen 127.0.0.1:{} ssl", front.https)),
                    ("/etc/ssl/shop/fullchain.pem", &certificate),
                    ("/etc/ssl/shop/key.pem", &key),
                ],
            );
            fs::create_dir(place.join("conf.d")).unwrap();
            fs::write(place.join("conf.d/cloakroom.conf"), site).unwrap();
            let place = place.display();
            let main = format!(
                "daemon off; pid {place}/pid; error_log {place}/error.log; user root; worker_processes 1;\n\
                 events {{}}\n\
                 http {{ access_log off; client_body_temp_path {place}/b; proxy_temp_path {place}/p;\n\
                 fastcgi_temp_path {place}/f; scgi_temp_path {place}/s; uwsgi_temp_path {place}/u;\n\
                 include {place}/conf.d/*.conf; }}\n"
            );
            fs::write(front.directory.path().join("nginx.conf"), main).unwrap();
            let arguments = ["-p", "{}", "-c", "{}/nginx.conf", "-e", "{}/start.log"];
            arguments.map(|word| word.replace("{}", &place.to_string())).to_vec()
        })
        .await
    }

    /// Starts `HAProxy` with this at the end of its configuration.
    pub(crate) async fn haproxy(site: &str) -> Self {
        Self::start("haproxy", |front| {
            let mut replacements = vec![("bind :443", format!("bind 127.0.0.1:{}", front.https))];
            // One that passes TLS through has neither.
            if site.contains("mode http") {
                let (certificate, key) = front.identity();
                let both = [certificate, key].map(|file| fs::read_to_string(file).unwrap());
                let file = front.directory.path().join("shop.pem");
                fs::write(&file, both.concat()).unwrap();
                let file = file.to_str().unwrap().to_owned();
                replacements.push(("/etc/haproxy/certs/shop.pem", file));
                replacements.push(("bind :80\n", format!("bind 127.0.0.1:{}\n", front.http)));
            }
            let replacements: Vec<_> =
                replacements.iter().map(|(from, to)| (*from, to.as_str())).collect();
            let file = front.directory.path().join("haproxy.cfg");
            fs::write(&file, put(site, &replacements)).unwrap();
            vec!["-db".into(), "-f".into(), file.to_str().unwrap().into()]
        })
        .await
    }

    /// Starts Caddy with this file, and with a certificate of the test rather than of an authority on the Internet.
    pub(crate) async fn caddy(site: &str) -> Self {
        Self::start("caddy", |front| {
            let (certificate, key) = front.identity();
            let block = format!("{HOST} {{\n");
            let with_tls = format!("{block}    tls {certificate} {key}\n");
            let global = format!(
                "{{\n    admin off\n    default_bind 127.0.0.1\n    http_port {}\n    https_port {}\n}}\n",
                front.http, front.https
            );
            let file = front.directory.path().join("Caddyfile");
            fs::write(&file, global + &put(site, &[(&block, &with_tls)])).unwrap();
            let file = file.to_str().unwrap();
            ["run", "--adapter", "caddyfile", "--config", file].map(str::to_owned).to_vec()
        })
        .await
    }

    async fn start(program: &str, configure: impl FnOnce(&Self) -> Vec<String>) -> Self {
        let [https, http] = free_ports();
        let directory = tempfile::tempdir().unwrap();
        let idle = Command::new("true").spawn().unwrap();
        let authority = Authority::new();
        let mut front = Self { process: idle, authority, https, http, directory };
        let arguments = configure(&front);
        let place = front.directory.path();
        let log = fs::File::create(place.join("output.log")).unwrap();
        let process = Command::new(program)
            .args(arguments)
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
            .envs(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, place)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let _ = std::mem::replace(&mut front.process, process).wait();
        until(&format!("{program} listens"), || {
            let ended = front.process.try_wait().unwrap();
            assert!(ended.is_none(), "{program}: {}", front.log());
            TcpStream::connect(("127.0.0.1", front.https)).is_ok()
        })
        .await;
        front
    }

    fn identity(&self) -> (String, String) {
        let identity = self.authority.of(&[HOST]);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        (text(&identity.certificate), text(&identity.key))
    }

    /// Sends the signal by which systemd reloads nginx.
    pub(crate) fn reload(&self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    }

    /// Returns the file of the guide's configuration in nginx's directory.
    pub(crate) fn nginx_file(&self) -> PathBuf {
        self.directory.path().join("conf.d/cloakroom.conf")
    }

    /// Returns what it has printed.
    pub(crate) fn log(&self) -> String {
        let files = ["output.log", "error.log"].map(|name| self.directory.path().join(name));
        files.map(|file| fs::read_to_string(file).unwrap_or_default()).concat()
    }

    /// Returns the arguments of curl for a request of [`CLIENT`] with a cookie jar of this name.
    pub(crate) fn arguments(&self, jar: &str, path: &str) -> Vec<String> {
        let jar = self.directory.path().join(jar).to_str().unwrap().to_owned();
        let ca = self.authority.certificate().to_str().unwrap().to_owned();
        let to = format!("{HOST}:{}:127.0.0.1", self.https);
        let own = ["--interface", CLIENT, "--resolve", &to, "--cacert", &ca];
        let own = own.into_iter().chain(["--cookie", &jar, "--cookie-jar", &jar]);
        own.map(str::to_owned).chain([self.url(path)]).collect()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{HOST}:{}{path}", self.https)
    }

    /// Sends a request over https, with these arguments in addition.
    pub(crate) async fn curl(&self, jar: &str, path: &str, more: &[&str]) -> CurlResponse {
        let mut arguments = self.arguments(jar, path);
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        curl(arguments).await
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // On SIGTERM nginx stops its worker; SIGKILL would leave it running.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Returns ports that are free now, below those that outgoing connections take.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let mut ports = Vec::new();
    while ports.len() < N {
        let port = 22_000 + u16::try_from(rand::random::<u32>() % 10_000).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if !ports.contains(&port) && TcpListener::bind(address).is_ok() {
            ports.push(port);
        }
    }
    ports.try_into().unwrap()
}
