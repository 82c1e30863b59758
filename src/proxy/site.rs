//! The state that the proxies of all workers share: routes, trust rules and upstream limits.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use http::header::UPGRADE;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Version};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::config::{Config, RouteConfig, Session, Tunnels};
use super::error::{Accepts, Error};
use super::exchange_headers;
use super::forwarded::Rules;
use super::held_cookies::HoldConfig;
use super::names;
use super::path::is_api_path;
use super::proof::ProofKey;
use super::route::{Matcher, RouteMatch};
use super::via::Via;
use crate::client::{self, Balancer, Health, Pool, Target, Tls, TlsError};
use crate::log::Seen;
use crate::metrics::Metrics;
use crate::net::host;
use crate::net::scheme::Scheme;
use crate::net::trust::Trust;
use crate::random;
use crate::server::Peer;
use crate::session::navigation;
use crate::session::policy::HeaderExchange;
use crate::sessions::{Opened, Shared};
use crate::store::config::OnError;

/// A site: its routes, and the rules for message heads.
#[derive(Debug)]
pub(crate) struct Site {
    matcher: Matcher,
    routes: Vec<Arc<Route>>,
    /// Names of the headers that any route adds to requests; only the proxy may set them.
    injected: Arc<[HeaderName]>,
    rules: Rules,
    dropped: Seen,
    lost_https: Once,
    via: Via,
    api_prefix: String,
    api_url: HeaderValue,
    /// Signs the session headers of requests, if the site verifies them.
    proof: Option<ProofKey>,
    body_idle_timeout: Duration,
}

/// A route, with everything that can be prepared before its first request.
#[derive(Debug)]
pub(super) struct Route {
    /// The position among the routes of the site.
    index: usize,
    /// The configured host, if any, and path; for the log.
    name: Arc<str>,
    config: RouteConfig,
    slow: Option<Duration>,
    tls: Option<Arc<Tls>>,
    /// Request limits of the upstreams, if configured; shared by the workers.
    request_limits: Vec<Option<Arc<Semaphore>>>,
    /// Health of the upstreams; shared by the workers.
    health: Vec<Arc<Health>>,
}

/// The reason why a site cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The URL of the session API is not a valid header value.
    #[error("the URL of the session API is not a valid header value")]
    Url(#[from] http::header::InvalidHeaderValue),
    /// TLS to an upstream cannot be configured.
    #[error("failed to configure TLS to {upstream}")]
    Tls {
        /// The upstream.
        upstream: Target,
        /// The cause.
        source: TlsError,
    },
}

