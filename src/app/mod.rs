//! Composition: a configuration becomes listeners, a store, and workers that serve; it may be replaced
//! while they do; then it drains.
//!
//! One worker a core, each a thread with a runtime, upstream pools and, where the store is over the
//! network, a connection of its own. Every worker accepts on every listener. The admin listener is
//! the first worker's alone.

mod keys;
mod listeners;
mod reload;
mod stores;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::watch;
use tracing::{error, info, warn};

use self::listeners::{Doors, Listeners};
use self::stores::{Caching, Stores};
use self::worker::{Crew, Floors, Made, Worker, workers};
use crate::admin::Readiness;
use crate::api::{
    self,
    config::{instance_of, url_at},
};
use crate::client::{self, Target};
use crate::config::{Config, PrepareError};
use crate::metrics::{Metrics, SessionTokens};
use crate::net::host::{self, OwnNames};
use crate::net::trust::Trust;
use crate::proxy::{self, Site, SiteError};
use crate::random;
use crate::server::{Address, ConnectionLimit, Inherited, Tasks, TlsError};
use crate::session::key_ring::KeyRing;
use crate::session::peer::Instance;
use crate::sessions::{InFlight, Sessions, Shared};
use crate::store;
use crate::store::config::OnError;
use crate::store::redis::SurveyError;
use crate::store::sqlite::OpenError;
use crate::telemetry::Tracer;
use crate::time::Clock;

