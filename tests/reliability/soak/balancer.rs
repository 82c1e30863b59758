//! The load balancer: distributes pages and calls of the session API over both instances.
//!
//! If an instance refuses the connection, no part of the request has reached it, and the other
//! instance is used. If the connection breaks later, a GET is retried at the other instance; the
//! fate of any other request is unknown.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloakroom::body::Body;
use cloakroom::client::{Config, Pool, Target};
use cloakroom::server::Tasks;
use http::{Method, Request, Response};

/// Timeout of a response: longer than the program may take.
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

/// Listener that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Public,
    Api,
}

/// A response, when its request was sent, and if the instance has a cache.
pub struct Answer {
    pub response: Response<Bytes>,
    pub sent: Instant,
    pub cached: bool,
}

/// Reason why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResponse {
    /// No instance accepted the connection.
    NotSent,
    /// The connection broke, or the response timed out.
    Unknown,
}

impl Balancer {
    /// Creates a balancer for instances with these addresses (public, API); the flag marks those
    /// with a cache.
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

    /// Sends a request to a random instance, or to another one if that fails. `build` creates it
    /// from the time of sending and the cache flag of the instance.
    pub async fn send(
        &self,
        side: Side,
        build: impl Fn(Instant, bool) -> Request<Body>,
    ) -> Result<Answer, NoResponse> {
        let first = usize::from(u16::from_be_bytes(cloakroom::random::bytes()));
        let count = self.instances.len();
        let mut fate = NoResponse::NotSent;
        for number in (0..count).map(|turn| (first + turn) % count) {
            let (sent, cached) = (Instant::now(), self.instances[number].cached);
            let request = build(sent, cached);
            let safe = request.method() == Method::GET;
            match self.fetch(number, side, request).await {
                Ok(response) => return Ok(Answer { response, sent, cached }),
                Err(NoResponse::NotSent) => {}
                Err(NoResponse::Unknown) => {
                    fate = NoResponse::Unknown;
                    if !safe {
                        break;
                    }
                }
            }
        }
        Err(fate)
    }

    /// Sends a request to this instance only.
    pub async fn send_to(
        &self,
        number: usize,
        side: Side,
        build: impl Fn(Instant, bool) -> Request<Body>,
    ) -> Result<Answer, NoResponse> {
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
    ) -> Result<Response<Bytes>, NoResponse> {
        let instance = &self.instances[number];
        let pool = match side {
            Side::Public => &instance.public,
            Side::Api => &instance.api,
        };
        let answer = pool.fetch(request, &self.tasks, 1 << 20, PATIENCE).await;
        answer.map_err(
            |error| {
                if error.is_connect() { NoResponse::NotSent } else { NoResponse::Unknown }
            },
        )
    }
}
