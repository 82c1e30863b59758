//! What the workers' proxies share: the routes, what they add to requests, and whom they believe.

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Version};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::config::{Config, RouteConfig, Session, Tunnels};
use super::error::{Accepts, Error};
use super::exchange_headers;
use super::forwarded::Rules;
use super::names;
use super::path::names_api;
use super::route::{Found, Matcher};
use super::via::Via;
use crate::client::{self, Balancer, Health, Pool, Target, Tls, TlsError};
use crate::log::Seen;
use crate::metrics::Metrics;
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;
use crate::random;
use crate::server::Peer;
use crate::session::record::Principal;
use crate::sessions::{Opened, Shared};
use crate::store::config::OnError;

/// A site: its routes, and the rules of its heads.
#[derive(Debug)]
pub struct Site {
    matcher: Matcher,
    routes: Vec<Route>,
    /// The names that only we may send to upstreams: what any route gives its requests.
    ours: Arc<[HeaderName]>,
    rules: Rules,
    dropped: Seen,
    lost_https: Once,
    via: Via,
    api_prefix: String,
    api_url: HeaderValue,
    body_idle_timeout: Duration,
}

/// A route, with all that can be known of it before its first request.
#[derive(Debug)]
pub(super) struct Route {
    /// Its host, if it has one, and its path, as configured; for the log.
    name: Arc<str>,
    config: RouteConfig,
    tls: Option<Arc<Tls>>,
    /// Of each upstream, where that has a bound; the workers share it.
    rooms: Vec<Option<Arc<Semaphore>>>,
    /// Of each upstream; the workers share it.
    health: Vec<Arc<Health>>,
}

/// Why a site cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The API's URL cannot be told in a header.
    #[error("the API's URL does not fit a header")]
    Url(#[from] http::header::InvalidHeaderValue),
    /// There is no TLS to an upstream.
    #[error("TLS to {upstream} cannot be set up")]
    Tls {
        /// Which.
        upstream: Target,
        /// Why not.
        source: TlsError,
    },
}

impl Site {
    /// A site as configured; `api_prefix` and `api_url` are the session API's. The health of its
    /// upstreams is shown in `metrics`.
    ///
    /// # Panics
    /// Where the operating system has no random bytes.
    pub fn new(
        config: Config,
        api_prefix: &str,
        api_url: &str,
        body_idle_timeout: Duration,
        metrics: &Metrics,
    ) -> Result<Self, SiteError> {
        let matcher = Matcher::new(
            config.routes.iter().map(|route| (route.host.clone(), route.path.clone())),
        );
        let ours = config.routes.iter().flat_map(|route| {
            let principal = route.principal_header.iter().map(|header| &header.name);
            principal.chain(route.request_headers.iter().map(|(name, _)| name)).cloned()
        });
        let ours = ours.collect();
        let route = |config: RouteConfig| {
            let tls = tls(&config)?.map(Arc::new);
            let room = |_| config.upstream_requests.map(|limit| Arc::new(Semaphore::new(limit)));
            let rooms = config.upstreams.iter().map(room).collect();
            let health = config.upstreams.iter().map(|upstream| {
                let counts = metrics.upstream(&upstream.to_string());
                Arc::new(Health::new(upstream.clone(), &counts))
            });
            let health = health.collect();
            let host = config.host.as_ref().map(ToString::to_string).unwrap_or_default();
            let name = format!("{host}{}", config.path);
            Ok(Route { name: name.into(), config, tls, rooms, health })
        };
        // Unique, so that two instances in a row are no loop; and it says nothing of us.
        let pseudonym = format!("{:016x}", u64::from_be_bytes(random::bytes()));
        let via = Via::new(&pseudonym).expect("hexadecimal digits are a token");
        Ok(Self {
            matcher,
            rules: Rules {
                trust: Trust::new(config.trusted_proxies),
                strip: config.strip_request_headers,
                keep: config.keep_request_headers,
            },
            dropped: Seen::default(),
            lost_https: Once::new(),
            ours,
            routes: config.routes.into_iter().map(route).collect::<Result<_, SiteError>>()?,
            via,
            api_prefix: api_prefix.to_owned(),
            api_url: HeaderValue::from_str(api_url)?,
            body_idle_timeout,
        })
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn ours(&self) -> &Arc<[HeaderName]> {
        &self.ours
    }

    /// Logs each name of dropped fields once.
    pub(super) fn log_dropped(&self, names: &[HeaderName]) {
        for name in names.iter().filter(|name| self.dropped.is_first(name.as_str())) {
            info!(
                header = name.as_str(),
                keys = "limits.trusted_proxies, limits.keep_request_headers",
                "dropped a request header that clients may not send; it is not logged again"
            );
        }
    }

    /// Logs once that https, as a peer reported it, was overwritten.
    pub(super) fn log_lost_https(&self, peer: Option<IpAddr>) {
        self.lost_https.call_once(|| {
            let peer = peer.map(tracing::field::display);
            warn!(
                peer,
                key = "limits.trusted_proxies",
                "overwrote X-Forwarded-Proto: https of an untrusted peer; if it is a proxy of yours, add it to trusted_proxies"
            );
        });
    }

    pub(super) fn via(&self) -> &Via {
        &self.via
    }

    pub(super) fn body_idle_timeout(&self) -> Duration {
        self.body_idle_timeout
    }

    /// The route of a request, and its index. What names the session API has none.
    pub(super) fn find(&self, parts: &Parts, peer: &Peer) -> Result<(usize, &Route), Error> {
        let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let host = host.unwrap_or_default();
        if self.is_misdirected(parts, peer, host) {
            return Err(Error::Misdirected);
        }
        let path = parts.uri.path();
        if names_api(path, &self.api_prefix) {
            return Err(Error::ApiPath(self.api_for(parts, peer)));
        }
        match self.matcher.find(host, path) {
            Found::Route(index) => {
                self.routes.get(index).map(|route| (index, route)).ok_or(Error::NoRoute)
            }
            Found::None => Err(Error::NoRoute),
            Found::Ambiguous => Err(Error::AmbiguousPath),
        }
    }

    /// Returns whether an HTTP/2 client sent a request on a connection for another host that its
    /// certificate covers too, and we would answer it only on a connection of its own (RFC 9110,
    /// section 15.5.20). It tries again on one.
    fn is_misdirected(&self, parts: &Parts, peer: &Peer, host: &str) -> bool {
        let Some(server_name) = &peer.server_name else { return false };
        let name = host::name(host);
        parts.version == Version::HTTP_2
            && !server_name.is(name)
            && (server_name.is_served_elsewhere(name) || !self.matcher.serves(host))
    }

    /// The API's URL for a developer who looks for it on this machine: both are on loopback, and the
    /// request names that and did not come through a proxy.
    fn api_for(&self, parts: &Parts, peer: &Peer) -> Option<String> {
        let is_loopback = |host: &str| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost")
                || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        let headers = &parts.headers;
        let host = headers.get(http::header::HOST)?.to_str().ok()?;
        let url = self.api_url.to_str().ok()?;
        let api = url.parse::<http::Uri>().ok()?;
        let is_here = peer.address.is_some_and(|address| address.ip().is_loopback())
            && is_loopback(host::name(host))
            && is_loopback(api.host()?)
            && !headers.contains_key(http::header::VIA)
            && !headers.keys().any(names::is_forwarding);
        is_here.then(|| url.to_owned())
    }

    /// Adds what is ours to a cleaned head: what the route gives every request, and the session.
    pub(super) fn inject(
        &self,
        headers: &mut http::HeaderMap,
        route: &Route,
        opened: Option<&Opened>,
        shared: &Shared,
    ) -> Result<(), Error> {
        for (name, value) in &route.config.request_headers {
            headers.try_insert(name, value.clone())?;
        }
        let Some(opened) = opened else { return Ok(()) };
        headers.try_insert(names::X_SESSION_URL, self.api_url.clone())?;
        exchange_headers::inject(headers, opened, shared, &route.config)
    }
}

fn tls(config: &RouteConfig) -> Result<Option<Tls>, SiteError> {
    let has_tls = |target: &&Target| matches!(target, Target::Http { scheme: Scheme::Https, .. });
    let Some(upstream) = config.upstreams.iter().find(has_tls) else { return Ok(None) };
    let failed = |source| SiteError::Tls { upstream: upstream.clone(), source };
    Tls::open(&config.upstream_tls).map(Some).map_err(failed)
}

impl Route {
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn session(&self) -> Session {
        self.config.session
    }

