//! State that all workers share.

use std::sync::Arc;
use std::time::Instant;

use super::address_limit::AddressCounts;
use super::in_flight::InFlight;
use crate::audit::Audit;
use crate::metrics::{EndReason, Event, Metrics, SessionTokens, StoreOperation};
use crate::session::cookie::Attributes;
use crate::session::id::Id;
use crate::session::key_ring::KeyRing;
use crate::session::peer::Instance;
use crate::session::policy::{Expired, Policy};
use crate::store::{Answer, Error as StoreError};
use crate::time::Clock;
use crate::turns::Turns;

/// State that all workers share. A reload replaces it, and keeps the tables.
#[derive(Debug)]
pub struct Shared {
    pub(crate) ring: Arc<KeyRing>,
    /// The counters of the keys of `ring`.
    pub(crate) session_tokens: SessionTokens,
    pub(crate) attributes: Attributes,
    pub(crate) policy: Policy,
    pub(crate) clock: Clock,
    /// The metrics of the process.
    pub metrics: Metrics,
    pub(crate) audit: Audit,
    /// The number of sessions that each client address has created.
    pub(crate) new_sessions: Arc<AddressCounts>,
    pub(crate) in_flight: Arc<InFlight>,
    /// The requests that wait for their turn on a session.
    pub(crate) turns: Arc<Turns<Id>>,
    /// This process, as other instances reach it.
    pub(crate) instance: Instance,
}

impl Shared {
    /// Waits for a call to the store, and records its duration under `operation`.
    pub(super) async fn timed<T>(
        &self,
        operation: StoreOperation,
        answer: Answer<'_, T>,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let answer = answer.await;
        self.metrics.store_call(operation, start.elapsed(), answer.is_err());
        answer
    }

    /// Counts sessions that had expired and were removed.
    pub(super) fn count_expired(&self, reason: Expired, count: u64) {
        let reason = match reason {
            Expired::Idle => EndReason::IdleTimeout,
            Expired::Absolute => EndReason::AbsoluteTimeout,
            Expired::Unproven => EndReason::UnprovenTimeout,
            Expired::Date => EndReason::ExpiredByDate,
        };
        self.metrics.sessions_ended(reason, count);
        self.metrics.events(Event::Expired, count);
    }
}

#[cfg(test)]
impl Shared {
    /// Returns the state of one worker with a key of the tests.
    pub(crate) fn for_tests(clock: &Clock, policy: Policy) -> Arc<Self> {
        let metrics = Metrics::new();
        Arc::new(Self {
            audit: Audit::for_tests(&metrics, clock),
            ring: Arc::new(KeyRing::new(&zeroize::Zeroizing::new([7; 32]), &[])),
            attributes: Attributes::default(),
            policy,
            clock: clock.clone(),
            session_tokens: SessionTokens::default(),
            metrics,
            new_sessions: Arc::default(),
            in_flight: Arc::default(),
            turns: Arc::default(),
            instance: Instance { number: 1, authority: String::new() },
        })
    }
}
