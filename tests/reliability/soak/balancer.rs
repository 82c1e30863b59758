//! The balancer: spreads pages and calls of the session API over both instances.
//!
//! It takes the other instance if one refuses the connection, which nothing of the request has
//! reached then. If a connection breaks later, a GET is repeated at the other instance; the fate of
//! anything else is unknown.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use http::{Method, Request, Response};

/// How long an answer is waited for: longer than the program may take for one.
const PATIENCE: Duration = Duration::from_secs(25);

pub struct Balancer {
    instances: Vec<Instance>,
    tasks: Tasks,
}

struct Instance {
    public: Pool,
    api: Pool,
    cached: bool,
}

/// Which listener a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Public,
    Api,
}

/// An answer, and which instance gave it when.
pub struct Answer {
    pub response: Response<Bytes>,
    pub sent: Instant,
    pub cached: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No instance took the connection.
    NotSent,
    /// The connection broke, or the answer did not come in time.
    Unknown,
}

impl Balancer {
    /// A balancer for instances at these addresses, public and API; some have a cache.
    pub fn new(instances: &[(SocketAddr, SocketAddr, bool)]) -> Self {
        let pool = |address: &SocketAddr| {
            let target: Target = format!("http://{address}").parse().unwrap();
            Pool::new(target, Config::default())
        };
        let instances = instances
            .iter()
            .map(|(public, api, cached)| Instance {
                public: pool(public),
                api: pool(api),
                cached: *cached,
            })
            .collect();
        Self { instances, tasks: Tasks::new() }
    }

    /// Sends a request to an instance chosen at random, or to another one if that is needed.
    /// `build` makes it, given when it is sent and whether the instance has a cache.
    pub async fn send(
        &self,
        side: Side,
        build: impl Fn(Instant, bool) -> Request<Body>,
    ) -> Result<Answer, NoAnswer> {
        let first = usize::from(u16::from_be_bytes(cloakroom::random::bytes()));
        let count = self.instances.len();
        let mut fate = NoAnswer::NotSent;
        for number in (0..count).map(|turn| (first + turn) % count) {
            let (sent, cached) = (Instant::now(), self.instances[number].cached);
            let request = build(sent, cached);
            let safe = request.method() == Method::GET;
            match self.fetch(number, side, request).await {
                Ok(response) => return Ok(Answer { response, sent, cached }),
                Err(NoAnswer::NotSent) => {}
                Err(NoAnswer::Unknown) => {
                    fate = NoAnswer::Unknown;
                    if !safe {
                        break;
                    }
                }
            }
        }
        Err(fate)
    }

    /// Sends a request to this instance alone.
    pub async fn send_to(
        &self,
        number: usize,
        side: Side,
        build: impl Fn(Instant, bool) -> Request<Body>,
    ) -> Result<Answer, NoAnswer> {
        let (sent, cached) = (Instant::now(), self.instances[number].cached);
        let response = self.fetch(number, side, build(sent, cached)).await?;
        Ok(Answer { response, sent, cached })
    }

    pub fn count(&self) -> usize {
        self.instances.len()
    }

    async fn fetch(
        &self,
        number: usize,
        side: Side,
        request: Request<Body>,
    ) -> Result<Response<Bytes>, NoAnswer> {
        let instance = &self.instances[number];
        let pool = match side {
            Side::Public => &instance.public,
            Side::Api => &instance.api,
        };
        let answer = pool.fetch(request, &self.tasks, 1 << 20, PATIENCE).await;
        answer.map_err(
            |error| {
                if error.is_connect() { NoAnswer::NotSent } else { NoAnswer::Unknown }
            },
        )
    }
}