    pub(super) fn header_exchange(&self) -> Option<usize> {
        self.config.header_exchange
    }

    /// Whether a request may go to the upstream: where that takes somebody who is logged in, he is.
    pub(super) fn admit(
        &self,
        parts: &Parts,
        principal: Option<&Principal>,
        accepts: Accepts,
    ) -> Result<(), Error> {
        let page = self.config.require_principal.as_ref();
        page.map_or(Ok(()), |page| page.admit(parts, principal, accepts))
    }

    pub(super) fn min_body_rate(&self) -> Option<u64> {
        self.config.min_body_rate
    }

    pub(super) fn max_body(&self) -> Option<u64> {
        self.config.max_body
    }

    pub(super) fn tunnels(&self) -> Tunnels {
        self.config.tunnels
    }

    pub(super) fn tunnel_idle_timeout(&self) -> Duration {
        self.config.tunnel_idle_timeout
    }

    pub(super) fn on_error(&self) -> OnError {
        self.config.on_error
    }

    /// Its upstreams, each with connections of its own, counted in `metrics`.
    pub(super) fn balancer(&self, metrics: &Metrics) -> Balancer {
        let config = client::Config {
            connect_timeout: self.config.connect_timeout,
            response_timeout: self.config.response_timeout,
            stream_idle_timeout: Some(self.config.stream_idle_timeout),
            idle_timeout: self.config.upstream_idle_timeout,
            tls: self.tls.clone(),
            speaks: self.config.upstream_protocol,
            ..client::Config::default()
        };
        let pool = |(upstream, room): (&Target, &Option<Arc<Semaphore>>)| {
            let counts = metrics.upstream(&upstream.to_string());
            let config = client::Config { room: room.clone(), counts, ..config.clone() };
            Pool::new(upstream.clone(), config)
        };
        let pools = self.config.upstreams.iter().zip(&self.rooms).map(pool);
        let upstreams = pools.zip(self.health.iter().cloned()).collect();
        Balancer::new(upstreams, self.config.health.clone())
    }
}
