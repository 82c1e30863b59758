//! Workers: one thread per core, each with services of its own on every listener.

use std::error::Error as _;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{debug, error, warn};

use super::clock::watch_clock;
use super::keys::watch_keys;
use super::listeners::{ListenerRoles, Listeners, Service};
use super::stores::Stores;
use crate::admin::{self, Admin, Readiness};
use crate::api::{self, Api};
use crate::config::Config;
use crate::net::host::OwnNames;
use crate::proxy::{Proxy, Redirect, Site};
use crate::server::{
    self, BoundListener, ConnectionLimit, Limits, Protocol, Reloadable, Settings, Tasks,
};
use crate::sessions::{Sessions, Shared};
use crate::store::Store;
use crate::telemetry::Tracer;

/// Returns the number of workers: one per core.
pub(super) fn worker_count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The tasks of the process, in the order in which they are drained. In-flight requests still call the
/// session API, and operators still query the state, after public connections are refused.
#[derive(Clone, Debug)]
pub(super) struct ShutdownPhases {
    /// Public connections, and the upstream connections of their requests.
    pub(super) public: Tasks,
    /// API and admin connections, and the workers themselves.
    pub(super) inner: Tasks,
}

impl ShutdownPhases {
    pub(super) fn new() -> Self {
        Self { public: Tasks::new(), inner: Tasks::new() }
    }

    /// Returns the same tasks with signals of their own, for another worker.
    fn sibling(&self) -> Self {
        Self { public: self.public.sibling(), inner: self.inner.sibling() }
    }

    /// Drains one after the other, both within `timeout`. Returns whether all tasks ended in time.
    pub(super) async fn drain(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let public = self.public.drained(timeout).await;
        let remaining = deadline.saturating_duration_since(Instant::now());
        // In this order, so that the second drain is awaited even if the first was not in time.
        self.inner.drained(remaining).await && public
    }
}

/// A configuration, and what has been loaded for it. The services are created from it, at startup and on
/// each reload.
pub(super) struct LoadedConfig {
    pub(super) config: Arc<Config>,
    pub(super) site: Arc<Site>,
    pub(super) shared: Arc<Shared>,
    pub(super) api: Arc<api::Settings>,
    pub(super) admin: Arc<admin::Settings>,
    /// The tracer, if spans are exported.
    pub(super) tracer: Option<Arc<Tracer>>,
}

/// The services of a worker, which its listeners call and a reload replaces.
#[derive(Clone)]
struct Services {
    store: Option<Arc<dyn Store>>,
    tasks: ShutdownPhases,
    proxy: Arc<Reloadable<Proxy>>,
    api: Arc<Reloadable<Api>>,
    admin: Arc<Reloadable<Admin>>,
    admin_base: Arc<admin::Base>,
}

impl Services {
    fn new(
        loaded: &LoadedConfig,
        store: Option<Arc<dyn Store>>,
        tasks: ShutdownPhases,
        admin_base: Arc<admin::Base>,
    ) -> Self {
        let (proxy, api, admin) = services(loaded, store.clone(), &tasks, &admin_base);
        let (proxy, api) = (Arc::new(Reloadable::new(proxy)), Arc::new(Reloadable::new(api)));
        let admin = Arc::new(Reloadable::new(admin));
        Self { store, tasks, proxy, api, admin, admin_base }
    }
}

fn services(
    loaded: &LoadedConfig,
    store: Option<Arc<dyn Store>>,
    tasks: &ShutdownPhases,
    admin_base: &Arc<admin::Base>,
) -> (Proxy, Api, Admin) {
    let sessions = Sessions::new(store, Arc::clone(&loaded.shared));
    let api = Api::new(sessions.clone(), tasks.inner.clone(), Arc::clone(&loaded.api));
    let (base, settings) = (Arc::clone(admin_base), Arc::clone(&loaded.admin));
    let admin = Admin::new(base, sessions.clone(), tasks.inner.clone(), settings);
    let (site, tracer) = (Arc::clone(&loaded.site), loaded.tracer.clone());
    (Proxy::new(site, sessions.opener(), tasks.public.clone(), tracer), api, admin)
}

