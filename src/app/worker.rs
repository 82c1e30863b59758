//! The workers: one a core, each with services of its own on every listener.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::{debug, error, warn};

use super::keys::watch_keys;
use super::listeners::{Doors, Listeners, Serves};
use super::stores::Stores;
use crate::admin::{Admin, Readiness};
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

/// How many workers there are: one a core.
pub(super) fn workers() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// The tasks of the process, in the order in which they are drained: requests in flight still call
/// the session API, and operators still ask how it goes, when clients are taken no more.
#[derive(Clone, Debug)]
pub(super) struct Floors {
    /// Clients, and the upstreams that their requests go to.
    pub(super) public: Tasks,
    /// The API, the admin listener, and the workers themselves.
    pub(super) inner: Tasks,
}

impl Floors {
    pub(super) fn new() -> Self {
        Self { public: Tasks::new(), inner: Tasks::new() }
    }

    /// The same tasks, for another worker.
    fn sibling(&self) -> Self {
        Self { public: self.public.sibling(), inner: self.inner.sibling() }
    }

    /// Drains one after the other, both no longer than `deadline`. Whether all ended in time.
    pub(super) async fn drained(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let public = self.public.drained(deadline).await;
        let left = end.saturating_duration_since(Instant::now());
        self.inner.drained(left).await && public
    }
}

/// What the services are made of. A reload makes others of another.
pub(super) struct Made {
    pub(super) config: Arc<Config>,
    pub(super) site: Arc<Site>,
    pub(super) shared: Arc<Shared>,
    pub(super) api: Arc<api::Settings>,
    /// What takes the spans of requests, where they are recorded.
    pub(super) tracer: Option<Arc<Tracer>>,
}

/// The services of one worker, as its listeners reach them.
#[derive(Clone)]
struct Services {
    store: Option<Arc<dyn Store>>,
    tasks: Floors,
    proxy: Arc<Reloadable<Proxy>>,
    api: Arc<Reloadable<Api>>,
}

impl Services {
    fn new(made: &Made, store: Option<Arc<dyn Store>>, tasks: Floors) -> Self {
        let (proxy, api) = services(made, store.clone(), &tasks);
        let (proxy, api) = (Arc::new(Reloadable::new(proxy)), Arc::new(Reloadable::new(api)));
        Self { store, tasks, proxy, api }
    }
}

fn services(made: &Made, store: Option<Arc<dyn Store>>, tasks: &Floors) -> (Proxy, Api) {
    let sessions = Sessions::new(store, Arc::clone(&made.shared));
    let api = Api::new(sessions.clone(), tasks.inner.clone(), Arc::clone(&made.api));
    let (site, tracer) = (Arc::clone(&made.site), made.tracer.clone());
    (Proxy::new(site, sessions.opener(), tasks.public.clone(), tracer), api)
}

/// A worker.
pub(super) struct Worker {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    services: Services,
}

impl Worker {
    /// Has it serve this from the next request on.
    pub(super) fn serve_anew(&self, made: &Made) {
        let (proxy, api) = services(made, self.services.store.clone(), &self.services.tasks);
        self.services.proxy.replace(proxy);
        self.services.api.replace(api);
    }

    /// Ends it, whatever it does. An error is a panic.
    pub(super) fn stop(self) -> thread::Result<()> {
        // A worker that has ended already needs no word.
        let _ = self.stop.send(());
        self.thread.join()
    }
}

/// What a worker takes into its thread, and no reload replaces.
pub(super) struct Crew {
    pub(super) stores: Stores,
    pub(super) rings: watch::Receiver<Arc<Shared>>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) doors: Doors,
    pub(super) limits: Limits,
    /// The names that the admin listener answers to.
    pub(super) admin_names: Vec<String>,
    pub(super) public_limit: ConnectionLimit,
    pub(super) api_limit: ConnectionLimit,
}

