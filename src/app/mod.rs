//! Composition: a configuration becomes listeners, a store, and workers that serve; then it drains.
//!
//! One worker a core, each a thread with a runtime, upstream pools and, where the store is over the
//! network, a connection of its own. Every worker accepts on every listener. The admin listener is
//! the first worker's alone.

mod stores;

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::{Semaphore, oneshot};
use tracing::{debug, error, info, warn};

use self::stores::{Caching, Stores};
use crate::admin::Admin;
use crate::api::Api;
use crate::api::config::instance_of;
use crate::client::Target;
use crate::config::{Config, Listen, PrepareError, Role};
use crate::metrics::Metrics;
use crate::proxy::{Proxy, Redirect, Site, SiteError};
use crate::random;
use crate::scheme::Scheme;
use crate::server::{self, Address, BoundListener, Protocol, Settings, Tasks, Tls, TlsError};
use crate::session::key_ring::KeyRing;
use crate::session::peer::Instance;
use crate::sessions::{InFlight, Sessions, Shared};
use crate::store;
use crate::store::redis::SurveyError;
use crate::store::sqlite::OpenError;
use crate::time::Clock;

/// A running proxy.
#[derive(Debug)]
pub struct App {
    workers: Vec<Worker>,
    tasks: Floors,
    drain_timeout: Duration,
    /// What the workers share.
    pub shared: Arc<Shared>,
    /// Where clients reach it, in the configuration's order.
    pub public: Vec<Address>,
    /// Where upstreams reach it.
    pub api: Address,
    /// Where operators reach it.
    pub admin: Address,
}

/// The tasks of the process, in the order in which they are drained: requests in flight still call
/// the session API, and operators still ask how it goes, when clients are taken no more.
#[derive(Clone, Debug)]
struct Floors {
    /// Clients, and the upstreams that their requests go to.
    public: Tasks,
    /// The API, the admin listener, and the workers themselves.
    inner: Tasks,
}

impl Floors {
    fn new() -> Self {
        Self { public: Tasks::new(), inner: Tasks::new() }
    }

    /// The same tasks, for another worker.
    fn sibling(&self) -> Self {
        Self { public: self.public.sibling(), inner: self.inner.sibling() }
    }

    /// Drains one after the other, both no longer than `deadline`. Whether all ended in time.
    async fn drained(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let public = self.public.drained(deadline).await;
        let left = end.saturating_duration_since(Instant::now());
        self.inner.drained(left).await && public
    }
}

#[derive(Debug)]
struct Worker {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
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
    /// Another process keeps records of the same database.
    #[error("another process caches the sessions of {path}, and one alone may")]
    Cached {
        /// The database.
        path: PathBuf,
        /// Why there is no lock.
        source: io::Error,
    },
    /// Redis refuses what is needed.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// A listener's certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// The site cannot be served.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A worker could not be started.
    #[error("a worker could not be started")]
    Worker(#[source] io::Error),
}

/// How many workers there are: one a core.
fn workers() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The store of a configuration, for a command that serves nothing.
pub fn open_sessions(config: &Config, clock: Clock) -> Result<Sessions, StartError> {
    let ring = config.prepare()?;
    let home = Stores::open(config, Caching::None, &clock, &Tasks::new())?
        .of_worker(0)
        .ok_or_else(|| StartError::Worker(io::ErrorKind::Other.into()))?;
    Ok(Sessions::new(home, share(config, ring, clock, instance(None))))
}

fn share(config: &Config, ring: Arc<KeyRing>, clock: Clock, instance: Instance) -> Arc<Shared> {
    Arc::new(Shared {
        ring,
        attributes: config.cookie.clone(),
        policy: config.policy.clone(),
        clock,
        metrics: Metrics::new(),
        in_flight: InFlight::default(),
        instance,
    })
}

/// The listeners of a process, bound once.
struct Listeners {
    public: Vec<BoundListener>,
    api: BoundListener,
    admin: BoundListener,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let bind = |address: &Address, mode| {
            server::bind(address, mode)
                .map_err(|source| StartError::Bind { address: address.clone(), source })
        };
        Ok(Self {
            public: config
                .listen
                .iter()
                .map(|listen| bind(&listen.address, listen.socket_mode))
                .collect::<Result<_, _>>()?,
            api: bind(&config.api.address, None)?,
            admin: bind(&config.admin.address, None)?,
        })
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            public: self.public.iter().map(BoundListener::try_clone).collect::<Result<_, _>>()?,
            api: self.api.try_clone()?,
            admin: self.admin.try_clone()?,
        })
    }
}