pub(super) struct Worker {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    services: Services,
}

impl Worker {
    /// Replaces the services, from the next request on.
    pub(super) fn reload(&self, loaded: &LoadedConfig) {
        let Services { store, tasks, admin_base, .. } = &self.services;
        let (proxy, api, admin) = services(loaded, store.clone(), tasks, admin_base);
        self.services.proxy.replace(proxy);
        self.services.api.replace(api);
        self.services.admin.replace(admin);
    }

    /// Stops the worker, and waits for its thread. An error is a panic of the worker.
    pub(super) fn stop(self) -> thread::Result<()> {
        // The worker may already have exited.
        let _ = self.stop.send(());
        self.thread.join()
    }
}

/// What the workers share and no reload replaces.
pub(super) struct WorkerContext {
    pub(super) stores: Stores,
    pub(super) rings: watch::Receiver<Arc<Shared>>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) listener_roles: ListenerRoles,
    pub(super) limits: Limits,
    /// Host names of the admin listener.
    pub(super) admin_names: Vec<String>,
    pub(super) admin_state: Arc<admin::State>,
    pub(super) public_limit: ConnectionLimit,
    pub(super) api_limit: ConnectionLimit,
}

impl WorkerContext {
    /// Starts a worker, which serves until the drain.
    pub(super) fn start_worker(
        self: &Arc<Self>,
        index: usize,
        loaded: &LoadedConfig,
        listeners: &Listeners,
        tasks: &ShutdownPhases,
    ) -> io::Result<Worker> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = listeners.try_clone()?;
        let (stop, stopped) = oneshot::channel();
        let store = self.stores.for_worker(index)?;
        let tasks_of_worker = tasks.sibling();
        let admin = self.admin_base(tasks_of_worker.public.clone());
        let services = Services::new(loaded, store.clone(), tasks_of_worker, Arc::new(admin));
        let sessions = Sessions::new(store, Arc::clone(&loaded.shared));
        // Spawned before the thread starts, so that even an immediate drain waits for the listeners.
        let serve = {
            let _in_runtime = runtime.enter();
            if let (0, Some(tracer)) = (index, &loaded.tracer) {
                let tasks = tasks.inner.sibling();
                tasks.run(Arc::clone(tracer).export(tasks.clone())).detach();
            }
            let serve = Arc::clone(self).serve(index, listeners, services.clone(), sessions);
            tasks.inner.run(serve)
        };
        // One runtime per worker: a request stays on the thread that accepted its connection.
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(async {
                // After the listeners have ended, the runtime still drives connections until the
                // worker is stopped.
                let _ = serve.await;
                let _ = stopped.await;
            });
        })?;
        Ok(Worker { thread, stop, services })
    }

    fn admin_base(&self, public: Tasks) -> admin::Base {
        let names = OwnNames::new(self.admin_names.iter().cloned(), "admin.hosts");
        let (readiness, state) = (Arc::clone(&self.readiness), Arc::clone(&self.admin_state));
        admin::Base::new(readiness, public, names, state)
    }

    /// Starts what follows the store of the process, until the drain.
    fn watch_store(&self, store: Option<Arc<dyn Store>>, sessions: &Sessions, tasks: &Tasks) {
        self.stores.start_following(tasks);
        self.stores.start_tracking(tasks);
        if let Some(store) = store.clone() {
            let Shared { clock, metrics, .. } = sessions.shared();
            let watching = watch_clock(store, clock.clone(), metrics.clone(), tasks.clone());
            tasks.run(watching).detach();
        }
        let state = Arc::clone(&self.admin_state);
        tasks.run(watch_keys(self.rings.clone(), store, state, tasks.clone())).detach();
    }

    /// Serves every listener until the drain begins. The first worker also runs the background tasks.
    async fn serve(
        self: Arc<Self>,
        index: usize,
        listeners: Listeners,
        services: Services,
        sessions: Sessions,
    ) {
        let Services { store, tasks: ShutdownPhases { public, inner }, proxy, api, admin, .. } =
            services;
        let (public_listeners, api_listener, admin_listener) = listeners.into_parts();
        let metrics = &sessions.shared().metrics;
        let settings = |listener: &BoundListener, protocol| Settings {
            protocol,
            proxy_header_from: None,
            // The API and admin listeners may use the last file descriptors, which public listeners
            // leave free: requests in flight need them.
            leaves_descriptors: false,
            limits: self.limits.clone(),
            metrics: metrics.listener(&listener.local_address().to_string()),
        };
        for (listener, role) in public_listeners.into_iter().zip(self.listener_roles.public()) {
            let limit = self.public_limit.clone();
            let public_settings = |protocol| Settings {
                proxy_header_from: role.proxy_header_from.clone(),
                leaves_descriptors: true,
                ..settings(&listener, protocol)
            };
            match role.service.clone() {
                Service::Site(protocol) => {
                    let settings = public_settings(protocol);
                    accept(listener, settings, limit, Arc::clone(&proxy), &public);
                }
                Service::RedirectTo(port) => {
                    let redirect = Redirect::new(port, sessions.shared().metrics.clone());
                    let redirect = Arc::new(redirect);
                    let settings = public_settings(Protocol::Http1);
                    accept(listener, settings, limit, redirect, &public);
                }
            }
        }
        let limit = self.api_limit.clone();
        let api_settings = settings(&api_listener, self.listener_roles.api.clone());
        accept(api_listener, api_settings, limit, api, &inner);
        // Background tasks concern the process, not the worker.
        if index == 0 {
            self.watch_store(store, &sessions, &inner);
            let (state, limit) = (&self.admin_state, ConnectionLimit::new(ADMIN_CONNECTIONS));
            let admin_settings = settings(&admin_listener, self.listener_roles.admin.clone());
            accept(admin_listener, admin_settings, limit, admin, &inner);
            inner.run(state.clone().record_history(metrics.clone(), inner.clone())).detach();
            inner.run(sweep_requests(sessions.clone(), inner.clone())).detach();
            sweep(&sessions, &inner).await;
        } else {
            inner.draining().await;
        }
    }
}

