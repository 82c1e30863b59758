//! Composition of the process: opens the store, binds the listeners, starts the workers; reloads the
//! configuration and shuts down.
//!
//! There is one worker per core: a thread with a runtime, upstream pools and, for a store on the
//! network, a store connection of its own. Every worker accepts on every listener, except that only the
//! first serves the admin listener.

mod clock;
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

use self::listeners::{ListenerRoles, Listeners};
use self::stores::{Caching, Stores};
use self::worker::{LoadedConfig, ShutdownPhases, Worker, WorkerContext, worker_count};
use crate::admin::{self, Readiness};
use crate::api::{
    self,
    config::{instance_of, url_at},
};
use crate::audit::{self, Audit};
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
use crate::store::url::StoreUrl;
use crate::telemetry::Tracer;
use crate::time::Clock;

/// A running proxy.
pub struct App {
    workers: Vec<Worker>,
    tasks: ShutdownPhases,
    predrain: Duration,
    drain_timeout: Duration,
    listener_roles: ListenerRoles,
    readiness: Arc<Readiness>,
    admin_state: Arc<admin::State>,
    /// The current configuration.
    loaded: LoadedConfig,
    api_url: String,
    /// Publishes the key ring on each reload.
    rings: watch::Sender<Arc<Shared>>,
    /// State that the workers share. A reload replaces it, except for metrics and requests in flight.
    pub shared: Arc<Shared>,
    /// Addresses of the public listeners, in the order of the configuration.
    pub public: Vec<Address>,
    /// Address of the session API.
    pub api: Address,
    /// Address of the admin listener.
    pub admin: Address,
    /// Files and directories that this start created.
    created: Vec<PathBuf>,
    _audit_flush: Option<audit::FlushGuard>,
}

