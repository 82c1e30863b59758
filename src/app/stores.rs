//! Creation of the configured store, and of its connections for each worker.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{io, thread};

use tracing::warn;

use super::{StartError, clock, worker_count};
use crate::audit::Audit;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::redis::Notices;
use crate::server::Tasks;
use crate::session::policy::Policy;
use crate::store::Store;
use crate::store::cache::{Cached, Coherence, RecordCache};
use crate::store::config::StoreKind;
use crate::store::file::Files;
use crate::store::health::{Health, Observed};
use crate::store::memory::Memory;
use crate::store::redis::{Deployment, Redis, Survey, SurveyError, track};
use crate::store::sqlite::Sqlite;
use crate::time::{Clock, Timestamp};

/// The store of the process.
pub(super) struct Stores {
    set: StoreSet,
    cache: Option<Arc<RecordCache>>,
    health: Arc<Health>,
    /// The lock of a SQLite database, held as long as the database is open.
    _lock: Option<File>,
}

/// Whether records may be cached in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    /// As configured.
    Configured,
    /// Never, for a command that only removes expired records.
    Disabled,
}

enum StoreSet {
    /// A single store for all workers.
    Embedded(Arc<dyn Store>),
    /// A store with connections of its own for each worker.
    Redis(Deployment, Vec<Arc<dyn Store>>),
    /// No store: sessions are in the cookies of the clients.
    Cookies,
}

impl Stores {
    /// Opens the store.
    ///
    /// # Errors
    /// Fails if a database cannot be opened, or if Redis denies required commands. An unreachable Redis is
    /// not an error: it may become reachable later.
    pub(super) fn open(
        config: &Config,
        caching: Caching,
        clock: &Clock,
        tasks: &Tasks,
        audit: &Audit,
    ) -> Result<Self, StartError> {
        let set = StoreSet::open(config, clock, tasks, audit)?;
        let metrics = audit.metrics().clone();
        let health = Health::new(config.store.backend.location(), metrics);
        let health = Arc::new(health.with_notices(set.notices()));
        // Below the cache, because a cache hit says nothing about the health of the store.
        let set = set.map(|store| Arc::new(Observed::new(store, Arc::clone(&health))));
        let cache_bytes = config.store.cache.filter(|_| caching == Caching::Configured);
        let lock = match &config.store.backend {
            StoreKind::Sqlite { path } => lock_database(path, caching, cache_bytes.is_some())?,
            // Others have locks of their own, or share nothing on disk.
            _ => None,
        };
        let Some(bytes) = cache_bytes else {
            return Ok(Self { set, cache: None, health, _lock: lock });
        };
        let cache = Arc::new(RecordCache::new(bytes, set.coherence()));
        let set = set.map(|store| Arc::new(Cached::new(store, Arc::clone(&cache))));
        Ok(Self { set, cache: Some(cache), health, _lock: lock })
    }

    /// Returns the store of a worker; `None` if sessions are in cookies.
    ///
    /// # Errors
    /// There is no such worker.
    pub(super) fn for_worker(&self, index: usize) -> io::Result<Option<Arc<dyn Store>>> {
        match &self.set {
            StoreSet::Embedded(store) => Ok(Some(Arc::clone(store))),
            StoreSet::Redis(_, stores) => {
                stores.get(index).cloned().map(Some).ok_or_else(|| io::ErrorKind::Other.into())
            }
            StoreSet::Cookies => Ok(None),
        }
    }

    /// Starts following the sentinels, if any, until the drain.
    pub(super) fn start_following(&self, tasks: &Tasks) {
        if let StoreSet::Redis(deployment, _) = &self.set {
            deployment.follow(tasks);
        }
    }

    /// Returns the health of the store, as observed by all workers.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Starts invalidating cached records that other instances change, until the drain.
    pub(super) fn start_tracking(&self, tasks: &Tasks) {
        if let (StoreSet::Redis(deployment, _), Some(hot)) = (&self.set, &self.cache) {
            let tracking = track(deployment.clone(), Arc::clone(hot), tasks.clone());
            tasks.run(tracking).detach();
        }
    }
}