/// What a worker takes into its thread.
struct Crew {
    config: Arc<Config>,
    site: Arc<Site>,
    stores: Arc<Stores>,
    shared: Arc<Shared>,
    roles: Vec<Serves>,
    public_connections: Arc<Semaphore>,
    api_connections: Arc<Semaphore>,
}

/// What a public listener serves.
#[derive(Clone, Debug)]
enum Serves {
    Site(Protocol),
    RedirectTo(u16),
}

/// What the public listeners serve, in the configuration's order.
fn roles(config: &Config, listeners: &Listeners) -> Result<Vec<Serves>, StartError> {
    let bound = config.listen.iter().zip(&listeners.public);
    let tls_port = bound.clone().find_map(|(listen, bound)| match bound.local_address() {
        Address::Tcp(address) if matches!(listen.role, Role::Tls(_)) => Some(address.port()),
        Address::Tcp(_) | Address::Unix(_) => None,
    });
    let serves = |listen: &Listen| {
        Ok(match &listen.role {
            Role::Http1 => Serves::Site(Protocol::Http1),
            Role::Http1AndH2c => Serves::Site(Protocol::Http1AndH2c),
            Role::Tls(tls) => Serves::Site(Protocol::Tls(Arc::new(Tls::open(tls.clone())?))),
            Role::RedirectToHttps => {
                Serves::RedirectTo(tls_port.unwrap_or_else(|| Scheme::Https.usual_port()))
            }
        })
    };
    config.listen.iter().map(serves).collect()
}

impl App {
    /// Opens the store, binds the listeners, and begins to serve.
    ///
    /// # Errors
    /// Whatever cannot be had is said before the first request is taken.
    pub fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let ring = config.prepare()?;
        let tasks = Floors::new();
        let stores = Arc::new(Stores::open(&config, Caching::Configured, &clock, &tasks.inner)?);
        let listeners = Listeners::bind(&config)?;
        let roles = roles(&config, &listeners)?;
        let api = listeners.api.local_address().clone();
        let api_url = url_of(&config, &api);
        let instance = instance(dialled_at(&config, &api_url));
        let shared = share(&config, ring, clock, instance);
        let limits = config.limits.clone();
        let site = Site::new(
            config.proxy.clone(),
            &config.api.prefix,
            &api_url,
            limits.body_idle_timeout,
        )?;
        let crew = Arc::new(Crew {
            config: Arc::new(config),
            site: Arc::new(site),
            stores,
            shared: Arc::clone(&shared),
            roles,
            public_connections: Arc::new(Semaphore::new(limits.connections)),
            api_connections: Arc::new(Semaphore::new(limits.connections)),
        });
        let public =
            listeners.public.iter().map(|listener| listener.local_address().clone()).collect();
        let admin = listeners.admin.local_address().clone();
        let workers = (0..workers())
            .map(|index| crew.start_worker(index, &listeners, &tasks))
            .collect::<io::Result<_>>()
            .map_err(StartError::Worker)?;
        Ok(Self { workers, tasks, drain_timeout: limits.drain_timeout, shared, public, api, admin })
    }

    /// Begins the drain, of the public side first, waits for what is in flight, no longer than the
    /// drain's deadline, and ends the workers. Whether all of it ended in time.
    pub async fn stop(self) -> bool {
        let drained = self.tasks.drained(self.drain_timeout).await;
        if !drained {
            warn!("the drain's time is over; what is still in flight is cut");
        }
        for worker in self.workers {
            // A worker that has ended already needs no word.
            let _ = worker.stop.send(());
            if worker.thread.join().is_err() {
                error!("a worker panicked");
            }
        }
        drained
    }
}

/// What upstreams are told: with port 0 in the configuration, the port that it became.
fn url_of(config: &Config, bound: &Address) -> String {
    let configured = crate::api::config::url_at(&config.api.address, &config.api.prefix);
    if configured.as_ref() == Some(&config.api.url)
        && let Some(url) = crate::api::config::url_at(bound, &config.api.prefix)
    {
        return url;
    }
    config.api.url.clone()
}

/// Where other instances dial this one: nowhere where it does not share its store.
fn dialled_at(config: &Config, api_url: &str) -> Option<Target> {
    let is_shared = config.store.backend.is_shared();
    is_shared.then(|| config.api.instance_url.clone().or_else(|| instance_of(api_url))).flatten()
}