/// Limit on admin connections: there are few operators.
const ADMIN_CONNECTIONS: usize = 100;

/// Interval between removals of expired sessions, for stores that do not expire them.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

fn accept<H: server::Handler>(
    listener: BoundListener,
    settings: Settings,
    limit: ConnectionLimit,
    handler: Arc<H>,
    tasks: &Tasks,
) {
    let address = listener.local_address().to_string();
    let serve = server::serve(listener, settings, limit, handler, tasks.clone());
    tasks
        .run(async move {
            if let Err(error) = serve.await {
                error!(%error, address, "listener failed");
            }
        })
        .detach();
}

/// Interval between removals of finished requests.
const SWEEP_REQUESTS_INTERVAL: Duration = Duration::from_secs(1);

/// Removes finished requests from the table of requests, until the drain begins.
async fn sweep_requests(sessions: Sessions, tasks: Tasks) {
    let mut interval = tokio::time::interval(SWEEP_REQUESTS_INTERVAL);
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            _ = interval.tick() => sessions.sweep_requests(),
        }
    }
}

/// Removes expired sessions, until the drain begins.
async fn sweep(sessions: &Sessions, tasks: &Tasks) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            _ = interval.tick() => match sessions.sweep(|_| ()).await {
                Ok(0) => {}
                Ok(removed) => debug!(removed, "removed expired sessions"),
                Err(error) => {
                    let cause = error.source().map(ToString::to_string);
                    warn!(%error, cause, "failed to remove expired sessions");
                }
            },
        }
    }
}
