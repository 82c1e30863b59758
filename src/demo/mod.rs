//! The demo: the proxy in front of a small site that shows what sessions can do.
//!
//! The proxy is the one that `run` starts, with the default configuration. It listens on the loopback
//! interface, and its data is removed at the end.

mod api;
mod code;
mod directory;
mod exchange;
mod html;
mod human;
mod page;
mod pages;
mod ports;
mod response;
mod site;

use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::app::{App, StartError};
use crate::config::{self, Config, ConfigError, Environment, Overrides};
use crate::proxy::config::RouteConfig;
use crate::server::{self, Address, ConnectionLimit, Limits, Protocol, Settings, Tasks};
use crate::session::policy::{ExchangeMode, HeaderExchange};
use crate::store::config::StoreKind;
use crate::time::Clock;

use directory::TempDirectory;
use page::Page;
use ports::Ports;
use site::Site;

/// Options of the demo.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The port to open in a browser, 0 for any free port. `None` means 8080, or a free port if that
    /// is taken.
    pub port: Option<u16>,
}

/// The reason why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of the database could not be created.
    #[error("failed to create a directory for the demo's database")]
    Directory(#[source] io::Error),
    /// No port is free for the site or the proxy.
    #[error("no free port for the demo")]
    Port(#[source] io::Error),
    /// The demo's configuration is invalid, which would be a bug.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The proxy failed to start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Standard output could not be written.
    #[error("failed to print the address")]
    Print(#[source] io::Error),
    /// The drain reached its deadline.
    #[error("requests in flight were aborted")]
    Aborted,
}

/// A running demo. Dropping it stops it without waiting for requests in flight.
#[derive(Debug)]
pub struct Demo {
    app: Option<App>,
    /// Owns the site's connections.
    tasks: Tasks,
    site: Address,
    port: u16,
    api: Address,
    admin: Address,
    /// Removed last, after the store has been closed.
    _directory: TempDirectory,
}

/// Runs the demo until `shutdown` completes. Prints its address on standard output.
pub(crate) async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let demo = Demo::start(options)?;
    writeln!(io::stdout(), "{}", demo.instructions()).map_err(Error::Print)?;
    shutdown.await;
    if demo.stop().await { Ok(()) } else { Err(Error::Aborted) }
}

impl Demo {
    /// Starts the site on the current runtime, and the proxy on its own threads.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime.
    pub fn start(options: Options) -> Result<Self, Error> {
        let directory = TempDirectory::create().map_err(Error::Directory)?;
        let tasks = Tasks::new();
        let site = start_site(&tasks).map_err(Error::Port)?;
        let config = configuration(&site, directory.path())?;
        let (app, port) = start_app(&config, Ports::new(options.port).map_err(Error::Port)?)?;
        let (api, admin) = (app.api.clone(), app.admin.clone());
        Ok(Self { app: Some(app), tasks, site, port, api, admin, _directory: directory })
    }

    /// Returns the port to open.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL to open. Without TLS, browsers accept Secure cookies from `localhost` but not
    /// from an IP address.
    pub fn url(&self) -> String {
        format!("http://localhost:{}/", self.port)
    }

    /// Returns the text for the terminal.
    pub fn instructions(&self) -> String {
        let Self { site, api, admin, .. } = self;
        let url = self.url();
        format!(
            "The demo is running. Open\n\n    {url}\n\nand try this:\n  \
             - Visit a few times, delete the cookie, and start at one again.\n  \
             - Add something to the basket, log in under any name, and find it there.\n  \
             - Send 20 requests at once, and see which counter has them all.\n  \
             - Log in with a second browser, and log it out under \"Devices\".\n  \
             - Compare the cookie before and after you log in: its value changes.\n\n\
             Running on this machine's loopback interface:\n  \
             http://{site}  the site, without sessions of its own\n  \
             http://{api}  the session API, which the site calls\n  \
             http://{admin}  /metrics, /live and /ready\n\n\
             In front of your own site:\n\n    cloakroom --upstream http://127.0.0.1:3000\n\n\
             Ctrl-C stops the demo and removes its data."
        )
    }

    /// Stops the demo and removes its data. Returns false if requests in flight were aborted.
    pub async fn stop(mut self) -> bool {
        let drained = match self.app.take() {
            Some(app) => app.shutdown().await,
            None => true,
        };
        self.tasks.drained(DRAIN_TIMEOUT).await && drained
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            app.shutdown_now();
        }
        self.tasks.drain();
    }
}

/// The time for requests in flight when the demo stops: shorter than the default, since a person
/// waits at a terminal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// More connections than a few browsers open.
const SITE_CONNECTIONS: usize = 1000;

/// Starts the site on any free port.
fn start_site(tasks: &Tasks) -> io::Result<Address> {
    let listener = server::bind(&Address::Tcp((Ipv4Addr::LOCALHOST, 0).into()), None)?;
    let address = listener.local_address().clone();
    let limits = Limits { drain_timeout: DRAIN_TIMEOUT, ..Limits::default() };
    let settings = Settings { protocol: Protocol::Http1, limits, ..Settings::default() };
    let limit = ConnectionLimit::new(SITE_CONNECTIONS);
    let site = Arc::new(Site { tasks: tasks.clone(), clock: Clock::System });
    let serving = server::serve(listener, settings, limit, site, tasks.clone());
    tasks
        .run(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the demo's site stopped");
            }
        })
        .detach();
    Ok(address)
}

/// Returns the default configuration with the settings that the pages need.
fn configuration(site: &Address, directory: &Path) -> Result<Config, Error> {
    // The memory store has no key file: the key is random and lost with the process.
    let environment = Environment::from([("CLOAKROOM_STORE_URL", "memory:")]);
    let overrides = Overrides { upstream: Some(format!("http://{site}")), listen: None };
    let mut config = config::load(None, &environment, &overrides)?.config;
    config.store.backend = StoreKind::Sqlite { path: directory.join("sessions.db") };
    config.policy.record_client = true;
    config.limits.drain_timeout = DRAIN_TIMEOUT;
    let exchange = config.proxy.routes.first().map(|route| RouteConfig {
        path: Page::Exchange.path().to_owned(),
        header_exchange: Some(HeaderExchange { mode: ExchangeMode::Whole, max_bytes: 3 * 1024 }),
        ..route.clone()
    });
    config.proxy.routes.extend(exchange);
    Ok(config)
}

/// Starts the proxy, on other ports if the first ones are taken.
fn start_app(config: &Config, mut ports: Ports) -> Result<(App, u16), Error> {
    loop {
        match App::start(ports.apply_to(config.clone()), Clock::System) {
            Ok(app) => return Ok((app, ports.public())),
            Err(StartError::Bind { address, setting, source }) => {
                match ports.after_error(&address, &source).map_err(Error::Port)? {
                    Some(others) => ports = others,
                    None => return Err(StartError::Bind { address, setting, source }.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