/// Locks a database. Several processes may share it unless one of them caches records, which would miss
/// the changes of the others. Earlier versions take only the exclusive lock.
fn lock_database(
    database: &Path,
    caching: Caching,
    caches: bool,
) -> Result<Option<File>, StartError> {
    if caching == Caching::Disabled {
        return Ok(None);
    }
    // A file of its own: SQLite uses locks on the database itself.
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

/// Checks a Redis deployment before the first request. It runs on a thread of its own, because the
/// caller may be inside a runtime, which cannot block on another.
fn preflight(
    deployment: &Deployment,
    policy: &Policy,
    now: Timestamp,
    metrics: &Metrics,
) -> Result<(), StartError> {
    let check = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(deployment.survey(policy, now)))
    };
    let checked: io::Result<_> = thread::scope(|scope| {
        scope.spawn(check).join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    match checked.map_err(StartError::Worker)? {
        Ok(survey) => {
            warn_of(&survey);
            if let Some(ahead) = survey.ahead {
                clock::record(ahead, metrics);
            }
        }
        Err(SurveyError::Away(error)) => {
            let error = &error as &dyn std::error::Error;
            warn!(error, "Redis cannot be used at startup; will retry on first use");
        }
        Err(denied @ SurveyError::Denied(_)) => return Err(denied.into()),
    }
    Ok(())
}

fn warn_of(survey: &Survey) {
    if let Some(policy) = &survey.evicts {
        warn!(
            policy,
            "Redis evicts sessions when its memory is full; set maxmemory-policy to noeviction"
        );
    }
}

impl StoreSet {
    fn open(
        config: &Config,
        clock: &Clock,
        tasks: &Tasks,
        audit: &Audit,
    ) -> Result<Self, StartError> {
        let timeout = config.store.timeout;
        Ok(match &config.store.backend {
            StoreKind::Memory => {
                let memory = Memory::new(Memory::DEFAULT_MAX_BYTES, audit.clone());
                Self::Embedded(Arc::new(memory))
            }
            StoreKind::Sqlite { path } => {
                Self::Embedded(Arc::new(Sqlite::open(path, timeout, tasks.clone())?))
            }
            StoreKind::File { directory } => {
                Self::Embedded(Arc::new(Files::open(directory, timeout)?))
            }
            StoreKind::Cookies => Self::Cookies,
            StoreKind::Redis(redis) => {
                let deployment = Deployment::new(redis, timeout);
                // Independent connections, because those of the preflight end with its runtime.
                preflight(&deployment.apart(), &config.policy, clock.now(), audit.metrics())?;
                let store = |_| Arc::new(Redis::new(&deployment, tasks.clone())) as _;
                let stores = (0..worker_count()).map(store).collect();
                Self::Redis(deployment, stores)
            }
        })
    }

    /// Returns what is logged about the servers, if there are any.
    fn notices(&self) -> Option<Arc<Notices>> {
        match self {
            Self::Redis(deployment, _) => Some(deployment.notices()),
            Self::Embedded(_) | Self::Cookies => None,
        }
    }

    /// Returns how a cache in front of the store stays coherent.
    fn coherence(&self) -> Coherence {
        match self {
            Self::Embedded(_) | Self::Cookies => Coherence::Owned,
            Self::Redis(..) => Coherence::Leased,
        }
    }

    /// Wraps each store.
    fn map<S: Store + 'static>(self, wrap: impl Fn(Arc<dyn Store>) -> Arc<S>) -> Self {
        match self {
            Self::Embedded(store) => Self::Embedded(wrap(store)),
            Self::Redis(deployment, stores) => {
                let wrapped = stores.into_iter().map(|store| wrap(store) as Arc<dyn Store>);
                Self::Redis(deployment, wrapped.collect())
            }
            Self::Cookies => Self::Cookies,
        }
    }
}