/// A running proxy.
pub struct App {
    workers: Vec<Worker>,
    tasks: Floors,
    predrain: Duration,
    drain_timeout: Duration,
    doors: Doors,
    readiness: Arc<Readiness>,
    /// What is served now.
    made: Made,
    api_url: String,
    /// The key ring of each reload, with what it is checked by.
    rings: watch::Sender<Arc<Shared>>,
    /// What the workers share; a reload replaces it, but for what is counted and in flight.
    pub shared: Arc<Shared>,
    /// Where clients reach it, in the configuration's order.
    pub public: Vec<Address>,
    /// Where upstreams reach it.
    pub api: Address,
    /// Where operators reach it.
    pub admin: Address,
    /// The files and directories that this start made.
    created: Vec<PathBuf>,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory or the key ring could not be had.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The database could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The directory of files could not be opened.
    #[error(transparent)]
    Files(#[from] store::file::OpenError),
    /// Another process caches the records of the database.
    #[error(
        "{0} is in use by another process with [store.cache]; only one process may use it then"
    )]
    Cached(PathBuf),
    /// Another process uses a database whose records are to be cached.
    #[error("{0} is in use by another process; [store.cache] needs it alone")]
    InUse(PathBuf),
    /// The lock of a database cannot be taken.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Redis refuses what is needed.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// A listener's certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no TLS to other instances.
    #[error("there is no TLS to other instances")]
    Peers(#[source] client::TlsError),
    /// There is no TLS to the collector of spans.
    #[error("there is no TLS to the collector")]
    Collector(#[source] client::TlsError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// A socket was handed over that no listener is configured for.
    #[error("a socket at {0} was handed over, and no listener is configured there")]
    NotWanted(Address),
    /// The site cannot be served.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A worker could not be started.
    #[error("a worker could not be started")]
    Worker(#[source] io::Error),
}

/// The store of a configuration, for a command that serves nothing.
pub fn open_sessions(config: &Config, clock: Clock) -> Result<Sessions, StartError> {
    let ring = config.prepare()?;
    let metrics = Metrics::new();
    let store = Stores::open(config, Caching::None, &clock, &Tasks::new(), &metrics)?
        .of_worker(0)
        .map_err(StartError::Worker)?;
    Ok(Sessions::new(store, share(config, ring, clock, metrics, instance(None))))
}

fn share(
    config: &Config,
    ring: Arc<KeyRing>,
    clock: Clock,
    metrics: Metrics,
    instance: Instance,
) -> Arc<Shared> {
    metrics.config_loaded(clock.now());
    Arc::new(Shared {
        attributes: config.cookie.clone(),
        policy: config.policy.clone(),
        clock,
        in_flight: Arc::new(InFlight::new(metrics.finished_requests().clone())),
        session_tokens: session_tokens(&metrics, &ring),
        ring,
        metrics,
        new_sessions: Arc::default(),
        instance,
    })
}

/// Resolves the counters of the keys of a ring.
fn session_tokens(metrics: &Metrics, ring: &KeyRing) -> SessionTokens {
    metrics.session_tokens(ring.fingerprints().map(|fingerprint| fingerprint.to_string()))
}

impl App {
    /// Opens the store, binds the listeners, and begins to serve.
    ///
    /// # Errors
    /// Whatever cannot be had is said before the first request is taken.
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(Inherited::default(), config, clock)
    }

    /// The same on sockets that somebody listens on already.
    pub fn start_on(
        inherited: Inherited,
        config: Config,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let mut created = config.made_at_start();
        created.retain(|path| !path.exists());
        let ring = config.prepare()?;
        let tasks = Floors::new();
        let metrics = Metrics::new();
        let stores = Stores::open(&config, Caching::Configured, &clock, &tasks.inner, &metrics)?;
        let readiness = Arc::new(Readiness::new(stores.health(), needs_store(&config)));
        let listeners = Listeners::bind(&config, inherited)?;
        let doors = Doors::open(&config, &listeners, &metrics)?;
        let api_url = url_of(&config, listeners.api());
        let instance = instance(dialled_at(&config, &api_url));
        let shared = share(&config, ring, clock, metrics, instance);
        let site = site(&config, &api_url, &shared.metrics)?;
        let api = api_settings(&config, &api_url)?;
        let tracer = tracer(&config, &shared.metrics)?;
        let config = Arc::new(config);
        let made = Made { config, site, shared: Arc::clone(&shared), api, tracer };
        let (rings, of_reloads) = watch::channel(Arc::clone(&shared));
        let crew = Arc::new(Crew {
            rings: of_reloads,
            stores,
            readiness: Arc::clone(&readiness),
            doors: doors.clone(),
            limits: made.config.limits.clone(),
            admin_names: admin_names(&made.config, &api_url),
            public_limit: public_limit(&made.config),
            api_limit: ConnectionLimit::new(made.config.limits.connections),
        });
        let workers = (0..workers())
            .map(|index| crew.start_worker(index, &made, &listeners, &tasks))
            .collect::<io::Result<_>>()
            .map_err(StartError::Worker)?;
        created.retain(|path| path.exists());
        Ok(Self {
            workers,
            tasks,
            predrain: made.config.limits.predrain,
            drain_timeout: made.config.limits.drain_timeout,
            doors,
            readiness,
            made,
            api_url,
            rings,
            shared,
            public: listeners.public(),
            api: listeners.api().clone(),
            admin: listeners.admin().clone(),
            created,
        })
    }

    /// Serves what another configuration says from the next request on; requests that have begun go
    /// on as they were. Answers the keys that have changed and need a restart: they stay as they
    /// were.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn reload(&mut self, wanted: Config) -> Result<Vec<&'static str>, StartError> {
        let (config, left) = reload::onto(&self.made.config, wanted);
        // All that can fail comes first.
        let running = &*self.shared;
        let ring = if config.keys.is_for_this_process() {
            Arc::clone(&running.ring)
        } else {
            config.prepare()?
        };
        let site = site(&config, &self.api_url, &running.metrics)?;
        let certificates = self.doors.read_certificates(&config)?;
        let api = api_settings(&config, &self.api_url)?;
        self.shared = Arc::new(Shared {
            session_tokens: session_tokens(&running.metrics, &ring),
            ring,
            attributes: config.cookie.clone(),
            policy: config.policy.clone(),
            clock: running.clock.clone(),
            metrics: running.metrics.clone(),
            new_sessions: Arc::clone(&running.new_sessions),
            in_flight: Arc::clone(&running.in_flight),
            instance: running.instance.clone(),
        });
        let shared = Arc::clone(&self.shared);
        let (config, tracer) = (Arc::new(config), self.made.tracer.clone());
        self.made = Made { config, site, shared, api, tracer };
        self.readiness.require_store(needs_store(&self.made.config));
        Doors::show(certificates);
        let certificates = self.doors.certificates(&self.public, &self.api);
        self.shared.metrics.set_certificates(certificates);
        for worker in &self.workers {
            worker.serve_anew(&self.made);
        }
        self.rings.send_replace(Arc::clone(&self.shared));
        Ok(left)
    }

    /// Says for as long as configured that it is going to end, and has clients connect anew; then
    /// begins the drain, of the public side first, waits for what is in flight, no longer than the
    /// drain's deadline, and ends the workers. Whether all of it ended in time.
    pub async fn stop(self) -> bool {
        self.tasks.public.announce_shutdown();
        tokio::time::sleep(self.predrain).await;
        let drained = self.tasks.drained(self.drain_timeout).await;
        if !drained {
            warn!("the drain's time is over; what is still in flight is cut");
        }
        for worker in self.workers {
            if worker.stop().is_err() {
                error!("a worker panicked");
            }
        }
        drained
    }

    /// Begins the drain and waits for nothing: the workers end by themselves.
    pub fn abandon(self) {
        self.tasks.public.drain();
        self.tasks.inner.drain();
    }

    /// Logs where it serves and whom, where its state is, and which files and directories this start made.
    pub fn announce(&self) {
        let config = &self.made.config;
        let mut upstreams: Vec<String> = Vec::new();
        for upstream in config.proxy.routes.iter().flat_map(|route| &route.upstreams) {
            let upstream = upstream.to_string();
            if !upstreams.contains(&upstream) {
                upstreams.push(upstream);
            }
        }
        let joined = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(", "));
        let created = self.created.iter().map(|path| path.display().to_string()).collect();
        let state_directory = config.state_directory.as_ref();
        let state_directory = state_directory.map(|path| path.display().to_string());
        info!(
            public = self.public.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            api = %self.api,
            admin = %self.admin,
            upstream = joined(upstreams),
            state_directory,
            created = joined(created),
            "serving"
        );
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Whether requests fail without the store: not if every route with sessions says
/// `on_error = "anonymous"`.
fn needs_store(config: &Config) -> bool {
    let fails = |route: &proxy::config::RouteConfig| {
        route.session != proxy::config::Session::Off && route.on_error == OnError::Fail
    };
    config.proxy.routes.iter().any(fails)
}

/// Returns the connection limit of the public listeners. Trusted proxies are exempt from the limit per address, since
/// many clients share theirs.
fn public_limit(config: &Config) -> ConnectionLimit {
    let limit = ConnectionLimit::new(config.limits.connections);
    match config.limits.connections_per_address {
        None => limit,
        Some(per_address) => limit.with_per_address_limit(per_address, trusted(config)),
    }
}

fn trusted(config: &Config) -> Trust {
    Trust::new(config.proxy.trusted_proxies.clone())
}

fn site(config: &Config, api_url: &str, metrics: &Metrics) -> Result<Arc<Site>, SiteError> {
    let body_idle_timeout = config.limits.body_idle_timeout;
    let (proxy, prefix) = (config.proxy.clone(), &config.api.prefix);
    Site::new(proxy, prefix, api_url, body_idle_timeout, metrics).map(Arc::new)
}

fn peers(config: &Config) -> Result<Option<Arc<client::Tls>>, StartError> {
    let tls = config.api.tls.as_ref().map(|tls| client::Tls::open(&tls.instances));
    Ok(tls.transpose().map_err(StartError::Peers)?.map(Arc::new))
}

fn tracer(config: &Config, metrics: &Metrics) -> Result<Option<Arc<Tracer>>, StartError> {
    let tracer = config.telemetry.clone().map(|config| Tracer::new(config, metrics.clone()));
    Ok(tracer.transpose().map_err(StartError::Collector)?.map(Arc::new))
}

/// The names that lead to the API, as upstreams and other instances are told.
fn told_names(config: &Config, api_url: &str) -> impl Iterator<Item = String> {
    let instance = config.api.instance_url.as_ref().map(Target::authority);
    let instance = instance.map(|authority| host::name(&authority).to_owned());
    host::of_url(api_url).map(str::to_owned).into_iter().chain(instance)
}

fn api_settings(config: &Config, api_url: &str) -> Result<Arc<api::Settings>, StartError> {
    let names = config.api.hosts.iter().cloned().chain(told_names(config, api_url));
    let names = OwnNames::new(names, "api.hosts");
    let body_idle_timeout = config.limits.body_idle_timeout;
    Ok(Arc::new(api::Settings::new(&config.api, body_idle_timeout, peers(config)?, names)))
}

fn admin_names(config: &Config, api_url: &str) -> Vec<String> {
    config.admin.hosts.iter().cloned().chain(told_names(config, api_url)).collect()
}

/// What upstreams are told: with port 0 in the configuration, the port that it became.
fn url_of(config: &Config, bound: &Address) -> String {
    let at = |address| url_at(address, config.api.scheme(), &config.api.prefix);
    if at(&config.api.address).as_ref() == Some(&config.api.url)
        && let Some(url) = at(bound)
    {
        return url;
    }
    config.api.url.clone()
}

/// Where other instances dial this one: nowhere where it does not share its store.
fn dialled_at(config: &Config, api_url: &str) -> Option<Target> {
    let is_shared = config.store.backend.is_shared();
    is_shared
        .then(|| {
            config.api.instance_url.clone().or_else(|| instance_of(api_url, config.api.scheme()))
        })
        .flatten()
}

/// This process, as its request tokens name it.
fn instance(dialled_at: Option<Target>) -> Instance {
    let authority = dialled_at.map_or_else(String::new, |target| target.authority());
    Instance { number: u64::from_be_bytes(random::bytes()), authority }
}
