//! The store of a configuration, one way to it for each worker.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{io, thread};

use tracing::warn;

use super::{StartError, workers};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::server::Tasks;
use crate::session::policy::Policy;
use crate::store::Store;
use crate::store::cache::{Cached, Coherence, Hot};
use crate::store::config::Backend;
use crate::store::file::Files;
use crate::store::health::{Health, Observed, Place};
use crate::store::memory::Memory;
use crate::store::redis::{Deployment, Redis, Survey, SurveyError, track};
use crate::store::sqlite::Sqlite;
use crate::time::{Clock, Timestamp};

/// Which store the workers use.
pub(super) struct Stores {
    ways: Ways,
    cache: Option<Arc<Hot>>,
    health: Arc<Health>,
    /// Of a SQLite database: held as long as it is open, and released by the end of the process.
    _lock: Option<File>,
}

/// Whether records may be kept in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    /// Where the configuration says so.
    Configured,
    /// Not: a command that serves nothing, and removes only what has expired.
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
        clock: &Clock,
        tasks: &Tasks,
        metrics: &Metrics,
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
        let place = match &config.store.backend {
            Backend::Memory | Backend::Cookies => Place::Process,
            Backend::Sqlite { .. } | Backend::File { .. } => Place::Disk,
            Backend::Redis(_) => Place::Network,
        };
        let health = Arc::new(Health::new(place, metrics.clone()));
        let ways = ways
            .before(|store| Arc::new(Observed::new(store, Arc::clone(&health))) as Arc<dyn Store>);
        let coherence = match &ways {
            Ways::Embedded(_) | Ways::Cookies => Coherence::Owned,
            Ways::Redis(..) => Coherence::Leased,
        };
        let room = config.store.cache.filter(|_| caching == Caching::Configured);
        let lock = match &config.store.backend {
            Backend::Sqlite { path } => lock_database(path, caching, room.is_some())?,
            Backend::Memory | Backend::File { .. } | Backend::Redis(_) | Backend::Cookies => None,
        };
        let Some(bytes) = room else {
            return Ok(Self { ways, cache: None, health, _lock: lock });
        };
        let hot = Arc::new(Hot::new(bytes, coherence));
        let ways =
            ways.before(|store| Arc::new(Cached::new(store, Arc::clone(&hot))) as Arc<dyn Store>);
        Ok(Self { ways, cache: Some(hot), health, _lock: lock })
    }

    /// Returns the store of a worker; `None` if sessions live in cookies.
    ///
    /// # Errors
    /// There is no such worker.
    pub(super) fn of_worker(&self, index: usize) -> io::Result<Option<Arc<dyn Store>>> {
        match &self.ways {
            Ways::Embedded(store) => Ok(Some(Arc::clone(store))),
            Ways::Redis(_, stores) => {
                stores.get(index).cloned().map(Some).ok_or_else(|| io::ErrorKind::Other.into())
            }
            Ways::Cookies => Ok(None),
        }
    }

    /// Follows the sentinels, if the store has some, until the drain.
    pub(super) fn begin_following(&self, tasks: &Tasks) {
        if let Ways::Redis(deployment, _) = &self.ways {
            deployment.follow(tasks);
        }
    }

    /// How the store is, as all workers find it.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Keeps the cache coherent with what others change, until the drain.
    pub(super) fn begin_tracking(&self, tasks: &Tasks) {
        if let (Ways::Redis(deployment, _), Some(hot)) = (&self.ways, &self.cache) {
            let tracking = track(deployment.clone(), Arc::clone(hot), tasks.clone());
            tasks.run(tracking).detach();
        }
    }
}

/// Locks a database: several processes may use one, unless one of them caches its records, which
/// the others would change without its knowing. Earlier versions take only the exclusive lock.
fn lock_database(
    database: &Path,
    caching: Caching,
    caches: bool,
) -> Result<Option<File>, StartError> {
    if caching == Caching::None {
        return Ok(None);
    }
    let mut path = database.as_os_str().to_owned();
    path.push(".cached");
    let (path, database) = (PathBuf::from(path), database.to_owned());
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = match lock {
        Ok(lock) => lock,
        Err(source) => return Err(StartError::Lock { path, source }),
    };
    let locked = if caches { lock.try_lock() } else { lock.try_lock_shared() };
    match locked {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) if caches => Err(StartError::InUse(database)),
        Err(TryLockError::WouldBlock) => Err(StartError::Cached(database)),
        Err(TryLockError::Error(source)) => Err(StartError::Lock { path, source }),
    }
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
    /// The same with something before each of them.
    fn before(self, wrap: impl Fn(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        match self {
            Self::Embedded(store) => Self::Embedded(wrap(store)),
            Self::Redis(deployment, stores) => {
                Self::Redis(deployment, stores.into_iter().map(wrap).collect())
            }
            Self::Cookies => Self::Cookies,
        }
    }
}