impl Site {
    /// Creates a site. `api_prefix` and `api_url` are those of the session API. The health of the upstreams
    /// is exported to `metrics`.
    ///
    /// # Panics
    /// If the operating system provides no random bytes.
    pub(crate) fn new(
        config: Config,
        api_prefix: &str,
        api_url: &str,
        body_idle_timeout: Duration,
        metrics: &Metrics,
    ) -> Result<Self, SiteError> {
        let matcher = Matcher::new(
            config.routes.iter().map(|route| (route.host.clone(), route.path.clone())),
        );
        // The names of all routes, for every route: a site may serve several routes, and would
        // trust such a header on any of them. Each once: they are compared with every field of a request.
        let injected: HashSet<HeaderName> = config
            .routes
            .iter()
            .flat_map(|route| {
                let principal = route.principal_header.iter().map(|header| &header.name);
                principal.chain(route.request_headers.iter().map(|(name, _)| name)).cloned()
            })
            .collect();
        let slow = config.slow;
        let route = |(index, config): (usize, RouteConfig)| {
            let tls = tls(&config)?.map(Arc::new);
            // Shared by all workers: the limit protects the upstream, not the worker.
            let limit = |_| config.upstream_requests.map(|limit| Arc::new(Semaphore::new(limit)));
            let request_limits = config.upstreams.iter().map(limit).collect();
            let health = config.upstreams.iter().map(|upstream| {
                let metrics = metrics.upstream(&upstream.to_string());
                Arc::new(Health::new(upstream.clone(), &metrics))
            });
            let health = health.collect();
            let host = config.host.as_ref().map(ToString::to_string).unwrap_or_default();
            let name = format!("{host}{}", config.path);
            let (name, slow) = (name.into(), slow);
            Ok(Arc::new(Route { index, name, config, slow, tls, request_limits, health }))
        };
        // Random, so that two instances in a chain are not detected as a loop, and that it reveals
        // nothing about this one.
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
            injected: injected.into_iter().collect(),
            routes: config
                .routes
                .into_iter()
                .enumerate()
                .map(route)
                .collect::<Result<_, SiteError>>()?,
            via,
            api_prefix: api_prefix.to_owned(),
            api_url: HeaderValue::from_str(api_url)?,
            proof: config.client_secret.as_ref().map(ProofKey::new),
            body_idle_timeout,
        })
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn injected(&self) -> &Arc<[HeaderName]> {
        &self.injected
    }

    /// Returns what was logged already and is logged once.
    pub(super) fn seen(&self) -> &Seen {
        &self.dropped
    }

    /// Logs the names of dropped fields, each once.
    pub(super) fn log_dropped(&self, names: &[HeaderName]) {
        for name in names.iter().filter(|name| self.dropped.is_first(name.as_str())) {
            info!(
                header = name.as_str(),
                keys = "limits.trusted_proxies, limits.keep_request_headers",
                "dropped a request header that clients may not send (logged once per name)"
            );
        }
    }

    /// Logs once that the scheme reported by an untrusted peer was overwritten.
    pub(super) fn log_lost_https(&self, peer: Option<IpAddr>) {
        self.lost_https.call_once(|| {
            let peer = peer.map(tracing::field::display);
            warn!(
                peer,
                key = "limits.trusted_proxies",
                "overwrote X-Forwarded-Proto: https of an untrusted peer; if the peer is your proxy, add it to limits.trusted_proxies"
            );
        });
    }

    pub(super) fn via(&self) -> &Via {
        &self.via
    }

    pub(super) fn body_idle_timeout(&self) -> Duration {
        self.body_idle_timeout
    }

    /// Finds the route of a request. Paths of the session API have no route.
    pub(super) fn find(&self, parts: &Parts, peer: &Peer) -> Result<&Arc<Route>, Error> {
        let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let host = host.unwrap_or_default();
        if self.is_misdirected(parts, peer, host) {
            return Err(Error::Misdirected);
        }
        // Refused in every spelling, so that no public URL can be taken for one of the session API.
        let path = parts.uri.path();
        if is_api_path(path, &self.api_prefix) {
            return Err(Error::ApiPath(self.api_hint(parts, peer)));
        }
        match self.matcher.find(host, path) {
            RouteMatch::Route(index) => self.routes.get(index).ok_or(Error::NoRoute),
            RouteMatch::None => Err(Error::NoRoute),
            RouteMatch::Ambiguous => Err(Error::AmbiguousPath),
        }
    }

    /// Returns whether a request must be repeated on a connection of its own (RFC 9110, section 15.5.20).
    /// An HTTP/2 client may reuse a connection for any host that its certificate covers, even if that
    /// host has another certificate or no route here.
    fn is_misdirected(&self, parts: &Parts, peer: &Peer, host: &str) -> bool {
        // Without TLS or SNI there is no certificate that a client could have reused the connection
        // for.
        let Some(server_name) = &peer.server_name else { return false };
        let name = host::name(host);
        parts.version == Version::HTTP_2
            && !server_name.is(name)
            && (server_name.is_served_elsewhere(name) || !self.matcher.serves(host))
    }

    /// Returns the URL of the session API as a hint for a developer on this machine: only if the peer, the
    /// Host and the API are on loopback, and the request did not pass a proxy.
    fn api_hint(&self, parts: &Parts, peer: &Peer) -> Option<String> {
        let is_loopback = |host: &str| {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost")
                || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        let headers = &parts.headers;
        let host = headers.get(http::header::HOST)?.to_str().ok()?;
        let url = self.api_url.to_str().ok()?;
        let api = url.parse::<http::Uri>().ok()?;
        // A loopback peer may be a reverse proxy, so the Host and the absence of its fields count
        // too.
        let is_local = peer.address.is_some_and(|address| address.ip().is_loopback())
            && is_loopback(host::name(host))
            && is_loopback(api.host()?)
            && !headers.contains_key(http::header::VIA)
            && !headers.keys().any(names::is_forwarding);
        is_local.then(|| url.to_owned())
    }

    /// Adds the route's headers, the session's headers and their proof to a cleaned request head. A request of a
    /// route without sessions has a proof too: it shows the site that the request comes from here.
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
        if let Some(opened) = opened {
            headers.try_insert(names::X_SESSION_URL, self.api_url.clone())?;
            exchange_headers::inject(headers, opened, shared, &route.config)?;
        }
        if let Some(key) = &self.proof {
            // Last: it signs the others.
            let proof = key.sign(headers, shared.clock.now())?;
            headers.try_insert(names::X_SESSION_PROOF, proof)?;
        }
        Ok(())
    }
}

