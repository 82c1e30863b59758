//! Sessions of requests: applies the policy to cookies and records.
//!
//! * [`Opener`] finds the session that a request's cookies name, and later, for calls of the session
//!   API, the request that a request token names.
//! * `RequestSession` is the session of one request. While the upstream works, the session API changes
//!   it (`apply`). Before the response head is sent, `commit` applies changes by header, records the
//!   use and decides the one Set-Cookie.
//! * `Directory` is for administration: it lists, changes and destroys sessions by id and by principal.
//!
//! It does no routing, and knows no HTTP bodies.

mod address_limit;
mod apply;
#[cfg(test)]
mod cache_tests;
mod calls;
mod commit;
mod cookie_backed;
#[cfg(test)]
mod cookie_store_tests;
mod create;
mod destroy;
mod directory;
#[cfg(test)]
mod expiry_tests;
mod failure;
mod found;
mod guard;
#[cfg(test)]
mod held_history_tests;
#[cfg(test)]
mod history_tests;
mod hold;
mod in_flight;
mod in_turn;
mod key_check;
mod look_up;
mod opener;
mod principal_limit;
mod problem;
mod remote;
mod request;
mod request_session;
mod shared;
mod snapshot;
mod unseal;
mod watch;

use std::sync::Arc;

use tracing::debug;

use crate::audit::By;
use crate::metrics::StoreOperation;
use crate::session::key_ring::Fingerprint;
use crate::store::{Error as StoreError, KnownKeys, Store};

pub(crate) use commit::{Committed, ResponseKind};
pub(crate) use directory::Directory;
pub(crate) use failure::Failure;
pub(crate) use guard::RequestGuard;
pub(crate) use hold::{HeldResponse, LogIn, SetHeld};
pub(crate) use in_flight::InFlight;
pub(crate) use in_turn::{Busy, OpenError};
pub(crate) use key_check::{ComparedKeys, KeyCheck, lack};
pub(crate) use opener::Opener;
pub(crate) use opener::{Arrival, Opened, TokenLookup};
pub(crate) use problem::{NO_SUCH_VALUE, REQUEST_GONE};
pub(crate) use remote::RemoteSession;
pub(crate) use request::TouchPolicy;
pub(crate) use request_session::RequestSession;
pub(crate) use shared::Shared;
pub(crate) use snapshot::{ChangeRequest, Destroyed, Snapshot};
pub(crate) use watch::{SessionStatus, WatchedSession};

/// The sessions of a configuration, with one worker's connection to the store.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    store: Option<Arc<dyn Store>>,
    shared: Arc<Shared>,
}

/// The result of a probe of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Sessions {
    /// Creates the sessions in `store`; without one, sessions are kept in cookies.
    pub(crate) fn new(store: Option<Arc<dyn Store>>, shared: Arc<Shared>) -> Self {
        Self { store, shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Returns the opener of requests' sessions.
    pub(crate) fn opener(&self) -> Opener {
        Opener::new(self.store.clone(), Arc::clone(&self.shared))
    }

    /// Returns the directory of all sessions, for changes by `by`.
    ///
    /// # Errors
    /// Returns [`Failure::NoStore`] if sessions are kept in cookies.
    pub(crate) fn directory(&self, by: By) -> Result<Directory, Failure> {
        let store = self.store.as_ref().ok_or(Failure::NoStore)?;
        Ok(Directory::new(Arc::clone(store), Arc::clone(&self.shared), by))
    }

    /// Counts the entries that a sweep would remove now: sessions and tombstones.
    pub(crate) async fn expired(&self) -> Result<u64, StoreError> {
        let Some(store) = &self.store else { return Ok(0) };
        store.expired(self.shared.clock.now()).await
    }

    /// Removes expired sessions from the store, and returns their number. Calls `progress` after each batch, with the
    /// number of entries removed so far: sessions and tombstones.
    pub(crate) async fn sweep(&self, progress: impl Fn(u64)) -> Result<u64, StoreError> {
        let Some(store) = &self.store else { return Ok(0) };
        let now = self.shared.clock.now();
        let (mut sessions, mut entries) = (0, 0);
        loop {
            let batch = store.sweep(now, &self.shared.policy);
            let swept = self.shared.timed(StoreOperation::Sweep, batch).await?;
            for (expired, count) in swept.sessions {
                self.shared.count_expired(expired, count);
                sessions += count;
            }
            entries += swept.entries;
            progress(entries);
            if !swept.more {
                return Ok(sessions);
            }
        }
    }

    /// Removes expired requests from the table of requests in flight.
    pub(crate) fn sweep_requests(&self) {
        self.shared.in_flight.sweep(self.shared.clock.now());
    }

    /// Checks whether the store can be read and written now. If there is none, both succeed.
    pub(crate) async fn probe(&self) -> Probed {
        let Some(store) = &self.store else { return Probed { read: true, write: true } };
        let read = self.shared.timed(StoreOperation::Ping, store.ping()).await;
        let write =
            self.shared.timed(StoreOperation::Probe, store.probe(self.shared.clock.now())).await;
        for error in [read.as_ref().err(), write.as_ref().err()].into_iter().flatten() {
            debug!(%error, "probe of the store failed");
        }
        Probed { read: read.is_ok(), write: write.is_ok() }
    }

    /// Adds the fingerprints of this instance's keys to those in the store, and checks whether its
    /// first key was there before.
    ///
    /// # Errors
    /// Returns the error of the store, which keeps no fingerprint then.
    pub(crate) async fn check_keys(&self) -> Result<ComparedKeys, StoreError> {
        let Some(store) = &self.store else { return Ok(ComparedKeys::NOT_KEPT) };
        let now = self.shared.clock.now();
        let own: Vec<Fingerprint> = self.shared.ring.fingerprints().collect();
        let known = self.shared.timed(StoreOperation::Keys, store.exchange_keys(&own, now)).await?;
        Ok(ComparedKeys::of(&own, known, self.shared.policy.rotation_grace, now))
    }

    /// Returns the keys of the instance that started or reloaded last, and of those that have the same; `None` if the store
    /// keeps none.
    ///
    /// # Errors
    /// Returns the error of the store.
    pub(crate) async fn recorded_keys(&self) -> Result<Option<Vec<Fingerprint>>, StoreError> {
        let Some(store) = &self.store else { return Ok(None) };
        let exchange = store.exchange_keys(&[], self.shared.clock.now());
        Ok(match self.shared.timed(StoreOperation::Keys, exchange).await? {
            KnownKeys::Known(keys) => Some(keys.iter().map(|key| key.fingerprint).collect()),
            KnownKeys::NotKept | KnownKeys::Denied(_) => None,
        })
    }
}
