//! The table of requests in flight: what a request token leads to.
//!
//! A request is in the table while it lasts. What late calls need of it, some tens of bytes, stays for
//! `request_token_linger` more, and only if its token alone would not say enough: it lasted longer than
//! [`SLACK`], or did something to what it is bound to. There are at most [`InFlight::MAX_LINGERING`] of
//! those; beyond, the oldest goes early, and calls of it get 410.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::Sessions;
use super::exchange::{Exchange, Over};
use super::remote::Remote;
use crate::session::peer::Instance;
use crate::session::token::{Bound, RequestToken};
use crate::time::Timestamp;

/// How long a request may last and still be left to its token alone.
pub(super) const SLACK: Duration = Duration::from_secs(1);

/// The requests in flight, of all workers, and what is kept of those that are over.
#[derive(Debug)]
pub struct InFlight {
    shards: Vec<Mutex<Shard>>,
    next: AtomicU64,
    lingering: Gauge,
}

#[derive(Debug, Default)]
struct Shard {
    /// Those that last, and those that are over while a call uses them.
    exchanges: HashMap<u64, Arc<Exchange>>,
    /// What is kept of the others that are over.
    over: HashMap<u64, Over>,
    /// All that are over, by the time when they go.
    leaving: VecDeque<(Timestamp, u64)>,
    /// Those that are over and were in use when that was last checked.
    used: Vec<u64>,
    /// The end of the last one that went early: of a request forwarded no later, the token alone may
    /// not say enough.
    gone_until: Option<Timestamp>,
}

/// What the table has of a request.
enum Kept {
    /// All.
    Whole(Arc<Exchange>),
    /// Nothing; its token says enough.
    Nothing,
    /// Nothing; it may have gone early.
    Gone,
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

const SHARDS: u64 = 64;

impl Default for InFlight {
    fn default() -> Self {
        Self::new(Gauge::default())
    }
}

impl InFlight {
    /// The most requests of which something is kept after their end: about 30 MB of memory.
    pub const MAX_LINGERING: usize = 256 * 1024;

    /// An empty table; `lingering` says how many requests are kept that are over.
    pub fn new(lingering: Gauge) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, next: AtomicU64::default(), lingering }
    }

    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Nothing panics while it is held.
    fn shard(&self, number: u64) -> Option<MutexGuard<'_, Shard>> {
        let index = usize::try_from(number % SHARDS).ok()?;
        Some(self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, token: RequestToken) -> Kept {
        let Some(mut shard) = self.shard(token.number) else { return Kept::Nothing };
        shard.find(token)
    }

    fn insert(&self, exchange: &Arc<Exchange>) {
        if let Some(mut shard) = self.shard(exchange.token.number) {
            shard.exchanges.insert(exchange.token.number, Arc::clone(exchange));
        }
    }

    /// Lets a request go that is over.
    fn release(&self, number: u64) {
        if let Some(mut shard) = self.shard(number) {
            shard.exchanges.remove(&number);
        }
    }

    /// Keeps until `leaves_at` what late calls need of a request that is over.
    fn keep(&self, exchange: &Arc<Exchange>, leaves_at: Timestamp) {
        let number = exchange.token.number;
        let Some(mut shard) = self.shard(number) else { return };
        // Beside the table's and the caller's, a call that runs has one, and may yet change it.
        if Arc::strong_count(exchange) > 2 {
            shard.used.push(number);
        } else if let Some(over) = exchange.summary() {
            shard.exchanges.remove(&number);
            shard.over.insert(number, over);
        }
        shard.leaving.push_back((leaves_at, number));
        self.lingering.inc();
        if shard.leaving.len() > Self::MAX_LINGERING / self.shards.len() {
            shard.drop_oldest();
            self.lingering.dec();
        }
    }

    /// Drops what is kept of requests that are over for longer than they linger, and gives back memory
    /// that is not needed any more. Called once a second.
    pub(super) fn sweep(&self, now: Timestamp) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            while shard.leaving.front().is_some_and(|(leaves_at, _)| *leaves_at < now) {
                shard.leave();
                self.lingering.dec();
            }
            shard.compact();
        }
    }
}

