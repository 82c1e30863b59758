//! The table of requests in flight: what a request token leads to.
//!
//! A request is in the table while it lasts. It stays for `request_token_linger` more only where
//! its token alone would not say enough: it lasted longer than [`SLACK`], or did something to what
//! it is bound to. So the table stays small whatever the rate of requests.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Sessions;
use super::exchange::Exchange;
use super::remote::Remote;
use crate::session::navigation::{Navigation, Origin};
use crate::session::peer::Instance;
use crate::session::token::{Bound, RequestToken};
use crate::time::Timestamp;

/// How long a request may last and still be left to its token alone.
pub(super) const SLACK: Duration = Duration::from_secs(1);

/// The requests in flight, of all workers.
#[derive(Debug)]
pub struct InFlight {
    shards: Vec<Mutex<Shard>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    exchanges: HashMap<u64, Arc<Exchange>>,
    /// Those that are over, by the time when they go.
    leaving: VecDeque<(Timestamp, u64)>,
}

/// What a request token leads to.
#[derive(Clone, Debug)]
pub enum Resumed {
    /// A request that this instance forwarded: in flight, or over for less than
    /// `request_token_linger`.
    Here(Arc<Exchange>),
    /// A request of another instance, or of this one before it was started anew.
    Elsewhere(Remote),
}

/// A request in the table. Dropping it says that the request is over.
#[derive(Debug)]
pub struct Tracked {
    exchange: Arc<Exchange>,
    sessions: Sessions,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { shards: (0..64).map(|_| Mutex::default()).collect(), next: AtomicU64::default() }
    }
}

impl InFlight {
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, number: u64) -> Option<MutexGuard<'_, Shard>> {
        let index = usize::try_from(number % 64).ok()?;
        Some(self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, number: u64) -> Option<Arc<Exchange>> {
        self.shard(number)?.exchanges.get(&number).cloned()
    }

    fn insert(&self, exchange: &Arc<Exchange>) {
        if let Some(mut shard) = self.shard(exchange.token.number) {
            shard.exchanges.insert(exchange.token.number, Arc::clone(exchange));
        }
    }

    /// Lets a request go, at once or at `leaves_at`; and those whose time has come.
    fn release(&self, number: u64, leaves_at: Option<Timestamp>, now: Timestamp) {
        let Some(mut shard) = self.shard(number) else {
            return;
        };
        match leaves_at {
            Some(leaves_at) => shard.leaving.push_back((leaves_at, number)),
            None => drop(shard.exchanges.remove(&number)),
        }
        while let Some((leaves_at, number)) = shard.leaving.front().copied() {
            if leaves_at >= now {
                break;
            }
            shard.leaving.pop_front();
            shard.exchanges.remove(&number);
        }
    }

    /// How many requests the table holds.
    pub fn len(&self) -> usize {
        let lock = |shard: &Mutex<Shard>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).exchanges.len()
        };
        self.shards.iter().map(lock).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Sessions {
    pub(super) fn track(&self, exchange: Exchange) -> Tracked {
        let exchange = Arc::new(exchange);
        self.shared.in_flight.insert(&exchange);
        self.shared.metrics.in_flight.inc();
        Tracked { exchange, sessions: self.clone() }
    }

    /// The request that a token of `instance` leads to. `None` where it is this one's and over for
    /// longer than `request_token_linger`.
    pub fn resume(&self, token: RequestToken, instance: &Instance) -> Option<Resumed> {
        let shared = &self.shared;
        let (now, linger) = (shared.clock.now(), shared.policy.request_token_linger);
        if instance.number != shared.instance.number {
            let session = match token.bound {
                Bound::Session(id, generation)
                    if !self.in_cookies() && token.lingers(now, linger, SLACK) =>
                {
                    Some((id, generation))
                }
                _ => None,
            };
            return Some(Resumed::Elsewhere(Remote { session, prolongs: token.prolongs }));
        }
        if let Some(exchange) = shared.in_flight.find(token.number)
            && exchange.token == token
        {
            let over = exchange.over_since();
            let is_known = over.is_none_or(|since| now <= since + linger);
            return is_known.then_some(Resumed::Here(exchange));
        }
        // It was let go within the slack.
        let origin = Origin { navigation: Navigation::None, withholds_cookie: false };
        let lingers = token.lingers(now, linger, SLACK);
        lingers.then(|| Resumed::Here(Arc::new(Exchange::lingering(token, origin))))
    }
}

impl Tracked {
    /// The request.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// The session that the request is bound to by now; for the log.
    pub fn session(&self) -> Option<crate::session::id::Id> {
        self.exchange.state.try_read().ok().and_then(|state| state.session())
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let shared = &self.sessions.shared;
        shared.metrics.in_flight.dec();
        let now = shared.clock.now();
        let token = self.exchange.token;
        self.exchange.end(now);
        // A call that still runs holds the state, and may yet move it.
        let moved =
            self.exchange.state.try_read().map_or(true, |state| state.has_moved(token.bound));
        let lasted = now > token.forwarded_at + SLACK;
        let stays = (moved || lasted) && !self.sessions.in_cookies();
        let leaves_at = stays.then(|| now + shared.policy.request_token_linger);
        shared.in_flight.release(token.number, leaves_at, now);
    }
}
