//! The demo: the proxy, and behind it a small site that shows what sessions are good for.
//!
//! It is composed as `run` is, of a configuration with the defaults, so what is seen is what a site
//! gets. All of it is on this machine's loopback, and nothing of it remains.

mod api;
mod directory;
mod exchange;
mod form;
mod html;
mod pages;
mod ports;
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
use crate::store::config::Backend;
use crate::time::Clock;

use directory::Directory;
use html::Page;
use ports::Ports;
use site::Site;

/// How the demo is to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The port to open in a browser, 0 for any that is free. Where none is given it is 8080, or a
    /// free one if that is taken.
    pub port: Option<u16>,
}

/// Why the demo does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no directory for its database.
    #[error("no directory for the demo's database can be made")]
    Directory(#[source] io::Error),
    /// The site has nowhere to listen.
    #[error("no port is free for the demo")]
    Port(#[source] io::Error),
    /// What the site is told does not make a configuration.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// The proxy does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Where to look could not be told.
    #[error("the address cannot be printed")]
    Print(#[source] io::Error),
    /// The drain's deadline came first.
    #[error("requests in flight were cut")]
    Cut,
}

/// A running demo. Dropping it ends it, and waits for nothing.
#[derive(Debug)]
pub struct Demo {
    app: Option<App>,
    /// The site's own.
    tasks: Tasks,
    site: Address,
    port: u16,
    api: Address,
    admin: Address,
    /// Goes last.
    _directory: Directory,
}

/// Runs the demo until `shutdown` completes, and says on standard output where it is.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let demo = Demo::start(options)?;
    writeln!(io::stdout(), "{}", demo.text()).map_err(Error::Print)?;
    shutdown.await;
    if demo.stop().await { Ok(()) } else { Err(Error::Cut) }
}

impl Demo {
    /// Starts the site on the current runtime, and the proxy on threads of its own.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(options: Options) -> Result<Self, Error> {
        let directory = Directory::make().map_err(Error::Directory)?;
        let tasks = Tasks::new();
        let site = start_site(&tasks).map_err(Error::Port)?;
        let config = configuration(&site, directory.path())?;
        let (app, port) = start_app(&config, Ports::new(options.port).map_err(Error::Port)?)?;
        let (api, admin) = (app.api.clone(), app.admin.clone());
        Ok(Self { app: Some(app), tasks, site, port, api, admin, _directory: directory })
    }

    /// The port to open.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What to open. Browsers take Secure cookies from `localhost` without TLS, and from no address.
    pub fn url(&self) -> String {
        format!("http://localhost:{}/", self.port)
    }

    /// What a person at a terminal is to know.
    pub fn text(&self) -> String {
        let Self { site, api, admin, .. } = self;
        let url = self.url();
        format!(
            "The demo is running. Open\n\n    {url}\n\nand try this:\n  \
             - Visit a few times, delete the cookie, and begin at one again.\n  \
             - Put something into the basket, log in under any name, and find it there.\n  \
             - Log in with a second browser too, and log it out under \"Devices\".\n  \
             - Look at the cookie before and after you log in: its value has changed.\n\n\
             What runs here, on this machine's loopback only:\n  \
             http://{site}  a site that knows no sessions\n  \
             http://{api}  the session API that it calls\n  \
             http://{admin}  /metrics, /live and /ready\n\n\
             Ctrl-C ends it, and nothing of it remains."
        )
    }

    /// Ends it, and removes what it kept. Whether all requests in flight ended in time.
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

/// Nobody waits long for the end of a demo.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// More than a browser opens, or a few.
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
                tracing::error!(%error, "the demo's site ended");
            }
        })
        .detach();
    Ok(address)
}

/// The defaults, and what the demo shows beyond them.
fn configuration(site: &Address, directory: &Path) -> Result<Config, Error> {
    // A store without files, and so a key that ends with the process.
    let environment = Environment::from([("CLOAKROOM_STORE_URL", "memory:")]);
    let overrides = Overrides { upstream: Some(format!("http://{site}")), listen: None };
    let mut config = config::load(None, &environment, &overrides)?.config;
    config.store.backend = Backend::Sqlite { path: directory.join("sessions.db") };
    config.policy.record_client = true;
    config.limits.drain_timeout = DRAIN_TIMEOUT;
    let exchange = config.proxy.routes.first().map(|route| RouteConfig {
        path: Page::Exchange.path().to_owned(),
        header_exchange: Some(3 * 1024),
        ..route.clone()
    });
    config.proxy.routes.extend(exchange);
    Ok(config)
}

/// Starts the proxy, at other ports as long as those to try are taken.
fn start_app(config: &Config, mut ports: Ports) -> Result<(App, u16), Error> {
    loop {
        match App::start(ports.put_into(config.clone()), Clock::System) {
            Ok(app) => return Ok((app, ports.public())),
            Err(StartError::Bind { address, source }) => {
                match ports.without(&address, &source).map_err(Error::Port)? {
                    Some(others) => ports = others,
                    None => return Err(StartError::Bind { address, source }.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