fn tls(config: &RouteConfig) -> Result<Option<Tls>, SiteError> {
    let has_tls = |target: &&Target| matches!(target, Target::Http { scheme: Scheme::Https, .. });
    let Some(upstream) = config.upstreams.iter().find(has_tls) else { return Ok(None) };
    let failed = |source| SiteError::Tls { upstream: upstream.clone(), source };
    Tls::open(&config.upstream_tls).map(Some).map_err(failed)
}

impl Route {
    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the time after which a request is logged as slow; `None` if none is.
    pub(super) fn slow(&self) -> Option<Duration> {
        self.slow
    }

    /// Returns whether responses have `X-Request-Id`.
    pub(super) fn sends_request_id(&self) -> bool {
        self.config.request_id
    }

    pub(super) fn session(&self) -> Session {
        self.config.session
    }

    pub(super) fn hold(&self) -> Option<&HoldConfig> {
        self.config.hold.as_deref()
    }

    pub(super) fn header_exchange(&self) -> Option<HeaderExchange> {
        self.config.header_exchange
    }

    /// Returns the error for a request without a principal; `None` if it needs none.
    pub(super) fn refusal(&self, parts: &Parts, accepts: Accepts) -> Option<Error> {
        self.config.require_principal.as_ref()?.refusal(parts, accepts)
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

    /// Returns how long a request waits for its turn on its session; `None` if it does not wait for others.
    pub(super) fn turn_within(&self, parts: &Parts) -> Option<Duration> {
        let wait = self.config.one_at_a_time?;
        // The proxy has removed any upgrade but that of a WebSocket, which is open for long.
        let is_exempt = self.config.session == Session::NoTouch
            || parts.headers.contains_key(UPGRADE)
            || navigation::is_asset(&parts.method, &parts.headers);
        (!is_exempt).then_some(wait)
    }

    /// Creates a balancer over the upstreams, with connections of its own, counted in `metrics`.
    pub(super) fn balancer(&self, metrics: &Metrics) -> Balancer {
        let config = client::Config {
            connect_timeout: self.config.connect_timeout,
            response_timeout: self.config.response_timeout,
            stream_idle_timeout: Some(self.config.stream_idle_timeout),
            idle_timeout: self.config.upstream_idle_timeout,
            tls: self.tls.clone(),
            protocol: self.config.upstream_protocol,
            ..client::Config::default()
        };
        let pool = |(upstream, limit): (&Target, &Option<Arc<Semaphore>>)| {
            let metrics = metrics.upstream(&upstream.to_string());
            let config = client::Config { request_limit: limit.clone(), metrics, ..config.clone() };
            Pool::new(upstream.clone(), config)
        };
        let pools = self.config.upstreams.iter().zip(&self.request_limits).map(pool);
        let upstreams = pools.zip(self.health.iter().cloned()).collect();
        Balancer::new(upstreams, self.config.health.clone())
    }
}
