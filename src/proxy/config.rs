//! What the public proxy is told.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::login::LoginPage;
use super::route::HostPattern;
use crate::client::{Check, Speaks, Target, TlsConfig};
use crate::store::config::OnError;

/// What the public proxy is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose Forwarded and X-Forwarded-* are believed; a single address is a network of one.
    pub trusted_proxies: Vec<IpNet>,
    /// Further request headers that only trusted proxies may send, in any spelling.
    pub strip_request_headers: Vec<HeaderName>,
    /// Request headers that clients may send although they look as a proxy's own
    /// ([`super::names::is_forwarding`]); none that we write.
    pub keep_request_headers: Vec<HeaderName>,
    /// At least one, where there is a site to serve; no two have the same host and path.
    pub routes: Vec<RouteConfig>,
}

/// A route: which requests, and what becomes of them.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The hosts; `None` is every one.
    pub host: Option<HostPattern>,
    /// Where paths begin, in whole segments: a plain path that begins with a slash and, save for the
    /// root, ends with none.
    pub path: String,
    /// Where requests go: at least one.
    pub upstreams: Vec<Target>,
    /// How they are asked how they are; of no meaning where there is one.
    pub health: Option<Check>,
    /// What is spoken to them: with TLS, HTTP/1.1 or what they choose; without, HTTP/1.1 or HTTP/2.
    pub upstream_protocol: Speaks,
    /// How TLS to them is; of no meaning where none has it.
    pub upstream_tls: TlsConfig,
    /// What sessions are to it.
    pub session: Session,
    /// The most bytes of `X-Session-Data`, name and value; `None` where there is no header exchange.
    pub header_exchange: Option<usize>,
    /// A second header for the principal; taken from clients on every route.
    pub principal_header: Option<PrincipalHeader>,
    /// Where those are sent who are not logged in; `None` lets everybody in.
    pub require_principal: Option<LoginPage>,
    /// What each request is given on its way; the values are marked sensitive.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// What becomes of requests while the store is away.
    pub on_error: OnError,
    /// The largest body of a request, in bytes; `None` takes any.
    pub max_body: Option<u64>,
    /// Minimum rate of a request's body, in bytes per second, averaged over the idle timeout of bodies; it applies
    /// until the response's head has arrived. `None` demands none.
    pub min_body_rate: Option<u64>,
    /// How many requests each upstream has at a time; `None` is any number.
    pub upstream_requests: Option<usize>,
    /// For a connection to the upstream, and for a turn where it has as many as it may have.
    pub connect_timeout: Duration,
    /// From the end of the request to the head of the response.
    pub response_timeout: Duration,
    /// How long nothing may come in either direction while a response's body is on its way.
    pub stream_idle_timeout: Duration,
    /// What ends a WebSocket or an event stream.
    pub tunnels: Tunnels,
    /// How long one lasts on which nothing comes, either way.
    pub tunnel_idle_timeout: Duration,
    /// How long a connection to the upstream is kept for the next request; zero keeps none.
    pub upstream_idle_timeout: Duration,
}

/// A second header for the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalHeader {
    /// Its name.
    pub name: HeaderName,
    /// How the principal is written in it.
    pub encoding: Encoding,
}

/// How text outside ASCII is written in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// In ASCII: `%`, and every byte outside 0x21 to 0x7E, as `%` and two digits.
    Percent,
    /// As it is, in UTF-8.
    Utf8,
}

/// What sessions are to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// Its requests have one, and use prolongs it.
    On,
    /// Its requests have one, and use does not prolong it.
    NoTouch,
    /// Its requests have none.
    Off,
}

/// What ends a WebSocket or an event stream, other than its client and its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnels {
    /// The end of its session.
    WithSession,
    /// Nothing.
    Free,
}

impl RouteConfig {
    /// How often upstreams are asked how they are, where nobody says otherwise.
    pub const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(5);

    /// How long a tunnel lasts on which nothing comes, where nobody says otherwise.
    pub const DEFAULT_TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_hours(1);

    /// How long a response's body may be silent by default.
    pub const DEFAULT_STREAM_IDLE_TIMEOUT: Duration = Duration::from_hours(1);

    /// Minimum rate of a request's body by default, in bytes per second.
    pub const DEFAULT_MIN_BODY_RATE: u64 = 500;

    /// The bytes of `X-Session-Data` where nobody says otherwise.
    pub const DEFAULT_HEADER_EXCHANGE_MAX_BYTES: usize = 3 * 1024;
}