/// This process, as its request tokens name it.
fn instance(dialled_at: Option<Target>) -> Instance {
    let authority = dialled_at.map_or_else(String::new, |target| target.authority());
    Instance { number: u64::from_be_bytes(random::bytes()), authority }
}

impl Crew {
    fn start_worker(
        self: &Arc<Self>,
        index: usize,
        listeners: &Listeners,
        tasks: &Floors,
    ) -> io::Result<Worker> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = listeners.try_clone()?;
        let (stop, stopped) = oneshot::channel();
        let (crew, tasks) = (Arc::clone(self), tasks.sibling());
        // Tracked from here on, so that a drain at once waits for the workers' listeners.
        let serve = {
            let _in_runtime = runtime.enter();
            tasks.inner.run(crew.serve(index, listeners, tasks.clone()))
        };
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(async {
                let _ = serve.await;
                let _ = stopped.await;
            });
        })?;
        Ok(Worker { thread, stop })
    }

    /// Serves every listener until the drain begins.
    async fn serve(self: Arc<Self>, index: usize, listeners: Listeners, tasks: Floors) {
        let Floors { public, inner } = tasks;
        let Some(home) = self.stores.of_worker(index) else { return };
        let sessions = Sessions::new(home, Arc::clone(&self.shared));
        let limits = self.config.limits.clone();
        let proxy = Arc::new(Proxy::new(Arc::clone(&self.site), sessions.clone(), public.clone()));
        for (listener, serves) in listeners.public.into_iter().zip(&self.roles) {
            let (limits, connections) = (limits.clone(), Arc::clone(&self.public_connections));
            match serves.clone() {
                Serves::Site(protocol) => {
                    let settings = Settings { protocol, limits };
                    accept(listener, settings, connections, Arc::clone(&proxy), &public);
                }
                Serves::RedirectTo(port) => {
                    let settings = Settings { protocol: Protocol::Http1, limits };
                    let redirect = Redirect::new(port, self.shared.metrics.clone());
                    accept(listener, settings, connections, Arc::new(redirect), &public);
                }
            }
        }
        let api = Arc::new(Api::new(
            sessions.clone(),
            inner.clone(),
            &self.config.api.prefix,
            self.config.api.service_token.clone(),
            limits.body_idle_timeout,
        ));
        let settings = Settings { protocol: Protocol::Http1AndH2c, limits: limits.clone() };
        let connections = Arc::clone(&self.api_connections);
        accept(listeners.api, settings.clone(), connections, api, &inner);
        if index == 0 {
            self.stores.begin_tracking(&inner);
            let admin = Arc::new(Admin::new(sessions.clone(), public));
            let connections = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
            let settings = Settings { protocol: Protocol::Http1, limits };
            accept(listeners.admin, settings, connections, admin, &inner);
            sweep(&sessions, &inner).await;
        } else {
            inner.draining().await;
        }
    }
}

/// Operators are few.
const ADMIN_CONNECTIONS: usize = 100;

/// How often what is over is removed, where the store does not do it by itself.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

fn accept<H: server::Handler>(
    listener: BoundListener,
    settings: Settings,
    connections: Arc<Semaphore>,
    handler: Arc<H>,
    tasks: &Tasks,
) {
    let address = listener.local_address().to_string();
    let serve = server::serve(listener, settings, connections, handler, tasks.clone());
    tasks
        .run(async move {
            if let Err(error) = serve.await {
                error!(%error, address, "a listener ended");
            }
        })
        .detach();
}

/// Sweeps now and then until the drain begins.
async fn sweep(sessions: &Sessions, tasks: &Tasks) {
    let mut every = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            _ = every.tick() => match sessions.sweep().await {
                Ok(0) => {}
                Ok(removed) => debug!(removed, "expired sessions were removed"),
                Err(error) => warn!(%error, "expired sessions could not be removed"),
            },
        }
    }
}

impl App {
    /// Begins the drain and waits for nothing: the workers end by themselves.
    pub fn abandon(self) {
        self.tasks.public.drain();
        self.tasks.inner.drain();
    }

    /// Says where it serves.
    pub fn announce(&self) {
        let public: Vec<_> = self.public.iter().map(ToString::to_string).collect();
        info!(public = public.join(", "), api = %self.api, admin = %self.admin, "serving");
    }
}
