//! A deployment, and the settings of the store on it.

use std::sync::Arc;
use std::time::Duration;

use crate::redis;
use crate::session::id::Id;
use crate::store::config;
use crate::tasks::Tasks;
use crate::turns::Turns;

/// A deployment of Redis without connections, shared by the stores of all workers.
#[derive(Clone, Debug)]
pub struct Deployment {
    pub(super) servers: redis::Deployment,
    /// The prefix of all keys.
    pub(super) prefix: String,
    /// The deadline of a call, connecting included.
    pub(super) timeout: Duration,
    /// Whether a destroy waits for a replica.
    pub(super) wait: redis::WaitPolicy,
    /// The sessions into whose values is merged.
    pub(super) merging: Arc<Turns<Id>>,
}

impl Deployment {
    /// Creates a deployment whose calls may take `timeout`, connecting included.
    pub fn new(config: &config::Redis, timeout: Duration) -> Self {
        Self {
            servers: redis::Deployment::new(&config.servers()),
            prefix: config.key_prefix.clone(),
            timeout,
            wait: match config.durable_destroy {
                config::DurableDestroy::Auto => redis::WaitPolicy::IfReplicated,
                config::DurableDestroy::On => redis::WaitPolicy::Always,
                config::DurableDestroy::Off => redis::WaitPolicy::Never,
            },
            merging: Arc::default(),
        }
    }

    /// Returns the same deployment for stores of a runtime that ends before the others. What is known about the
    /// servers is shared; connections and the announcements of sentinels are not.
    #[must_use]
    pub(crate) fn apart(&self) -> Self {
        Self { servers: self.servers.apart(), ..self.clone() }
    }

    /// Returns what is logged about the servers.
    pub(crate) fn notices(&self) -> Arc<redis::Notices> {
        self.servers.notices()
    }

    /// Subscribes to the sentinels until shutdown: every store on this deployment leaves an old primary when
    /// they announce another. Call it once, in a runtime that lives as long as the stores. Does nothing
    /// without sentinels.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn follow(&self, tasks: &Tasks) {
        self.servers.follow(tasks);
    }
}