impl Shard {
    fn find(&mut self, token: RequestToken) -> Kept {
        let number = token.number;
        if let Some(exchange) = self.exchanges.get(&number) {
            return Kept::Whole(Arc::clone(exchange));
        }
        if let Some(over) = self.over.remove(&number) {
            // A call may change it, and the next one is to see that.
            let exchange = Arc::new(Exchange::over(token, over));
            self.exchanges.insert(number, Arc::clone(&exchange));
            self.used.push(number);
            return Kept::Whole(exchange);
        }
        match self.gone_until {
            Some(until) if token.forwarded_at <= until => Kept::Gone,
            _ => Kept::Nothing,
        }
    }

    /// Lets the first go that is over.
    fn leave(&mut self) -> Option<Timestamp> {
        let (_, number) = self.leaving.pop_front()?;
        let over = self.over.remove(&number).map(|over| over.since);
        over.or_else(|| self.exchanges.remove(&number)?.over_since())
    }

    fn drop_oldest(&mut self) {
        let since = self.leave();
        self.gone_until = self.gone_until.max(since);
    }

    /// Keeps of those that no call uses any more what late calls need.
    fn compact(&mut self) {
        let Self { exchanges, over, used, .. } = self;
        used.retain(|number| {
            let Some(exchange) = exchanges.get(number) else { return false };
            if Arc::strong_count(exchange) > 1 {
                return true;
            }
            let Some(summary) = exchange.summary() else { return true };
            exchanges.remove(number);
            over.insert(*number, summary);
            false
        });
        let spare = |capacity: usize, len: usize| capacity > 64 && len < capacity / 4;
        if spare(over.capacity(), over.len()) {
            over.shrink_to(over.len() * 2);
        }
        if spare(self.leaving.capacity(), self.leaving.len()) {
            self.leaving.shrink_to(self.leaving.len() * 2);
        }
        if spare(exchanges.capacity(), exchanges.len()) {
            exchanges.shrink_to(exchanges.len() * 2);
        }
    }
}

impl Sessions {
    pub(super) fn track(&self, exchange: Exchange) -> Tracked {
        let exchange = Arc::new(exchange);
        self.shared.in_flight.insert(&exchange);
        self.shared.metrics.requests_in_flight().inc();
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
        match shared.in_flight.find(token) {
            Kept::Whole(exchange) => {
                let over = exchange.over_since();
                let is_known = over.is_none_or(|since| now <= since + linger);
                is_known.then_some(Resumed::Here(exchange))
            }
            Kept::Nothing => {
                // It was let go within the slack.
                let lingers = token.lingers(now, linger, SLACK);
                lingers
                    .then(|| Resumed::Here(Arc::new(Exchange::over(token, Over::unmoved(token)))))
            }
            Kept::Gone => None,
        }
    }

