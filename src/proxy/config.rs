//! Settings of the public proxy.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::login::LoginPage;
use super::route::HostPattern;
use crate::client::{HealthCheck, Target, TlsConfig, UpstreamProtocol};
use crate::store::config::OnError;

/// Settings of the public proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// Networks of the proxies whose Forwarded and X-Forwarded-* fields are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Additional request headers that only trusted proxies may send, in any spelling.
    pub strip_request_headers: Vec<HeaderName>,
    /// Request headers that clients may send although their names resemble those of proxies; none that
    /// the proxy writes.
    pub keep_request_headers: Vec<HeaderName>,
    /// The routes: at least one if there is a site to serve, and no two with the same host and path.
    pub routes: Vec<RouteConfig>,
}

/// A route: the requests that it matches, and their handling.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The hosts; `None` matches every host.
    pub host: Option<HostPattern>,
    /// Path prefix, in whole segments: a plain path that begins with a slash and, except for the root,
    /// does not end with one.
    pub path: String,
    /// The upstreams: at least one.
    pub upstreams: Vec<Target>,
    /// Health checks; no effect with a single upstream.
    pub health: Option<HealthCheck>,
    /// Protocol to the upstreams: HTTP/1.1, HTTP/2, or negotiated with TLS.
    pub upstream_protocol: UpstreamProtocol,
    /// TLS to the upstreams; no effect without HTTPS upstreams.
    pub upstream_tls: TlsConfig,
    /// Sessions of the requests.
    pub session: Session,
    /// Maximum size of `X-Session-Data`, name and value, in bytes; `None` disables header exchange.
    pub header_exchange: Option<usize>,
    /// An additional header with the principal; removed from client requests on every route.
    pub principal_header: Option<PrincipalHeader>,
    /// Login page for clients without a principal; `None` if the route does not require one.
    pub require_principal: Option<LoginPage>,
    /// Headers that are added to each request; their values are marked sensitive.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Handling of requests while the store is unavailable.
    pub on_error: OnError,
    /// Maximum size of a request body, in bytes; `None` is unlimited.
    pub max_body: Option<u64>,
    /// Minimum rate of a request body, in bytes per second, averaged over the body idle timeout. It
    /// applies until the response head has arrived. `None` disables it.
    pub min_body_rate: Option<u64>,
    /// Maximum number of concurrent requests per upstream; `None` is unlimited.
    pub upstream_requests: Option<usize>,
    /// Timeout for connecting to an upstream, and for waiting if it has the maximum of requests.
    pub connect_timeout: Duration,
    /// Timeout from the end of the request to the head of the response.
    pub response_timeout: Duration,
    /// Idle timeout of a response body, for both directions.
    pub stream_idle_timeout: Duration,
    /// Lifetime of WebSockets and event streams.
    pub tunnels: Tunnels,
    /// Idle timeout of a WebSocket, for both directions.
    pub tunnel_idle_timeout: Duration,
    /// Time that an idle connection to an upstream is kept for reuse; zero disables reuse.
    pub upstream_idle_timeout: Duration,
}

/// An additional header with the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalHeader {
    /// The name of the header.
    pub name: HeaderName,
    /// The encoding of the principal.
    pub encoding: Encoding,
}

/// The encoding of text in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Percent-encoding of `%` and every byte outside 0x21 to 0x7E.
    Percent,
    /// Raw UTF-8.
    #[serde(rename = "utf-8")]
    Utf8,
}

/// The sessions of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Session {
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
pub enum Tunnels {
    /// It ends with its session.
    WithSession,
    /// It is independent of its session.
    Free,
}

impl RouteConfig {
    /// Default interval of health checks.
    pub const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
}
