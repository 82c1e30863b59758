//! The store of a configuration, one way to it for each worker.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::{io, thread};

use tracing::warn;

use super::{StartError, workers};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::server::Tasks;
use crate::session::policy::Policy;
use crate::sessions::Home;
use crate::store::Store;
use crate::store::cache::{Cached, Coherence, Hot};
use crate::store::config::Backend;
use crate::store::file::Files;
use crate::store::memory::Memory;
use crate::store::redis::{Deployment, Redis, Survey, SurveyError, track};
use crate::store::sqlite::Sqlite;
use crate::time::{Clock, Timestamp};

/// Which store the workers use.
pub(super) struct Stores {
    ways: Ways,
    cache: Option<Arc<Hot>>,
    /// Of a database whose records are cached: another process would change them unheard.
    _alone: Option<File>,
}

/// Whether records may be kept in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    /// Where the configuration says so.
    Configured,
    /// Not: a command that serves nothing.
    None,
}

enum Ways {
    /// One for all of them.
    Embedded(Arc<dyn Store>),
    /// One for each, with connections of its own.
    Redis(Deployment, Vec<Arc<dyn Store>>),
    /// None: clients carry their sessions.
    Cookies,
}

impl Stores {
    /// # Errors
    /// The database cannot be opened, or Redis answers and refuses what is needed. One that does not
    /// answer may do so later.
    pub(super) fn open(
        config: &Config,
        caching: Caching,
        (clock, metrics): (&Clock, &Metrics),
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let timeout = config.store.timeout;
        let ways = match &config.store.backend {
            Backend::Memory => {
                let memory = Memory::new(Memory::DEFAULT_MAX_BYTES, metrics.clone());
                Ways::Embedded(Arc::new(memory))
            }
            Backend::Sqlite { path } => Ways::Embedded(Arc::new(Sqlite::open(path, timeout)?)),
            Backend::File { directory } => {
                Ways::Embedded(Arc::new(Files::open(directory, timeout)?))
            }
            Backend::Cookies => Ways::Cookies,
            Backend::Redis(redis) => {
                let deployment = Deployment::new(redis, timeout);
                // Its connections end with its runtime.
                survey(&deployment.apart(), &config.policy, clock.now())?;
                let store = |_| Arc::new(Redis::new(&deployment, tasks.clone())) as _;
                let stores = (0..workers()).map(store).collect();
                Ways::Redis(deployment, stores)
            }
        };
        let coherence = match &ways {
            Ways::Embedded(_) | Ways::Cookies => Coherence::Owned,
            Ways::Redis(..) => Coherence::Leased,
        };
        let room = config.store.cache.filter(|_| caching == Caching::Configured);
        let Some(bytes) = room else { return Ok(Self { ways, cache: None, _alone: None }) };
        let alone = match &config.store.backend {
            Backend::Sqlite { path } => Some(alone_with(path)?),
            Backend::Memory | Backend::File { .. } | Backend::Redis(_) | Backend::Cookies => None,
        };
        let hot = Arc::new(Hot::new(bytes, coherence));
        Ok(Self { ways: ways.cached(&hot), cache: Some(hot), _alone: alone })
    }

    pub(super) fn of_worker(&self, index: usize) -> Option<Home> {
        match &self.ways {
            Ways::Embedded(store) => Some(Home::Store(Arc::clone(store))),
            Ways::Redis(_, stores) => stores.get(index).cloned().map(Home::Store),
            Ways::Cookies => Some(Home::Cookies),
        }
    }

    /// Follows the sentinels, if the store has some, until the drain.
    pub(super) fn begin_following(&self, tasks: &Tasks) {
        if let Ways::Redis(deployment, _) = &self.ways {
            deployment.follow(tasks);
        }
    }

    /// Keeps the cache coherent with what others change, until the drain.
    pub(super) fn begin_tracking(&self, tasks: &Tasks) {
        if let (Ways::Redis(deployment, _), Some(hot)) = (&self.ways, &self.cache) {
            let tracking = track(deployment.clone(), Arc::clone(hot), tasks.clone());
            tasks.run(tracking).detach();
        }
    }
}

/// Keeps other processes that cache from a database: several may use one, unless one of them caches.
fn alone_with(database: &Path) -> Result<File, StartError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".cached");
    let failed = |source| StartError::Cached { path: database.to_owned(), source };
    let lock = File::options().create(true).truncate(false).write(true).open(path);
    let lock = lock.map_err(failed)?;
    lock.try_lock().map_err(|error| failed(error.into()))?;
    Ok(lock)
}

/// Looks at a deployment before anybody is served. On a thread of its own: whoever starts an app may
/// have a runtime already.
fn survey(deployment: &Deployment, policy: &Policy, now: Timestamp) -> Result<(), StartError> {
    let look = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(deployment.survey(policy, now)))
    };
    let surveyed: io::Result<_> = thread::scope(|scope| {
        scope.spawn(look).join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    match surveyed.map_err(StartError::Worker)? {
        Ok(Survey::Keeps) => {}
        Ok(Survey::Evicts(policy)) => warn!(
            policy,
            "Redis removes sessions when its memory is full; set maxmemory-policy to noeviction"
        ),
        Err(SurveyError::Away(error)) => {
            let error = &error as &dyn std::error::Error;
            warn!(error, "Redis could not be looked at; it is asked again with the first request");
        }
        Err(denied @ SurveyError::Denied(_)) => return Err(denied.into()),
    }
    Ok(())
}

impl Ways {
    /// The same with one cache before all of them.
    fn cached(self, hot: &Arc<Hot>) -> Self {
        let cached = |store| Arc::new(Cached::new(store, Arc::clone(hot))) as Arc<dyn Store>;
        match self {
            Self::Embedded(store) => Self::Embedded(cached(store)),
            Self::Redis(deployment, stores) => {
                Self::Redis(deployment, stores.into_iter().map(cached).collect())
            }
            Self::Cookies => Self::Cookies,
        }
    }
}