impl Crew {
    pub(super) fn start_worker(
        self: &Arc<Self>,
        index: usize,
        made: &Made,
        listeners: &Listeners,
        tasks: &Floors,
    ) -> io::Result<Worker> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = listeners.try_clone()?;
        let (stop, stopped) = oneshot::channel();
        let store = self.stores.of_worker(index)?;
        let services = Services::new(made, store.clone(), tasks.sibling());
        let sessions = Sessions::new(store, Arc::clone(&made.shared));
        // Tracked from here on, so that a drain at once waits for the workers' listeners.
        let serve = {
            let _in_runtime = runtime.enter();
            if let (0, Some(tracer)) = (index, &made.tracer) {
                let tasks = tasks.inner.sibling();
                tasks.run(Arc::clone(tracer).export(tasks.clone())).detach();
            }
            let serve = Arc::clone(self).serve(index, listeners, services.clone(), sessions);
            tasks.inner.run(serve)
        };
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            runtime.block_on(async {
                let _ = serve.await;
                let _ = stopped.await;
            });
        })?;
        Ok(Worker { thread, stop, services })
    }

    /// Serves every listener until the drain begins.
    async fn serve(
        self: Arc<Self>,
        index: usize,
        listeners: Listeners,
        services: Services,
        sessions: Sessions,
    ) {
        let Services { store, tasks: Floors { public, inner }, proxy, api } = services;
        let (doors, api_listener, admin_listener) = listeners.into_parts();
        let metrics = &sessions.shared().metrics;
        let settings = |listener: &BoundListener, protocol| Settings {
            protocol,
            proxy_header_from: None,
            leaves_descriptors: false,
            limits: self.limits.clone(),
            metrics: metrics.listener(&listener.local_address().to_string()),
        };
        for (listener, door) in doors.into_iter().zip(self.doors.public()) {
            let limit = self.public_limit.clone();
            let public_settings = |protocol| Settings {
                proxy_header_from: door.proxy_header_from.clone(),
                leaves_descriptors: true,
                ..settings(&listener, protocol)
            };
            match door.serves.clone() {
                Serves::Site(protocol) => {
                    let settings = public_settings(protocol);
                    accept(listener, settings, limit, Arc::clone(&proxy), &public);
                }
                Serves::RedirectTo(port) => {
                    let redirect = Redirect::new(port, sessions.shared().metrics.clone());
                    let redirect = Arc::new(redirect);
                    let settings = public_settings(Protocol::Http1);
                    accept(listener, settings, limit, redirect, &public);
                }
            }
        }
        let limit = self.api_limit.clone();
        let of_api = settings(&api_listener, self.doors.api.clone());
        accept(api_listener, of_api, limit, api, &inner);
        if index == 0 {
            self.stores.begin_following(&inner);
            self.stores.begin_tracking(&inner);
            inner.run(watch_keys(self.rings.clone(), store, inner.clone())).detach();
            let names = OwnNames::new(self.admin_names.iter().cloned(), "admin.hosts");
            let admin =
                Arc::new(Admin::new(sessions.clone(), Arc::clone(&self.readiness), public, names));
            let limit = ConnectionLimit::new(ADMIN_CONNECTIONS);
            let of_admin = settings(&admin_listener, Protocol::Http1);
            accept(admin_listener, of_admin, limit, admin, &inner);
            inner.run(sweep_requests(sessions.clone(), inner.clone())).detach();
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
    limit: ConnectionLimit,
    handler: Arc<H>,
    tasks: &Tasks,
) {
    let address = listener.local_address().to_string();
    let serve = server::serve(listener, settings, limit, handler, tasks.clone());
    tasks
        .run(async move {
            if let Err(error) = serve.await {
                error!(%error, address, "a listener ended");
            }
        })
        .detach();
}

/// How often requests that are over are forgotten.
const SWEEP_REQUESTS_EVERY: Duration = Duration::from_secs(1);

/// Keeps the table of requests small until the drain begins.
async fn sweep_requests(sessions: Sessions, tasks: Tasks) {
    let mut every = tokio::time::interval(SWEEP_REQUESTS_EVERY);
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            _ = every.tick() => sessions.sweep_requests(),
        }
    }
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