/// The reason why the proxy fails to start or reload.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory or the keys cannot be prepared.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The database cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The directory of session files cannot be opened.
    #[error(transparent)]
    Files(#[from] store::file::OpenError),
    /// Another process caches records of the database.
    #[error("{0} is in use by another process with caching enabled")]
    Cached(PathBuf),
    /// Another process uses a database that requires exclusive use because of caching.
    #[error("{0} is in use by another process; [store.cache] requires exclusive use")]
    InUse(PathBuf),
    /// The lock file of a database cannot be locked.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Redis denies required commands.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// The certificates of a listener cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS to other instances cannot be configured.
    #[error("failed to configure TLS to other instances")]
    Peers(#[source] client::TlsError),
    /// TLS to the trace collector cannot be configured.
    #[error("failed to configure TLS to the trace collector")]
    Collector(#[source] client::TlsError),
    /// The file of the audit trail cannot be opened.
    #[error("cannot open {path} ([audit] path)")]
    Audit {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({setting})")]
    Bind {
        /// The address.
        address: Address,
        /// Where it is set.
        setting: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The service manager passed a socket without a configured listener.
    #[error("inherited socket {0} matches no configured listener")]
    UnexpectedSocket(Address),
    /// The site cannot be served.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A worker thread cannot be started.
    #[error("failed to start a worker")]
    Worker(#[source] io::Error),
}

/// Binds the listeners of a configuration, and closes them again.
///
/// # Errors
/// An address cannot be bound.
pub(crate) fn try_listeners(config: &Config) -> Result<(), StartError> {
    Listeners::bind(config, Inherited::default()).map(drop)
}

/// Opens the sessions of a configuration, for a command that does not serve requests.
pub(crate) fn open_sessions(config: &Config, clock: Clock) -> Result<Sessions, StartError> {
    let ring = config.prepare()?;
    let (audit, _) = open_audit(&audit::Config::default(), &clock)?;
    let store = Stores::open(config, Caching::Disabled, &clock, &Tasks::new(), &audit)?
        .for_worker(0)
        .map_err(StartError::Worker)?;
    Ok(Sessions::new(store, share(config, ring, clock, audit, new_instance(None))))
}

fn share(
    config: &Config,
    ring: Arc<KeyRing>,
    clock: Clock,
    audit: Audit,
    instance: Instance,
) -> Arc<Shared> {
    let metrics = audit.metrics().clone();
    metrics.config_loaded(clock.now());
    Arc::new(Shared {
        attributes: config.cookie.clone(),
        policy: config.policy.clone(),
        clock,
        in_flight: Arc::new(InFlight::new(metrics.finished_requests().clone())),
        session_tokens: session_tokens(&metrics, &ring),
        ring,
        metrics,
        audit,
        new_sessions: Arc::default(),
        turns: Arc::default(),
        instance,
    })
}

fn open_audit(
    config: &audit::Config,
    clock: &Clock,
) -> Result<(Audit, Option<audit::FlushGuard>), StartError> {
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Audit::open(config, instance, Metrics::new(), clock.clone()).map_err(|source| {
        let path = config.path.clone().unwrap_or_default();
        StartError::Audit { path, source }
    })
}

/// Prepares what the services of a start are created from.
fn load(config: Config, api_url: &str, shared: Arc<Shared>) -> Result<LoadedConfig, StartError> {
    let site = site(&config, api_url, &shared.metrics)?;
    let api = api_settings(&config, api_url)?;
    let tracer = tracer(&config, &shared.metrics)?;
    let admin = admin_settings(&config);
    Ok(LoadedConfig { config: Arc::new(config), site, shared, api, admin, tracer })
}

/// Returns the token counters for the keys of a ring.
fn session_tokens(metrics: &Metrics, ring: &KeyRing) -> SessionTokens {
    metrics.session_tokens(ring.fingerprints().map(|fingerprint| fingerprint.to_string()))
}

impl App {
    /// Opens the store, binds the listeners, and starts serving.
    ///
    /// # Errors
    /// Fails before the first request is accepted.
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(Inherited::default(), config, clock)
    }

    /// Starts like [`Self::start`], on inherited sockets if they match configured listeners.
    pub(crate) fn start_on(
        inherited: Inherited,
        config: Config,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let mut created = config.created_at_start();
        created.retain(|path| !path.exists());
        let ring = config.prepare()?;
        let tasks = ShutdownPhases::new();
        let (audit, audit_flush) = open_audit(&config.audit, &clock)?;
        // Opened before the listeners are bound, so that no port accepts connections that cannot be
        // served.
        let stores = Stores::open(&config, Caching::Configured, &clock, &tasks.inner, &audit)?;
        let readiness = Arc::new(Readiness::new(stores.health(), needs_store(&config)));
        let listeners = Listeners::bind(&config, inherited)?;
        let listener_roles = ListenerRoles::open(&config, &listeners, audit.metrics())?;
        // After binding, because port 0 is known only now.
        let api_url = api_url(&config, listeners.api());
        let instance = new_instance(instance_target(&config, &api_url));
        let shared = share(&config, ring, clock, audit, instance);
        let loaded = load(config, &api_url, Arc::clone(&shared))?;
        loaded.admin.log_availability();
        let admin_state = Arc::new(admin::State::new(&shared.metrics));
        let (rings, reloaded_rings) = watch::channel(Arc::clone(&shared));
        let context = Arc::new(WorkerContext {
            rings: reloaded_rings,
            stores,
            readiness: Arc::clone(&readiness),
            listener_roles: listener_roles.clone(),
            limits: loaded.config.limits.clone(),
            admin_names: admin_names(&loaded.config, &api_url),
            admin_state: Arc::clone(&admin_state),
            public_limit: public_limit(&loaded.config),
            api_limit: ConnectionLimit::new(loaded.config.limits.connections),
        });
        let workers = (0..worker_count())
            .map(|index| context.start_worker(index, &loaded, &listeners, &tasks))
            .collect::<io::Result<_>>()
            .map_err(StartError::Worker)?;
        created.retain(|path| path.exists());
        Ok(Self {
            workers,
            tasks,
            predrain: loaded.config.limits.predrain,
            drain_timeout: loaded.config.limits.drain_timeout,
            listener_roles,
            readiness,
            admin_state,
            loaded,
            api_url,
            rings,
            shared,
            public: listeners.public(),
            api: listeners.api().clone(),
            admin: listeners.admin().clone(),
            created,
            _audit_flush: audit_flush,
        })
    }

    /// Applies another configuration from the next request on; requests in flight keep the previous one.
    /// Returns the keys that have changed but require a restart; their running values are kept.
    ///
    /// # Errors
    /// If it fails, nothing has changed.
    pub fn reload(&mut self, wanted: Config) -> Result<Vec<&'static str>, StartError> {
        let (config, kept) = reload::merge(&self.loaded.config, wanted);
        // Everything that can fail comes before the first change.
        let running = &*self.shared;
        // Preparing would generate another key in memory, which would log all visitors out.
        let ring = if config.keys.is_for_this_process() {
            Arc::clone(&running.ring)
        } else {
            config.prepare()?
        };
        let site = site(&config, &self.api_url, &running.metrics)?;
        let certificates = self.listener_roles.read_certificates(&config)?;
        let api = api_settings(&config, &self.api_url)?;
        self.shared = Arc::new(Shared {
            session_tokens: session_tokens(&running.metrics, &ring),
            ring,
            attributes: config.cookie.clone(),
            policy: config.policy.clone(),
            clock: running.clock.clone(),
            metrics: running.metrics.clone(),
            audit: running.audit.clone(),
            new_sessions: Arc::clone(&running.new_sessions),
            in_flight: Arc::clone(&running.in_flight),
            turns: Arc::clone(&running.turns),
            instance: running.instance.clone(),
        });
        let shared = Arc::clone(&self.shared);
        let admin = admin_settings(&config);
        self.admin_state.tokens_changed(&self.loaded.admin, &admin);
        let (config, tracer) = (Arc::new(config), self.loaded.tracer.clone());
        self.loaded = LoadedConfig { config, site, shared, api, admin, tracer };
        self.readiness.require_store(needs_store(&self.loaded.config));
        ListenerRoles::install_certificates(certificates);
        let certificates = self.listener_roles.certificates(&self.public, &self.api, &self.admin);
        listeners::warn_of_expiry(&certificates);
        self.shared.metrics.set_certificates(certificates);
        // Worker by worker: for a moment, some serve the new configuration and others the old.
        for worker in &self.workers {
            worker.reload(&self.loaded);
        }
        self.rings.send_replace(Arc::clone(&self.shared));
        Ok(kept)
    }

    /// Opens the file of the audit trail again, after it was renamed. If that fails, the old one is kept.
    pub(crate) fn reopen_audit(&self) {
        if let Err(error) = self.shared.audit.reopen() {
            error!(%error, "cannot open the file of the audit trail again; lines go to the old one");
        }
    }

    /// Records that a reload succeeded.
    pub(crate) fn reload_succeeded(&self) {
        self.shared.metrics.config_reloaded(self.shared.clock.now());
        self.admin_state.reload_succeeded();
    }

    /// Records that a reload failed, of a configuration that may have been invalid, with one cause per line.
    pub(crate) fn reload_failed(&self, causes: &str) {
        self.shared.metrics.config_reload_failed();
        self.admin_state.reload_failed(causes, self.shared.clock.now());
    }

    /// Shuts down gracefully: announces it for the configured time, so that clients reconnect elsewhere;
    /// then drains the public side, the API and the admin listener within the drain timeout, and stops
    /// the workers. Returns whether all requests completed in time.
    pub async fn shutdown(self) -> bool {
        // Readiness fails and responses close their connections, so that load balancers move on
        // before listeners close.
        self.shared.metrics.drain_started();
        self.tasks.public.announce_shutdown();
        tokio::time::sleep(self.predrain).await;
        let drained = self.tasks.drain(self.drain_timeout).await;
        if !drained {
            warn!("drain timeout elapsed; aborting in-flight requests");
        }
        for worker in self.workers {
            if worker.stop().is_err() {
                error!("worker panicked");
            }
        }
        drained
    }

    /// Starts the drain without waiting for it. The workers end by themselves.
    pub fn shutdown_now(self) {
        self.shared.metrics.drain_started();
        self.tasks.public.drain();
        self.tasks.inner.drain();
    }

    /// Logs the addresses, the upstreams, the state directory, and what this start created.
    pub(crate) fn announce(&self) {
        let config = &self.loaded.config;
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
            store = store_url(config),
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

/// Returns whether requests fail if the store is unavailable: not if every route with sessions has
/// `on_error = "anonymous"`.
fn needs_store(config: &Config) -> bool {
    let fails = |route: &proxy::config::RouteConfig| {
        route.session != proxy::config::Session::Off && route.on_error == OnError::Fail
    };
    config.proxy.routes.iter().any(fails)
}

/// Returns the limit on public connections. The limit per address does not apply to trusted proxies,
/// which connect for many clients.
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

/// Returns the host names of the API that upstreams and other instances receive.
fn advertised_names(config: &Config, api_url: &str) -> impl Iterator<Item = String> {
    let instance = config.api.instance_url.as_ref().map(Target::authority);
    let instance = instance.map(|authority| host::name(&authority).to_owned());
    host::of_url(api_url).map(str::to_owned).into_iter().chain(instance)
}

fn api_settings(config: &Config, api_url: &str) -> Result<Arc<api::Settings>, StartError> {
    let names = config.api.hosts.iter().cloned().chain(advertised_names(config, api_url));
    let names = OwnNames::new(names, "api.hosts");
    let body_idle_timeout = config.limits.body_idle_timeout;
    Ok(Arc::new(api::Settings::new(&config.api, body_idle_timeout, peers(config)?, names)))
}

/// Returns the settings of the admin pages. Without a token that cannot be read or created, they are off.
fn admin_settings(config: &Config) -> Arc<admin::Settings> {
    let tokens = config.admin_tokens().unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        warn!(error, "no admin token; set [admin] token");
        admin::config::Tokens::default()
    });
    Arc::new(admin::Settings::new(
        &config.admin,
        tokens,
        admin::StoreName { kind: config.store.backend.name(), url: store_url(config) },
        config.limits.connections,
        routing(config),
    ))
}

/// Returns the URL of the store, without the user and the password.
fn store_url(config: &Config) -> String {
    StoreUrl::of(&config.store.backend).to_string()
}

fn routing(config: &Config) -> admin::Routing {
    let routes = config.proxy.routes.iter();
    let urls = routes.map(|route| route.upstreams.iter().map(ToString::to_string).collect());
    admin::Routing::new(urls.collect())
}

fn admin_names(config: &Config, api_url: &str) -> Vec<String> {
    config.admin.hosts.iter().cloned().chain(advertised_names(config, api_url)).collect()
}

/// Returns the URL of the API for upstreams. A configured port 0 is replaced by the bound port.
fn api_url(config: &Config, bound: &Address) -> String {
    let at = |address| url_at(address, config.api.scheme(), &config.api.prefix);
    if at(&config.api.address).as_ref() == Some(&config.api.url)
        && let Some(url) = at(bound)
    {
        return url;
    }
    config.api.url.clone()
}

/// Returns the target at which other instances reach this one; `None` if its store is not shared.
fn instance_target(config: &Config, api_url: &str) -> Option<Target> {
    let is_shared = config.store.backend.is_shared();
    is_shared
        .then(|| {
            config.api.instance_url.clone().or_else(|| instance_of(api_url, config.api.scheme()))
        })
        .flatten()
}

/// Returns a new identity of this process, for its request tokens.
fn new_instance(target: Option<Target>) -> Instance {
    let authority = target.map_or_else(String::new, |target| target.authority());
    Instance { number: u64::from_be_bytes(random::bytes()), authority }
}
