//! The demo: the proxy before a built-in site, so that everything can be tried in a browser.
//!
//! The site is an upstream like any other: it reads `X-Session-Url` and `X-Session-Token` and calls
//! the session API over HTTP. It needs no script in the browser.

mod api;
mod form;
mod pages;
mod site;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::app::{App, StartError};
use crate::config::{self, ConfigError, Environment, Overrides};
use crate::proxy::config::RouteConfig;
use crate::random;
use crate::server::{self, Address, Limits, Protocol, Settings, Tasks};
use crate::time::Clock;

/// A running demo.
#[derive(Debug)]
pub struct Demo {
    app: App,
    tasks: Tasks,
    limits: Limits,
    directory: PathBuf,
}

/// Why a demo does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory or its site's listener could not be had.
    #[error("the demo cannot be set up")]
    Io(#[from] io::Error),
    /// Its configuration is not right; that is our fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its proxy does not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Where the API and the admin listener usually are.
const USUAL: [u16; 2] = [8081, 8082];

impl Demo {
    /// Starts proxy, API and site on loopback: on `port` and the usual ports, or on free ones where
    /// those are taken; with a store and a key of its own, in a directory that goes with it.
    pub fn start(port: u16) -> Result<Self, Error> {
        let directory = std::env::temp_dir()
            .join(format!("cloakroom-demo-{:016x}", u64::from_be_bytes(random::bytes())));
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let started = Self::start_in(&directory, port);
        if started.is_err() {
            // What is left behind is empty and private.
            let _ = fs::remove_dir_all(&directory);
        }
        started
    }

    fn start_in(directory: &std::path::Path, port: u16) -> Result<Self, Error> {
        let limits = Limits::default();
        let tasks = Tasks::new();
        let upstream =
            site::serve(&tasks, Settings { protocol: Protocol::Http1, limits: limits.clone() })?;
        let [api, admin] = USUAL.map(free_or_any);
        let environment = Environment::from([
            ("STATE_DIRECTORY", directory.to_string_lossy().as_ref()),
            ("CLOAKROOM_LISTEN_ADDRESS", &free_or_any(port)),
            ("CLOAKROOM_API_ADDRESS", &api),
            ("CLOAKROOM_ADMIN_ADDRESS", &admin),
            ("CLOAKROOM_SESSION_RECORD_CLIENT", "true"),
        ]);
        let overrides = Overrides { upstream: Some(format!("http://{upstream}")), listen: None };
        let mut config = config::load(None, &environment, &overrides)?.config;
        let exchange = config.proxy.routes.iter().map(|route| RouteConfig {
            path: site::EXCHANGE.to_owned(),
            header_exchange: Some(RouteConfig::DEFAULT_HEADER_EXCHANGE_MAX_BYTES),
            ..route.clone()
        });
        let exchange: Vec<_> = exchange.collect();
        config.proxy.routes.extend(exchange);
        let app = App::start(config, Clock::System)?;
        Ok(Self { app, tasks, limits, directory: directory.to_owned() })
    }

    /// The address to open.
    pub fn url(&self) -> String {
        match self.app.public.first() {
            Some(Address::Tcp(address)) => format!("http://localhost:{}/", address.port()),
            _ => String::new(),
        }
    }

    /// What to try, for the terminal.
    pub fn text(&self) -> String {
        format!(
            "Open {url}\n\n\
             Behind it is a small site that knows no sessions; Cloakroom stands before it.\n  \
             * Reload: the counter lives in your session. Delete the cookie: it begins again.\n  \
             * Log in: the cookie changes, and the old one opens nothing.\n  \
             * Open a second browser, log in by the same name, and look at \"Your devices\".\n  \
             * Give the session a lifetime of its own, and see when it ends.\n\n\
             The session API: http://{api}/_session (for the site), metrics: http://{admin}/metrics\n\
             Ctrl-C ends it, and nothing is kept.",
            url = self.url(),
            api = self.app.api,
            admin = self.app.admin,
        )
    }

    /// Ends it, and removes what it kept. Whether all requests in flight ended in time.
    pub async fn stop(self) -> bool {
        let drained = self.app.stop().await && self.tasks.drained(self.limits.drain_timeout).await;
        // What cannot be removed is private, and in the directory for what is temporary.
        let _ = fs::remove_dir_all(&self.directory);
        drained
    }
}

/// This port on loopback, or any where it is taken.
fn free_or_any(port: u16) -> String {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let port = if TcpListener::bind(address).is_ok() { port } else { 0 };
    format!("127.0.0.1:{port}")
}

/// The site's connections are the proxy's.
fn connections() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(Limits::default().connections))
}

/// Listens on a free port, and serves `handler` there.
fn listen<H: server::Handler>(
    handler: H,
    settings: Settings,
    tasks: &Tasks,
) -> io::Result<Address> {
    let listener = server::bind(&Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), None)?;
    let address = listener.local_address().clone();
    let serving =
        server::serve(listener, settings, connections(), Arc::new(handler), tasks.clone());
    tasks
        .run(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the demo's site ended");
            }
        })
        .detach();
    Ok(address)
}
