//! Several upstreams that are one: which of them gets a request, and which are left alone for a while.
//!
//! Of two that are drawn, the one with fewer requests in flight gets it (the power of two choices:
//! Mitzenmacher, 2001). One that fails again and again is left alone for a time that doubles, and one that
//! fails when it is asked how it is until it does not; where all are, none is. The workers share what they
//! learn of an upstream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::{Request, Response};

use super::error::{Error, ErrorKind};
use super::health::{Health, HealthCheck, watch};
use super::pool::{Copies, Failed, Pool};
use crate::body::Body;
use crate::tasks::Tasks;

/// The upstreams of a route, for one worker.
#[derive(Debug)]
pub struct Balancer {
    members: Vec<Member>,
    drawn: AtomicU64,
    check: Option<HealthCheck>,
}

#[derive(Debug)]
struct Member {
    pool: Pool,
    in_flight: Arc<AtomicUsize>,
    health: Arc<Health>,
}

impl Balancer {
    /// Over these, at least one, each with the health that the workers share. From the first request on,
    /// they are health-checked as `check` says, by one of the workers.
    pub fn new(upstreams: Vec<(Pool, Arc<Health>)>, check: Option<HealthCheck>) -> Self {
        let member = |(pool, health)| Member { pool, in_flight: Arc::default(), health };
        let members = upstreams.into_iter().map(member).collect();
        Self { members, drawn: AtomicU64::new(0), check }
    }

    fn watch(&self, check: &HealthCheck, tasks: &Tasks) {
        for member in self.members.iter().filter(|member| member.health.starts_checks()) {
            let (health, pool) = (Arc::downgrade(&member.health), member.pool.clone());
            tasks.run(watch(health, pool, check.clone(), tasks.sibling())).detach();
        }
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
            return Err(Error::with(ErrorKind::Connect, "there is no upstream"));
        };
        if self.members.len() == 1 {
            return first.pool.send(request, tasks).await;
        }
        if let Some(check) = &self.check {
            self.watch(check, tasks);
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
            Ok(_) => self.health.answered(),
            Err(failed) => self.health.failed(&failed.error),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Config, Target};
    use crate::metrics::UpstreamMetrics;

    fn balancer(count: usize) -> Balancer {
        let upstream = |port| {
            let target: Target = format!("http://127.0.0.1:{port}").parse().expect("a target");
            let health = Health::new(target.clone(), &UpstreamMetrics::default());
            (Pool::new(target, Config::default()), Arc::new(health))
        };
        Balancer::new((1..=count).map(upstream).collect(), None)
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
}
