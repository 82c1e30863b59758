//! Load balancing over the upstreams of a route.
//!
//! Of two upstreams drawn at random, the one with fewer requests in flight gets the request (the power of two choices:
//! Mitzenmacher, 2001). One that fails repeatedly is ejected for a time that doubles; one that could not be connected to
//! has recovered once a request succeeds on a new connection. One that fails its health check gets no requests until it
//! passes. If all are unhealthy, all get requests. The workers share the health of an upstream.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::Response;
use tokio::time::Instant;

use super::error::{Error, ErrorKind};
use super::health::{Health, HealthCheck, watch};
use super::outgoing::{Outgoing, Reuse};
use super::pool::Pool;
use super::retry::Retry;
use crate::body::Body;
use crate::tasks::Tasks;

/// The upstreams of a route, for one worker.
#[derive(Debug)]
pub(crate) struct Balancer {
    members: Vec<Member>,
    /// State of the random numbers.
    random: AtomicU64,
    check: Option<HealthCheck>,
}

#[derive(Debug)]
struct Member {
    pool: Pool,
    in_flight: Arc<AtomicUsize>,
    health: Arc<Health>,
}

impl Balancer {
    /// Balances over `upstreams`, at least one, each with the health that the workers share. If there are several, one
    /// of the workers runs the health checks, from the first request on.
    pub(crate) fn new(upstreams: Vec<(Pool, Arc<Health>)>, check: Option<HealthCheck>) -> Self {
        let member = |(pool, health)| Member { pool, in_flight: Arc::default(), health };
        let members = upstreams.into_iter().map(member).collect();
        Self { members, random: AtomicU64::new(0), check }
    }

    fn start_checks(&self, check: &HealthCheck, tasks: &Tasks) {
        for member in self.members.iter().filter(|member| member.health.claim_checks()) {
            let (health, pool) = (Arc::downgrade(&member.health), member.pool.clone());
            tasks.run(watch(health, pool, check.clone(), tasks.sibling())).detach();
        }
    }

    /// Sends a request to one of the upstreams, as [`Pool::send`] does. If nothing of it was sent, or if there was no byte
    /// of a response and it may be repeated (RFC 9110, section 9.2.2), it is sent to another one, once.
    ///
    /// # Errors
    /// There is no response; see [`ErrorKind`].
    pub(crate) async fn send(
        &self,
        outgoing: &mut Outgoing,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let [first, ..] = self.members.as_slice() else {
            return Err(Error::with(ErrorKind::Connect, "there is no upstream"));
        };
        // A single upstream gets all requests: its health is neither checked nor recorded.
        if self.members.len() == 1 {
            pin!(first.pool.send(outgoing, Retry::Never, tasks)).await
        } else {
            Box::pin(self.send_to_healthy(first, outgoing, tasks)).await
        }
    }

    /// Sends a request to a healthy upstream, or to `first` if there is none.
    async fn send_to_healthy(
        &self,
        first: &Member,
        outgoing: &mut Outgoing,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        if let Some(check) = &self.check {
            self.start_checks(check, tasks);
        }
        let chosen = self.choose(None).unwrap_or(first);
        if self.has_another(chosen) && chosen.health.claim_trial() {
            outgoing.set_reuse(Reuse::Never);
        }
        let error = match chosen.send(outgoing, Retry::OnAnotherUpstream, tasks).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        match self.choose(Some(chosen)) {
            Some(other) if outgoing.can_be_sent() => {
                outgoing.set_reuse(Reuse::Kept);
                other.send(outgoing, Retry::Never, tasks).await
            }
            _ => Err(error),
        }
    }

    /// Returns whether there is another healthy upstream than `chosen`, for a request that finds that one unreachable.
    fn has_another(&self, chosen: &Member) -> bool {
        self.members
            .iter()
            .any(|member| !std::ptr::eq(member, chosen) && member.health.is_available())
    }

    /// Chooses one of the healthy upstreams other than `except`, or if there is none, of the unhealthy ones.
    fn choose(&self, except: Option<&Member>) -> Option<&Member> {
        let others = || {
            self.members
                .iter()
                .filter(|member| except.is_none_or(|except| !std::ptr::eq(*member, except)))
        };
        let healthy: Vec<&Member> =
            others().filter(|member| member.health.is_available()).collect();
        let candidates = if healthy.is_empty() { others().collect() } else { healthy };
        let (one, other) = self.draw(candidates.len());
        let (one, other) = (candidates.get(one)?, candidates.get(other)?);
        let load = |member: &Member| member.in_flight.load(Ordering::Relaxed);
        Some(if load(other) < load(one) { other } else { one })
    }

    /// Draws two different numbers below `count`, if there are two. They need to be evenly distributed, not
    /// unpredictable (splitmix64: Steele, Lea and Flood, 2014).
    fn draw(&self, count: usize) -> (usize, usize) {
        let mut mixed = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
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
        outgoing: &mut Outgoing,
        retry: Retry,
        tasks: &Tasks,
    ) -> Result<Response<Body>, Error> {
        let (in_flight, started) = (InFlight::start(&self.in_flight), Instant::now());
        let sent = pin!(self.pool.send(outgoing, retry, tasks)).await;
        match &sent {
            Ok(_) => self.health.record_success(outgoing.was_opened().then_some(started)),
            Err(error) => self.health.record_failure(error),
        }
        sent.map(|response| response.map(|body| body.holding(in_flight)))
    }
}

/// A request in flight to an upstream.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn start(count: &Arc<AtomicUsize>) -> Self {
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
    fn draws_are_distinct_and_uniform() {
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
    fn less_loaded_upstream_is_chosen() {
        let balancer = balancer(2);
        let busy = &balancer.members[0];
        let _work = InFlight::start(&busy.in_flight);
        for _ in 0..10 {
            let chosen = balancer.choose(None).expect("one");
            assert!(!std::ptr::eq(chosen, busy));
            assert!(std::ptr::eq(balancer.choose(Some(chosen)).expect("another"), busy));
        }
    }
}
