//! The table of requests in flight, by the numbers in their request tokens.
//!
//! A request is in the table while it lasts. What late calls need of it, some tens of bytes, stays for
//! `request_token_linger` more, and only if its token alone would not say enough: it lasted longer than
//! [`SLACK`], or changed its binding. At most [`InFlight::MAX_LINGERING`] ended requests are kept; beyond
//! that the oldest is evicted, and its calls get 410.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::request::{EndedRequest, InFlightRequest};
use crate::session::token::RequestToken;
use crate::time::Timestamp;

/// The longest duration of a request that leaves nothing but its token.
pub(super) const SLACK: Duration = Duration::from_secs(1);

/// The requests in flight, of all workers, and what is kept of ended ones.
#[derive(Debug)]
pub(crate) struct InFlight {
    shards: Vec<Mutex<Shard>>,
    next: AtomicU64,
    lingering: Gauge,
}

#[derive(Debug, Default)]
struct Shard {
    /// Requests that last, and ended ones that a call uses.
    requests: HashMap<u64, Arc<InFlightRequest>>,
    /// The kept parts of the other ended requests.
    ended: HashMap<u64, EndedRequest>,
    /// All ended requests, by the time when they expire.
    expiring: VecDeque<(Timestamp, u64)>,
    /// Ended requests that a call used at the last check.
    in_use: Vec<u64>,
    /// The end of the last request that was evicted. The token alone may not say enough about a
    /// request that was forwarded no later.
    evicted_until: Option<Timestamp>,
}

/// The result of looking a request up.
pub(super) enum Lookup {
    Found(Arc<InFlightRequest>),
    /// Nothing is kept of it: its token says enough.
    NotKept,
    /// Nothing is kept of it, and it may have been evicted.
    Evicted,
}

const SHARDS: u64 = 64;

impl Default for InFlight {
    fn default() -> Self {
        Self::new(Gauge::default())
    }
}

impl InFlight {
    /// The maximum number of ended requests of which something is kept: about 30 MB of memory.
    const MAX_LINGERING: usize = 256 * 1024;

    /// Creates an empty table that reports the number of lingering requests to `lingering`.
    pub(crate) fn new(lingering: Gauge) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, next: AtomicU64::default(), lingering }
    }

    /// Returns the number of the next request.
    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, number: u64) -> Option<MutexGuard<'_, Shard>> {
        let index = usize::try_from(number % SHARDS).ok()?;
        // No code panics while it holds the lock.
        Some(self.shards.get(index)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn find(&self, token: RequestToken) -> Lookup {
        let Some(mut shard) = self.shard(token.number) else { return Lookup::NotKept };
        shard.find(token)
    }

    pub(super) fn insert(&self, request: &Arc<InFlightRequest>) {
        if let Some(mut shard) = self.shard(request.token.number) {
            shard.requests.insert(request.token.number, Arc::clone(request));
        }
    }

    /// Removes a request of which nothing needs to be kept.
    pub(super) fn remove(&self, number: u64) {
        if let Some(mut shard) = self.shard(number) {
            shard.requests.remove(&number);
        }
    }

    /// Keeps what late calls need of an ended request until `expires_at`.
    pub(super) fn keep(&self, request: &Arc<InFlightRequest>, expires_at: Timestamp) {
        let number = request.token.number;
        let Some(mut shard) = self.shard(number) else { return };
        // In addition to the table and the caller, a running call has a reference, and may still
        // change the request.
        if Arc::strong_count(request) > 2 {
            shard.in_use.push(number);
        } else if let Some(ended) = request.to_ended() {
            shard.requests.remove(&number);
            shard.ended.insert(number, ended);
        }
        shard.expiring.push_back((expires_at, number));
        self.lingering.inc();
        if shard.expiring.len() > Self::MAX_LINGERING / self.shards.len() {
            shard.evict_oldest();
            self.lingering.dec();
        }
    }

    /// Removes expired requests, and releases memory that is no longer needed. Called once a second.
    pub(crate) fn sweep(&self, now: Timestamp) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            while shard.expiring.front().is_some_and(|(expires_at, _)| *expires_at < now) {
                shard.remove_oldest();
                self.lingering.dec();
            }
            shard.compact();
        }
    }
}