    /// Drops what is kept of requests that are over, when its time has come.
    pub fn sweep_requests(&self) {
        self.shared.in_flight.sweep(self.shared.clock.now());
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
        shared.metrics.requests_in_flight().dec();
        let now = shared.clock.now();
        let token = self.exchange.token;
        self.exchange.end(now);
        // A call that still runs holds the state, and may yet move it.
        let moved =
            self.exchange.state.try_read().map_or(true, |state| state.has_moved(token.bound));
        let lasted = now > token.forwarded_at + SLACK;
        if (moved || lasted) && !self.sessions.in_cookies() {
            // No shorter than its token alone would be taken at its word.
            let linger = shared.policy.request_token_linger + SLACK;
            shared.in_flight.keep(&self.exchange, now + linger);
        } else {
            shared.in_flight.release(token.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::id::Id;
    use crate::session::navigation::{Navigation, Origin};
    use crate::sessions::exchange::{Binding, CookieOutcome, TouchPolicy};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// A request that came without a session at `began`, made one, and is over at `ended`.
    fn request(table: &InFlight, began: Timestamp, ended: Timestamp) -> Arc<Exchange> {
        let origin = Origin { navigation: Navigation::None, withholds_cookie: false };
        let drawn = (began, Id::from_bytes([1; 16]));
        let number = table.number();
        let exchange =
            Exchange::new(number, CookieOutcome::None, origin, TouchPolicy::OnUse, None, drawn);
        let exchange = Arc::new(exchange);
        table.insert(&exchange);
        let mut state = exchange.state.try_write().expect("nobody else has it");
        state.binding = Binding::Session { id: Id::from_bytes([1; 16]), generation: 1, own: false };
        state.made = true;
        drop(state);
        exchange.end(ended);
        exchange
    }

    fn over(table: &InFlight, began: Timestamp, ended: Timestamp) -> RequestToken {
        let exchange = request(table, began, ended);
        table.keep(&exchange, ended + Duration::from_mins(1));
        exchange.token
    }

    fn lens(table: &InFlight) -> (usize, usize, usize) {
        let shards = table.shards.iter().map(|shard| shard.lock().expect("no panic"));
        shards.fold((0, 0, 0), |(whole, over, leaving), shard| {
            (whole + shard.exchanges.len(), over + shard.over.len(), leaving + shard.leaving.len())
        })
    }

    #[test]
    fn what_is_kept_of_a_request_is_small() {
        assert!(size_of::<(u64, Over)>() <= 48, "{}", size_of::<(u64, Over)>());
        let table = InFlight::default();
        for _ in 0..100 {
            over(&table, at(0), at(1));
        }
        assert_eq!(lens(&table), (0, 100, 100));
        assert_eq!(table.lingering.get(), 100);
    }

    #[test]
    fn a_late_call_finds_what_the_request_and_calls_before_did() {
        let table = InFlight::default();
        let token = over(&table, at(0), at(1));
        let Kept::Whole(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.over_since(), Some(at(1)));
        let mut state = found.state.try_write().expect("nobody else has it");
        assert!(state.made && state.has_moved(token.bound));
        state.binding = Binding::Ended;
        drop(state);
        // A sweep leaves alone what a call uses, and keeps its change after it.
        for (used, lens_after) in [(Some(found), (1, 0, 1)), (None, (0, 1, 1))] {
            table.sweep(at(2));
            assert_eq!(lens(&table), lens_after);
            drop(used);
        }
        let Kept::Whole(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.state.try_read().expect("nobody writes").binding, Binding::Ended);
    }

    #[test]
    fn a_call_that_outlasts_its_request_is_not_cut_off() {
        let table = InFlight::default();
        let exchange = request(&table, at(0), at(1));
        let call = Arc::clone(&exchange);
        table.keep(&exchange, at(61));
        let token = exchange.token;
        drop(exchange);
        call.state.try_write().expect("nobody else has it").binding = Binding::Ended;
        drop(call);
        table.sweep(at(2));
        assert_eq!(lens(&table), (0, 1, 1));
        let Kept::Whole(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.state.try_read().expect("nobody writes").binding, Binding::Ended);
    }

    #[test]
    fn what_is_over_long_enough_is_swept() {
        let table = InFlight::default();
        let kept = [(); 3].map(|()| over(&table, at(0), at(1)));
        let used = over(&table, at(0), at(1));
        let Kept::Whole(call) = table.find(used) else { panic!("kept") };
        table.sweep(at(61));
        assert_eq!(lens(&table), (1, 3, 4));
        table.sweep(at(62));
        assert_eq!((lens(&table), table.lingering.get()), ((0, 0, 0), 0));
        drop(call);
        assert!(matches!(table.find(kept[0]), Kept::Nothing));
    }

    #[test]
    fn the_oldest_goes_early_and_is_known_to_be_gone() {
        let table = InFlight::default();
        let oldest: Vec<_> = (0..64).map(|_| over(&table, at(0), at(1))).collect();
        // One that lasts, and one that came later and left nothing.
        let lasts = request(&table, at(0), at(0));
        let most = i64::try_from(InFlight::MAX_LINGERING).expect("a number");
        let newest = (0..most).map(|_| over(&table, at(5), at(6))).last().expect("many");
        assert_eq!(lens(&table), (1, InFlight::MAX_LINGERING, InFlight::MAX_LINGERING));
        assert_eq!(table.lingering.get(), most);
        assert!(oldest.into_iter().all(|token| matches!(table.find(token), Kept::Gone)));
        assert!(matches!(table.find(newest), Kept::Whole(_)));
        assert!(matches!(table.find(lasts.token), Kept::Whole(_)));
        let other = |forwarded_at| RequestToken { number: 1 << 40, forwarded_at, ..newest };
        assert!(matches!(table.find(other(at(1))), Kept::Gone));
        assert!(matches!(table.find(other(at(5))), Kept::Nothing));
        // The memory of many is given back.
        table.sweep(at(100));
        let shards = table.shards.iter().map(|shard| shard.lock().expect("no panic"));
        assert!(shards.map(|shard| shard.over.capacity()).sum::<usize>() < 64 * 64);
    }
}
