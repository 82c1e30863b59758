//! The proxy in this process, on free ports, with a clock that the test advances.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cloakroom::app::App;
use cloakroom::client::{Pool, Target};
use cloakroom::config::{Environment, Overrides, load};
use cloakroom::metrics::Metrics;
use cloakroom::server::{Address, Tasks};
use cloakroom::time::{Clock, Timestamp};
use tempfile::TempDir;

use super::script::{ApiResponse, Call};
use super::{PATIENCE, Upstream};

/// A running proxy. Dropping it drains it.
pub struct Cloakroom {
    app: Option<App>,
    pub clock: Clock,
    directory: TempDir,
    pub tasks: Tasks,
}

/// Signing key of every proxy in these tests.
pub const KEY: &str = "dGhlIGtleSB0aGF0IGFsbCB0aGVzZSB0ZXN0cyB1c2U";
/// Service token of the session API.
pub const SERVICE_TOKEN: &str = "the-service-token-of-the-tests";

impl Cloakroom {
    /// Starts a proxy for `upstream` with the memory store.
    pub async fn start(upstream: &Upstream) -> Self {
        Self::with(upstream, "").await
    }

    /// Starts a proxy with more configuration. Defaults of the kit are merged into the tables of
    /// `toml`; a `[[route]]` to `upstream` is added if it has none.
    pub async fn with(upstream: &Upstream, toml: &str) -> Self {
        Self::at(upstream, toml, Clock::manual(Clock::System.now()), tempfile::tempdir().unwrap())
            .await
    }

    /// Starts a proxy for a site other than [`Upstream`], with `route` as further lines of its only
    /// route and `tables` ahead of it.
    pub async fn for_site(site: SocketAddr, route: &str, tables: &str) -> Self {
        let toml = format!("{tables}[[route]]\nupstream = \"http://{site}\"\n{route}");
        Self::with(&Upstream::start(), &toml).await
    }

    /// Starts a proxy with this clock and this state directory.
    pub async fn at(upstream: &Upstream, toml: &str, clock: Clock, directory: TempDir) -> Self {
        super::init_log();
        let file = directory.path().join("cloakroom.toml");
        std::fs::write(&file, configuration(upstream, toml)).unwrap();
        let state = directory.path().to_str().unwrap().to_owned();
        let environment = Environment::from([("STATE_DIRECTORY", state.as_str())]);
        let loaded = load(Some(&file), &environment, &Overrides::default());
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        let app = App::start(loaded.config, clock.clone())
            .unwrap_or_else(|error| panic!("{error}: {error:?}"));
        Self { app: Some(app), clock, directory, tasks: Tasks::new() }
    }

    /// Reloads another configuration. Returns the changed keys that need a restart.
    pub fn reload(&mut self, upstream: &Upstream, toml: &str) -> Result<Vec<&'static str>, String> {
        let file = self.directory.path().join("cloakroom.toml");
        std::fs::write(&file, configuration(upstream, toml)).unwrap();
        let state = self.directory.path().to_str().unwrap().to_owned();
        let environment = Environment::from([("STATE_DIRECTORY", state.as_str())]);
        let loaded = load(Some(&file), &environment, &Overrides::default());
        let config = loaded.map_err(|error| error.to_string())?.config;
        self.app.as_mut().unwrap().reload(config).map_err(|error| error.to_string())
    }

    fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// Returns the address of the first public listener.
    pub fn public(&self) -> SocketAddr {
        self.listener(0)
    }

    /// Returns the address of a public listener.
    pub fn listener(&self, index: usize) -> SocketAddr {
        tcp(&self.app().public[index])
    }

    /// Returns the address of the session API.
    pub fn api(&self) -> SocketAddr {
        tcp(&self.app().api)
    }

    /// Returns the address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        tcp(&self.app().admin)
    }

    pub fn metrics(&self) -> &Metrics {
        &self.app().shared.metrics
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Advances the clock.
    pub fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    /// Calls the session API with method, path and body, and the token of a request.
    pub async fn call(&self, token: &str, called: (&str, &str, &str)) -> ApiResponse {
        self.call_with(token, called, &[]).await
    }

    pub async fn call_with(
        &self,
        token: &str,
        (method, path, body): (&str, &str, &str),
        headers: &[(&str, &str)],
    ) -> ApiResponse {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (method, path, body) = (method.to_owned(), path.to_owned(), body.to_owned());
        let call = Call { method, path, headers, body };
        let url = format!("http://{}/_session", self.api());
        super::upstream::call(&url, token, &call, &self.tasks).await
    }

    /// Calls the session API with the service token, as a back office does.
    pub async fn service(&self, method: &str, path: &str, body: impl ToString) -> ApiResponse {
        let bearer = format!("Bearer {SERVICE_TOKEN}");
        let call = Call {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: vec![("authorization".to_owned(), bearer)],
            body: body.to_string(),
        };
        super::upstream::call(
            &format!("http://{}/_sessions", self.api()),
            "none",
            &call,
            &self.tasks,
        )
        .await
    }

    /// Sends a GET to the admin listener. Returns status and body.
    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        let target: Target = format!("http://{}", self.admin()).parse().unwrap();
        let pool = Pool::new(target, cloakroom::client::Config::default());
        let request = http::Request::get(path).body(cloakroom::body::Body::empty()).unwrap();
        let response = pool.fetch(request, &self.tasks, 1 << 20, PATIENCE).await.unwrap();
        (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    /// Returns its state directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Drains it. Returns false if the drain timeout elapsed.
    pub async fn stop(mut self) -> bool {
        self.app.take().unwrap().shutdown().await
    }
}

impl Drop for Cloakroom {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.shutdown_now();
        }
    }
}

fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        Address::Unix(path) => panic!("{} is not a TCP address", path.display()),
    }
}

fn configuration(upstream: &Upstream, toml: &str) -> String {
    let mut text = format!("{toml}\n");
    let mut section = |name: &str, body: String| {
        // A table of the test's own is completed with the keys that it does not set.
        let head = format!("[{name}]\n");
        match text.find(&head) {
            Some(at) => {
                let lines: Vec<_> = body
                    .lines()
                    .filter(|line| {
                        let key = line.split('=').next().unwrap_or_default().trim();
                        !text.lines().any(|own| own.trim_start().starts_with(key))
                    })
                    .map(str::to_owned)
                    .collect();
                text.insert_str(at + head.len(), &format!("{}\n", lines.join("\n")));
            }
            None => text += &format!("{head}{body}\n"),
        }
    };
    section("[listen]", "address = \"127.0.0.1:0\"".to_owned());
    // Sessions in cookies cannot be found by their id, so a service token is not valid there.
    let service = format!("service_token = \"{SERVICE_TOKEN}\"");
    let service = if toml.contains("\"cookie:\"") { "" } else { &service };
    section("api", format!("address = \"127.0.0.1:0\"\n{service}"));
    section("admin", "address = \"127.0.0.1:0\"".to_owned());
    section("session", format!("keys = [\"{KEY}\"]"));
    section("store", "url = \"memory:\"".to_owned());
    text = text.replace("UPSTREAM", &upstream.url());
    if !text.contains("[[route]]") {
        text += &format!("[[route]]\nupstream = \"{}\"\n", upstream.url());
    }
    text
}
