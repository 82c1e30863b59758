//! Several upstreams that are one: which of them gets a request, and which are left alone for a while.
//!
//! Of two that are drawn, the one with fewer requests in flight gets it (the power of two choices:
//! Mitzenmacher, 2001). One that fails again and again is left alone for a time that doubles; where all
//! are, none is. What a worker learns of an upstream is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::{Error, Kind};
use super::pool::{Copies, Failed, Pool};
use crate::body::Body;
use crate::tasks::Tasks;

/// Failures in a row after which an upstream is left alone.
const FAILURES: u32 = 3;

/// For how long, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The upstreams of a route, for one worker.
#[derive(Debug)]
pub struct Balancer {
    members: Vec<Member>,
    drawn: AtomicU64,
}

#[derive(Debug)]
struct Member {
    pool: Pool,
    in_flight: Arc<AtomicUsize>,
    health: Health,
}

impl Balancer {
    /// Over these, of which there is one at least.
    pub fn new(pools: Vec<Pool>) -> Self {
        let member = |pool: Pool| {
            pool.counts().is_well(true);
            Member { pool, in_flight: Arc::default(), health: Health::new() }
        };
        Self { members: pools.into_iter().map(member).collect(), drawn: AtomicU64::new(0) }
    }

    /// Sends a request to one of them ([`Pool::send`]). Where nothing of it was sent, or nothing of it
    /// was answered and it may be repeated (an idempotent one without a body; RFC 9110, section 9.2.2),
    /// another one gets it, once.
    pub async fn send(
        &self,
        request: Request<Body>,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let [first, ..] = self.members.as_slice() else {
            return Err(Error::with(Kind::Connect, "there is no upstream"));
        };
        if self.members.len() == 1 {
            return first.pool.send(request, tasks).await;
        }
        let chosen = self.choose(None).unwrap_or(first);
        let request = chosen.pool.prepare(request);
        let Failed { error, request } = match chosen.send(request, Copies::Kept, tasks).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        match (request, self.choose(Some(chosen))) {
            (Some(request), Some(other)) => {
                other.send(request, Copies::None, tasks).await.map_err(|failed| failed.error)
            }
            _ => Err(error),
        }
    }

    /// One that is not `but`: of those that are well, or where none is, of all.
    fn choose(&self, but: Option<&Member>) -> Option<&Member> {
        let others = || {
            self.members.iter().filter(|member| but.is_none_or(|but| !std::ptr::eq(*member, but)))
        };
        let well: Vec<&Member> = others().filter(|member| member.health.is_well()).collect();
        let among = if well.is_empty() { others().collect() } else { well };
        let (one, other) = self.draw(among.len());
        let (one, other) = (among.get(one)?, among.get(other)?);
        let load = |member: &Member| member.in_flight.load(Ordering::Relaxed);
        Some(if load(other) < load(one) { other } else { one })
    }

    /// Two different numbers below `count`, where there are two. Evenly spread, which is all that is
    /// asked of them (splitmix64: Steele, Lea and Flood, 2014).
    fn draw(&self, count: usize) -> (usize, usize) {
        let mut mixed = self.drawn.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let below =
            |number: u64, bound: usize| usize::try_from(number % bound.max(1) as u64).unwrap_or(0);
        let one = below(mixed >> 32, count);
        let other = below(mixed & 0xffff_ffff, count.saturating_sub(1));
        (one, if count > 1 && other >= one { other + 1 } else { other })
    }
}

impl Member {
    async fn send(
        &self,
        request: Request<super::connection::Outgoing>,
        copies: Copies,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Failed> {
        let in_flight = InFlight::begin(&self.in_flight);
        let sent = self.pool.try_send(request, copies, tasks).await;
        match &sent {
            Ok(_) => self.health.answered(&self.pool),
            Err(failed) => self.health.failed(&failed.error, &self.pool),
        }
        sent.map(|response| response.map(|body| body.with_guard(move |_end| drop(in_flight))))
    }
}

/// A request that one of them works on.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of an upstream's health.
#[derive(Debug)]
struct Health {
    start: Instant,
    /// In a row.
    failures: AtomicU32,
    /// How often in a row it was left alone.
    rests: AtomicU32,
    /// Until when it is, in milliseconds after the start.
    until: AtomicU64,
}

impl Health {
    fn new() -> Self {
        let (failures, rests, until) = Default::default();
        Self { start: Instant::now(), failures, rests, until }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_well(&self) -> bool {
        self.now() >= self.until.load(Ordering::Relaxed)
    }

    fn answered(&self, pool: &Pool) {
        self.failures.store(0, Ordering::Relaxed);
        if self.rests.swap(0, Ordering::Relaxed) > 0 {
            info!(upstream = %pool.target(), "an upstream answers again");
            pool.counts().is_well(true);
        }
    }

    /// One that cannot be connected to is left alone at once, and so is one that has not answered
    /// since it was left alone.
    fn failed(&self, error: &Error, pool: &Pool) {
        if error.is_request_body() || error.kind() == Kind::Busy || !self.is_well() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let rests = self.rests.load(Ordering::Relaxed);
        if failures < FAILURES && rests == 0 && !error.is_connect() {
            return;
        }
        let rest = REST.saturating_mul(1 << rests.min(5)).min(LONGEST_REST);
        let millis = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        self.until.store(self.now().saturating_add(millis), Ordering::Relaxed);
        self.rests.store(rests + 1, Ordering::Relaxed);
        pool.counts().is_well(false);
        if rests == 0 {
            warn!(upstream = %pool.target(), %error, "an upstream is left alone for a while");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Config;

    fn balancer(count: usize) -> Balancer {
        let pool = |port| {
            Pool::new(
                format!("http://127.0.0.1:{port}").parse().expect("a target"),
                Config::default(),
            )
        };
        Balancer::new((1..=count).map(pool).collect())
    }

    #[test]
    fn two_that_are_drawn_are_two_and_all_are_drawn_alike() {
        for count in [2, 3, 7] {
            let balancer = balancer(count);
            let mut drawn = vec![0; count];
            for _ in 0..count * 1000 {
                let (one, other) = balancer.draw(count);
                assert_ne!(one, other);
                drawn[one] += 1;
                drawn[other] += 1;
            }
            assert!(drawn.iter().all(|times| (1700..2300).contains(times)), "{drawn:?}");
        }
        assert_eq!(balancer(1).draw(1), (0, 0));
    }

    #[test]
    fn the_one_with_less_to_do_gets_it() {
        let balancer = balancer(2);
        let busy = &balancer.members[0];
        let _work = InFlight::begin(&busy.in_flight);
        for _ in 0..10 {
            let chosen = balancer.choose(None).expect("one");
            assert!(!std::ptr::eq(chosen, busy));
            assert!(std::ptr::eq(balancer.choose(Some(chosen)).expect("another"), busy));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_left_alone_for_longer_and_longer() {
        let balancer = balancer(2);
        let Member { pool, health, .. } = &balancer.members[0];
        let (connect, response) =
            (Error::with(Kind::Connect, "refused"), Error::with(Kind::Response, "closed"));
        health.failed(&response, pool);
        health.failed(&response, pool);
        assert!(health.is_well());
        health.answered(pool);
        health.failed(&response, pool);
        assert!(health.is_well(), "not in a row");
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            health.failed(&connect, pool);
            assert!(!health.is_well());
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(!health.is_well(), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(health.is_well(), "{seconds}");
        }
        health.answered(pool);
        health.failed(&response, pool);
        assert!(health.is_well(), "it begins anew");
    }
}