impl Shard {
    fn find(&mut self, token: RequestToken) -> Lookup {
        let number = token.number;
        if let Some(request) = self.requests.get(&number) {
            return Lookup::Found(Arc::clone(request));
        }
        if let Some(ended) = self.ended.remove(&number) {
            // A call may change it, and the next call must see that.
            let request = Arc::new(InFlightRequest::ended(token, ended));
            self.requests.insert(number, Arc::clone(&request));
            self.in_use.push(number);
            return Lookup::Found(request);
        }
        match self.evicted_until {
            Some(until) if token.forwarded_at <= until => Lookup::Evicted,
            _ => Lookup::NotKept,
        }
    }

    /// Removes the ended request that expires first, and returns when it ended.
    fn remove_oldest(&mut self) -> Option<Timestamp> {
        let (_, number) = self.expiring.pop_front()?;
        let ended_at = self.ended.remove(&number).map(|ended| ended.ended_at);
        ended_at.or_else(|| self.requests.remove(&number)?.ended_at())
    }

    fn evict_oldest(&mut self) {
        let ended_at = self.remove_oldest();
        self.evicted_until = self.evicted_until.max(ended_at);
    }

    /// Reduces the ended requests that no call uses any more to what late calls need.
    fn compact(&mut self) {
        let Self { requests, ended, in_use, .. } = self;
        in_use.retain(|number| {
            let Some(request) = requests.get(number) else { return false };
            if Arc::strong_count(request) > 1 {
                return true;
            }
            let Some(kept) = request.to_ended() else { return true };
            requests.remove(number);
            ended.insert(*number, kept);
            false
        });
        let is_sparse = |capacity: usize, len: usize| capacity > 64 && len < capacity / 4;
        if is_sparse(ended.capacity(), ended.len()) {
            ended.shrink_to(ended.len() * 2);
        }
        if is_sparse(self.expiring.capacity(), self.expiring.len()) {
            self.expiring.shrink_to(self.expiring.len() * 2);
        }
        if is_sparse(requests.capacity(), requests.len()) {
            requests.shrink_to(requests.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Source;
    use crate::session::id::Id;
    use crate::session::navigation::{Navigation, Origin};
    use crate::sessions::request::{
        Binding, CookieOutcome, RequestContext, TokenOrigin, TouchPolicy,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// Inserts a request without a session that began at `began`, created one and ended at
    /// `ended`.
    fn request(table: &InFlight, began: Timestamp, ended: Timestamp) -> Arc<InFlightRequest> {
        let context = RequestContext {
            origin: Origin { navigation: Navigation::None, withholds_cookie: false },
            touch: TouchPolicy::OnUse,
            source: Source::default(),
            client: None,
            address: None,
            header_exchange: None,
        };
        let number = table.next_number();
        let request = InFlightRequest::new(number, CookieOutcome::None, context, None, began);
        let request = Arc::new(request);
        table.insert(&request);
        let mut state = request.state.try_write().expect("not locked");
        state.binding = Binding::Session { id: Id::from_bytes([1; 16]), generation: 1, own: false };
        state.token = TokenOrigin::Created;
        drop(state);
        request.end(ended);
        request
    }

    fn ended(table: &InFlight, began: Timestamp, ended: Timestamp) -> RequestToken {
        let request = request(table, began, ended);
        table.keep(&request, ended + Duration::from_mins(1));
        request.token
    }

    fn lens(table: &InFlight) -> (usize, usize, usize) {
        let shards = table.shards.iter().map(|shard| shard.lock().expect("no panic"));
        shards.fold((0, 0, 0), |(requests, ended, expiring), shard| {
            (
                requests + shard.requests.len(),
                ended + shard.ended.len(),
                expiring + shard.expiring.len(),
            )
        })
    }

    #[test]
    fn kept_part_of_a_request_is_small() {
        assert!(size_of::<(u64, EndedRequest)>() <= 48, "{}", size_of::<(u64, EndedRequest)>());
        let table = InFlight::default();
        for _ in 0..100 {
            ended(&table, at(0), at(1));
        }
        assert_eq!(lens(&table), (0, 100, 100));
        assert_eq!(table.lingering.get(), 100);
    }

    #[test]
    fn late_calls_see_earlier_changes() {
        let table = InFlight::default();
        let token = ended(&table, at(0), at(1));
        let Lookup::Found(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.ended_at(), Some(at(1)));
        let mut state = found.state.try_write().expect("not locked");
        assert!(state.is_new() && state.has_moved(token.bound));
        state.binding = Binding::Ended;
        drop(state);
        // A sweep keeps a request that a call uses, and its change after the call.
        for (used, lens_after) in [(Some(found), (1, 0, 1)), (None, (0, 1, 1))] {
            table.sweep(at(2));
            assert_eq!(lens(&table), lens_after);
            drop(used);
        }
        let Lookup::Found(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.state.try_read().expect("not locked").binding, Binding::Ended);
    }

    #[test]
    fn call_may_outlast_its_request() {
        let table = InFlight::default();
        let request = request(&table, at(0), at(1));
        let call = Arc::clone(&request);
        table.keep(&request, at(61));
        let token = request.token;
        drop(request);
        call.state.try_write().expect("not locked").binding = Binding::Ended;
        drop(call);
        table.sweep(at(2));
        assert_eq!(lens(&table), (0, 1, 1));
        let Lookup::Found(found) = table.find(token) else { panic!("kept") };
        assert_eq!(found.state.try_read().expect("not locked").binding, Binding::Ended);
    }

    #[test]
    fn expired_requests_are_swept() {
        let table = InFlight::default();
        let kept = [(); 3].map(|()| ended(&table, at(0), at(1)));
        let used = ended(&table, at(0), at(1));
        let Lookup::Found(call) = table.find(used) else { panic!("kept") };
        table.sweep(at(61));
        assert_eq!(lens(&table), (1, 3, 4));
        table.sweep(at(62));
        assert_eq!((lens(&table), table.lingering.get()), ((0, 0, 0), 0));
        drop(call);
        assert!(matches!(table.find(kept[0]), Lookup::NotKept));
    }

    #[test]
    fn oldest_is_evicted_first() {
        let table = InFlight::default();
        let oldest: Vec<_> = (0..64).map(|_| ended(&table, at(0), at(1))).collect();
        // A request that lasts, and a later one of which nothing was kept.
        let lasts = request(&table, at(0), at(0));
        let most = i64::try_from(InFlight::MAX_LINGERING).expect("a number");
        let newest = (0..most).map(|_| ended(&table, at(5), at(6))).last().expect("many");
        assert_eq!(lens(&table), (1, InFlight::MAX_LINGERING, InFlight::MAX_LINGERING));
        assert_eq!(table.lingering.get(), most);
        assert!(oldest.into_iter().all(|token| matches!(table.find(token), Lookup::Evicted)));
        assert!(matches!(table.find(newest), Lookup::Found(_)));
        assert!(matches!(table.find(lasts.token), Lookup::Found(_)));
        let other = |forwarded_at| RequestToken { number: 1 << 40, forwarded_at, ..newest };
        assert!(matches!(table.find(other(at(1))), Lookup::Evicted));
        assert!(matches!(table.find(other(at(5))), Lookup::NotKept));
        // The memory is released.
        table.sweep(at(100));
        let shards = table.shards.iter().map(|shard| shard.lock().expect("no panic"));
        assert!(shards.map(|shard| shard.ended.capacity()).sum::<usize>() < 64 * 64);
    }
}
