//! Settings of the public proxy.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::held_cookies::HoldConfig;
use super::login::LoginPage;
use super::route::HostPattern;
use crate::client::{HealthCheck, Target, TlsConfig, UpstreamProtocol};
use crate::secret::Secret;
use crate::session::policy::HeaderExchange;
use crate::store::config::OnError;

/// Settings of the public proxy.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Networks of the proxies whose Forwarded and X-Forwarded-* fields are trusted.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// Additional request headers that only trusted proxies may send, in any spelling.
    pub(crate) strip_request_headers: Vec<HeaderName>,
    /// Request headers that clients may send although their names resemble those of proxies; none that
    /// the proxy writes.
    pub(crate) keep_request_headers: Vec<HeaderName>,
    /// Requests whose response head takes longer are logged; `None` logs none.
    pub(crate) slow: Option<Duration>,
    /// The secret of `X-Session-Proof`; without one, requests have no such header.
    pub(crate) client_secret: Option<Secret>,
    /// The routes: at least one if there is a site to serve, and no two with the same host and path.
    pub(crate) routes: Vec<RouteConfig>,
}

/// A route: the requests that it matches, and their handling.
#[derive(Clone, Debug)]
pub(crate) struct RouteConfig {
    /// The hosts; `None` matches every host.
    pub(crate) host: Option<HostPattern>,
    /// Path prefix, in whole segments: a plain path that begins with a slash and, except for the root,
    /// does not end with one.
    pub(crate) path: String,
    /// The upstreams: at least one.
    pub(crate) upstreams: Vec<Target>,
    /// Health checks; no effect with a single upstream.
    pub(crate) health: Option<HealthCheck>,
    /// Protocol to the upstreams: HTTP/1.1, HTTP/2, or negotiated with TLS.
    pub(crate) upstream_protocol: UpstreamProtocol,
    /// TLS to the upstreams; no effect without HTTPS upstreams.
    pub(crate) upstream_tls: TlsConfig,
    /// Sessions of the requests.
    pub(crate) session: Session,
    /// Exchange of the session's values by header; `None` disables it.
    pub(crate) header_exchange: Option<HeaderExchange>,
    /// The cookies of the site that sessions hold. On a route without sessions they are removed.
    pub(crate) hold: Option<Arc<HoldConfig>>,
    /// An additional header with the principal; removed from client requests on every route.
    pub(crate) principal_header: Option<PrincipalHeader>,
    /// Login page for clients without a principal; `None` if the route does not require one.
    pub(crate) require_principal: Option<LoginPage>,
    /// Headers that are added to each request; their values are marked sensitive.
    pub(crate) request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether responses have `X-Request-Id`.
    pub(crate) request_id: bool,
    /// Handling of requests while the store is unavailable.
    pub(crate) on_error: OnError,
    /// Requests of one session wait for each other until the response head of the one before, at most for this time;
    /// `None` lets them run at the same time.
    pub(crate) one_at_a_time: Option<Duration>,
    /// Maximum size of a request body, in bytes; `None` is unlimited.
    pub(crate) max_body: Option<u64>,
    /// Minimum rate of a request body, in bytes per second, averaged over the body idle timeout. It
    /// applies until the response head has arrived. `None` disables it.
    pub(crate) min_body_rate: Option<u64>,
    /// Maximum number of concurrent requests per upstream; `None` is unlimited.
    pub(crate) upstream_requests: Option<usize>,
    /// Timeout for connecting to an upstream, and for waiting if it has the maximum of requests.
    pub(crate) connect_timeout: Duration,
    /// Timeout from the end of the request to the head of the response.
    pub(crate) response_timeout: Duration,
    /// Idle timeout of a response body, for both directions.
    pub(crate) stream_idle_timeout: Duration,
    /// Lifetime of WebSockets and event streams.
    pub(crate) tunnels: Tunnels,
    /// Idle timeout of a WebSocket, for both directions.
    pub(crate) tunnel_idle_timeout: Duration,
    /// Time that an idle connection to an upstream is kept for reuse; zero disables reuse.
    pub(crate) upstream_idle_timeout: Duration,
}

/// An additional header with the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrincipalHeader {
    /// The name of the header.
    pub(crate) name: HeaderName,
    /// The encoding of the principal.
    pub(crate) encoding: Encoding,
}

/// The encoding of text in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Encoding {
    /// Percent-encoding of `%` and every byte outside 0x21 to 0x7E.
    Percent,
    /// Raw UTF-8.
    #[serde(rename = "utf-8")]
    Utf8,
}

/// The sessions of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Session {
    /// Requests have a session, and extend its idle lifetime.
    On,
    /// Requests have a session, but do not extend its idle lifetime.
    NoTouch,
    /// Requests have no session.
    Off,
}

/// The lifetime of a WebSocket or an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tunnels {
    /// It ends with its session.
    WithSession,
    /// It is independent of its session.
    Free,
}

impl RouteConfig {
    /// Default interval of health checks.
    pub(crate) const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
}
