//! The sections and keys of the configuration file: each is declared once, with its type, range, default
//! and documentation.
//!
//! The JSON Schema, the reference in `docs/`, the names of environment variables and the suggestions for
//! mistyped keys come from these declarations. `config.example.toml` repeats the keys with their
//! defaults, and some modules repeat defaults in their settings; tests compare them.
//!
//! `x-range` bounds durations and sizes, `range` numbers; the reader checks both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;
use super::value::{
    Count, HeaderExchange, HeldCookie, Level, Mode, Network, OneAtATime, OneOrMany,
    PrincipalHeader, Ratio, Size, Span, Text, Timeout,
};
use crate::client::{Target, UpstreamProtocol};
use crate::log::Format;
use crate::proxy::config::{Session as RouteSession, Tunnels};
use crate::server::Address;
use crate::session::cookie::SameSite;
use crate::session::policy::{AtMax, Create, OnReplay, Touch};
use crate::store::config::OnError;
use crate::store::url::StoreUrl;
use crate::telemetry::Collector;

/// Declares a section: its keys with their types and defaults.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$key_doc])* pub(super) $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

const fn seconds(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const NEVER: Timeout = Timeout(None);

section! {
    /// Cloakroom's configuration file.
    File {
        /// Public listeners: what clients connect to. Repeat the section for several.
        listen: Vec<Listen> = Vec::new(),
        /// Limits of client connections, and trusted proxies.
        limits: Limits = Limits::default(),
        /// The session API, for upstreams and back offices.
        api: Api = Api::default(),
        /// The admin listener, for operators: `/live`, `/ready`, `/metrics`, and pages about this instance and its
        /// sessions.
        admin: Admin = Admin::default(),
        /// Lifetime, rotation and size of sessions.
        session: Session = Session::default(),
        /// The session cookie.
        cookie: Cookie = Cookie::default(),
        /// The store of the sessions.
        store: Store = Store::default(),
        /// The log.
        log: Log = Log::default(),
        /// The audit trail: what was done to which session.
        audit: Audit = Audit::default(),
        /// Spans of requests for an OpenTelemetry collector.
        telemetry: Telemetry = Telemetry::default(),
        /// Routes: which requests go to which upstream. The most specific host wins, then the longest path.
        /// Segments match as a whole: `/foo` does not match `/foobar`. On a host with several routes, a
        /// path that could match different routes, depending on how it is decoded, is refused with 400.
        route: Vec<Route> = Vec::new(),
    }
}

section! {
    /// `[[listen]]`
    Listen {
        /// IP address and port, or the path of a Unix socket.
        address: Address = Address::Tcp(loopback(8080)),
        /// `{ certificate = "fullchain.pem", key = "key.pem" }`, or a list for several host names. Clients
        /// negotiate HTTP/2 or HTTP/1.1.
        tls: Option<OneOrMany<Identity>> = None,
        /// Redirect all requests to the first listener with `tls`.
        redirect_to_https: bool = false,
        /// Accept HTTP/2 without TLS too, from clients with prior knowledge.
        h2c: bool = false,
        /// Expect a PROXY protocol header (version 1 or 2) from `limits.trusted_proxies`.
        proxy_protocol: bool = false,
        /// Mode of the file of a Unix socket. If unset, the umask decides.
        socket_mode: Option<Mode> = None,
    }
}

/// A certificate and its key.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "{ certificate = \"fullchain.pem\", key = \"key.pem\" }")]
pub(super) struct Identity {
    /// Path of the certificate chain, in PEM.
    pub(super) certificate: PathBuf,
    /// Path of the private key, in PEM.
    pub(super) key: PathBuf,
}

section! {
    /// TLS as a client: to an upstream, a collector or another instance.
    ClientTls {
        /// Path of the CA certificates to trust, in PEM. If unset: those of the system.
        ca: Option<PathBuf> = None,
        /// Host name to verify. If unset: the host of the URL.
        name: Option<Text> = None,
        /// Verify the certificate. `false` is open to man-in-the-middle attacks.
        verify: bool = true,
        /// Path of a client certificate chain, in PEM.
        certificate: Option<PathBuf> = None,
        /// Path of the client certificate's key, in PEM.
        key: Option<PathBuf> = None,
    }
}

section! {
    /// `[limits]`
    Limits {
        /// Networks whose forwarding headers (and PROXY header) are trusted.
        trusted_proxies: Vec<Network> = Vec::new(),
        /// More request headers that only trusted proxies may send. `X-Forwarded-*`,
        /// `*-Client-IP` and `X-Original-*` are always included.
        strip_request_headers: Vec<Text> = Vec::new(),
        /// Exceptions to `strip_request_headers`: headers that every client may send.
        keep_request_headers: Vec<Text> = Vec::new(),
        /// Maximum number of open client connections.
        #[schemars(range(min = 1, max = 1_000_000))]
        connections: Count = Count(10_000),
        /// Maximum number of open connections from one address, or one /64 of IPv6. Trusted proxies are exempt.
        #[schemars(range(min = 1, max = 1_000_000))]
        connections_per_address: Option<Count> = None,
        /// Maximum number of new sessions per minute from one client address, or one /64 of IPv6. Above it, requests get
        /// 503. Log-ins and trusted proxies are exempt.
        #[schemars(range(min = 1, max = 1_000_000))]
        new_sessions_per_address: Option<Count> = None,
        /// Time that a request head may take, from its first byte.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        header_timeout: Span = seconds(10),
        /// Maximum size of a request head.
        #[schemars(extend("x-range" = ["1KiB", "1MiB"]))]
        header_bytes: Size = Size(32 * 1024),
        /// Maximum number of fields of a request head.
        #[schemars(range(min = 8, max = 10_000))]
        headers: Count = Count(100),
        /// Time that a client may send nothing of its request body, or read nothing of its response.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        body_idle_timeout: Span = seconds(30),
        /// Time that a connection may be idle between requests.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        idle_timeout: Span = seconds(60),
        /// Time that `/ready` returns 503, and responses ask clients to reconnect, before listeners close.
        #[schemars(extend("x-range" = ["0s", "1d"]))]
        predrain: Span = seconds(0),
        /// Time that requests in flight may take at shutdown.
        #[schemars(extend("x-range" = ["0s", "1d"]))]
        drain_timeout: Span = seconds(30),
    }
}

section! {
    /// `[api]`
    Api {
        /// IP address and port, or the path of a Unix socket.
        address: Address = Address::Tcp(loopback(8081)),
        /// In the format of `listen.tls`. If set, the API accepts https only, also between instances.
        tls: Option<OneOrMany<Identity>> = None,
        /// Path of CA certificates, in PEM: clients must have a certificate signed by one of them.
        client_ca: Option<PathBuf> = None,
        /// TLS settings for calls to other instances.
        instance_tls: Option<ClientTls> = None,
        /// The URL of the API that upstreams are given. If unset: derived from `address`; required if that
        /// is a wildcard.
        url: Option<Text> = None,
        /// URL at which other instances that share the store reach this one, past any load balancer. If
        /// unset: derived from `url`.
        instance_url: Option<Text> = None,
        /// More host names that requests may have; others get 421. IP addresses, `localhost` and the hosts
        /// of both URLs are always accepted.
        hosts: Vec<Text> = Vec::new(),
        /// Path under which the API is served.
        prefix: Text = "/_session".into(),
        /// Token that opens any session by its id. If unset, only request tokens are accepted.
        service_token: Option<SecretSource> = None,
        /// Secret of at least 32 bytes, by which the site verifies that session headers come from here
        /// (`X-Session-Proof`). If unset, that header is not sent.
        client_secret: Option<SecretSource> = None,
        /// Time that a request token remains valid after its request.
        #[schemars(extend("x-range" = ["1s", "1d"]))]
        request_token_linger: Span = seconds(60),
    }
}

section! {
    /// `[admin]`
    Admin {
        /// IP address and port, or the path of a Unix socket.
        address: Address = Address::Tcp(loopback(8082)),
        /// In the format of `listen.tls`. If set, the listener accepts https only.
        tls: Option<OneOrMany<Identity>> = None,
        /// Path of CA certificates, in PEM: clients must have a certificate signed by one of them. This includes
        /// probes and Prometheus.
        client_ca: Option<PathBuf> = None,
        /// More host names that requests may have; others get 421, except on `/live`, `/ready` and
        /// `/metrics`.
        hosts: Vec<Text> = Vec::new(),
        /// Token that opens the pages about sessions and permits changes. If unset: with an embedded store, and if only
        /// this machine reaches the listener, the first start creates one, in the file `admin-token` next to the data;
        /// otherwise these pages are off. Off loopback it needs `tls`.
        token: Option<SecretSource> = None,
        /// Token that opens the same pages for reading, without the values of sessions.
        read_token: Option<SecretSource> = None,
        /// Let operators with `token` show the values of a session. Each time is logged.
        show_values: bool = true,
    }
}

section! {
    /// `[session]`
    Session {
        /// Keys that sign cookies: the first signs, all verify; `cloakroom generate-key` prints one. If unset,
        /// an embedded store keeps a key next to its data.
        keys: Option<Vec<SecretSource>> = None,
        /// Time that a session lives after its last use.
        #[schemars(extend("x-range" = ["1s", "400d"]))]
        idle_timeout: Span = seconds(14 * 86_400),
        /// Time that a session lives after its creation.
        #[schemars(extend("x-range" = ["1s", "3650d"]))]
        absolute_timeout: Timeout = NEVER,
        /// Time that a session lives after its creation if its cookie never came back; "1d" suits public
        /// sites. Set it after all instances of a shared store have been upgraded.
        #[schemars(extend("x-range" = ["1s", "400d"]))]
        unproven_timeout: Timeout = NEVER,
        /// Age at which a session's token is replaced.
        #[schemars(extend("x-range" = ["1s", "400d"]))]
        rotate_every: Timeout = Timeout(Some(Duration::from_hours(1))),
        /// Time that a replaced token remains valid.
        #[schemars(extend("x-range" = ["0s", "400d"]))]
        rotation_grace: Span = seconds(120),
        /// Effect of a replayed token after its grace: it is ignored, or revokes the session.
        on_replay: OnReplay = OnReplay::Ignore,
        /// Let the cookie end with the browser.
        expire_at_browser_close: bool = false,
        /// When a visitor gets a session: at the first write, or at the first page.
        create: Create = Create::OnWrite,
        /// Kind of requests that count as use: all, or writes.
        touch: Touch = Touch::Request,
        /// Interval at which use is recorded. If unset: a minute, or a tenth of `idle_timeout` if that is less.
        #[schemars(extend("x-range" = ["0s", "400d"]))]
        touch_interval: Option<Span> = None,
        /// Maximum size of a session.
        #[schemars(extend("x-range" = ["1KiB", "64MiB"]))]
        max_bytes: Size = Size(1024 * 1024),
        /// Maximum number of values of a session.
        #[schemars(range(min = 1, max = 100_000))]
        max_values: Count = Count(1024),
        /// Maximum number of sessions of a principal. If unset: any number.
        #[schemars(range(min = 1, max = 1000))]
        max_per_principal: Option<Count> = None,
        /// Effect of a log-in above `max_per_principal`.
        at_max_per_principal: AtMax = AtMax::EvictOldest,
        /// Store the client's address and user agent in the session.
        record_client: bool = false,
    }
}

section! {
    /// `[cookie]`
    Cookie {
        /// Name of the cookie. If unset: `__Host-id`, or `id` if `secure` is false or `domain` or another
        /// `path` is set.
        name: Option<Text> = None,
        /// Path that the cookie is sent to.
        path: Text = "/".into(),
        /// Domain whose subdomains get the cookie too. If unset: only the host itself.
        domain: Option<Text> = None,
        /// Send the cookie over TLS, and to localhost, only.
        secure: bool = true,
        /// Hide the cookie from scripts.
        http_only: bool = true,
        /// Which requests from other sites carry the cookie.
        same_site: SameSite = SameSite::Lax,
        /// Keep a separate cookie for each embedding site (CHIPS).
        partitioned: bool = false,
    }
}

section! {
    /// `[store]`
    Store {
        /// Kind and place of the store: `memory:`, `sqlite:PATH`, `file:DIRECTORY`, `cookie:`, or Redis as
        /// `redis://[user[:password]@]host:port/db`, `redis+unix:///path?db=0`,
        /// `redis+sentinel://host:26379,host:26379/SERVICE?db=0` or `redis+cluster://host:7000,host:7001`;
        /// `rediss` uses TLS.
        url: StoreUrl = StoreUrl::Sqlite(PathBuf::from("cloakroom.db")),
        /// Password of Redis. A file is read again for each new connection.
        password: Option<SecretSource> = None,
        /// Password of the sentinels.
        sentinel_password: Option<SecretSource> = None,
        /// TLS settings for `rediss`; the files are read again for each new connection.
        tls: Option<StoreTls> = None,
        /// Let a destroy wait for one replica. If unset: always with sentinels; otherwise if there has been a
        /// replica since the start.
        durable_destroy: Option<bool> = None,
        /// Required with `cookie:`: a copied cookie is valid until it expires.
        accept_no_revocation: Option<bool> = None,
        /// Prefix of the keys in Redis.
        key_prefix: Text = "cloakroom:".into(),
        /// Time that the store may take to answer.
        #[schemars(extend("x-range" = ["1ms", "1m"]))]
        timeout: Span = Span(Duration::from_millis(500)),
        /// Treatment of requests with a session while the store is unavailable: 503, or no session.
        on_error: OnError = OnError::Fail,
        /// Cache sessions in the process. Not with a Redis cluster.
        cache: Option<StoreCache> = None,
    }
}

section! {
    /// `[store.cache]`
    StoreCache {
        /// Maximum size of cached sessions.
        #[schemars(extend("x-range" = ["1MiB", "64GiB"]))]
        max_bytes: Size = Size(64 * 1024 * 1024),
    }
}

section! {
    /// `[store.tls]`
    StoreTls {
        /// Path of the CA certificates to trust, in PEM. If unset: those of the system.
        ca: Option<PathBuf> = None,
        /// Path of a client certificate, in PEM.
        certificate: Option<PathBuf> = None,
        /// Path of the client certificate's key, in PEM.
        key: Option<PathBuf> = None,
    }
}

section! {
    /// `[log]`
    Log {
        /// Format of a line.
        format: Format = Format::Text,
        /// Least severe level to log, except access lines.
        level: Level = Level::Info,
        /// Log each request.
        access: bool = true,
        /// Log each call of the session API.
        api: bool = false,
        /// Warn of requests whose response head takes longer, at most once a second. If unset: never.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        slow: Option<Span> = None,
    }
}

section! {
    /// `[audit]`
    Audit {
        /// Path of its file: one JSON object a line. If unset, the log has the lines, at level `debug`.
        /// SIGHUP opens the file again, for its rotation.
        path: Option<PathBuf> = None,
    }
}

section! {
    /// `[telemetry]`
    Telemetry {
        /// Base URL of an OTLP/HTTP collector; spans are sent to `/v1/traces` as JSON. If unset, `traceparent`
        /// is only passed on.
        otlp_url: Option<Collector> = None,
        /// Headers of each export.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        otlp_headers: BTreeMap<String, SecretSource> = BTreeMap::new(),
        /// TLS settings for an https collector.
        tls: Option<ClientTls> = None,
        /// `service.name` of the spans. If unset: `cloakroom`.
        service_name: Option<Text> = None,
        /// Share of the traces started here that is sampled. If unset: all. Trusted proxies decide for theirs.
        sample_ratio: Option<Ratio> = None,
    }
}

section! {
    /// `[[route]]`
    Route {
        /// Host, or `*.` and a domain for its subdomains. If unset: any host.
        host: Option<Text> = None,
        /// Prefix of the paths, in whole segments.
        path: Text = "/".into(),
        /// Upstreams: one, or several that share the requests.
        upstream: Option<OneOrMany<Target>> = None,
        /// Protocol to the upstream: `h2c` is HTTP/2 without TLS, `alpn` what an https upstream negotiates.
        /// WebSockets use HTTP/1.1.
        upstream_protocol: UpstreamProtocol = UpstreamProtocol::Http1,
        /// TLS settings for https upstreams.
        upstream_tls: Option<ClientTls> = None,
        /// Path of a health check. Of several upstreams, those that do not answer it with a status below 400
        /// get no requests.
        health_path: Option<Text> = None,
        /// Interval of health checks. If unset: 5 s.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        health_interval: Option<Span> = None,
        /// Use of sessions: `on`; `no-touch`, requests do not prolong it; `off`, requests have none.
        session: RouteSession = RouteSession::On,
        /// Exchange values by header, without the session API. If not all values fit, `true` omits all, `"partial"` the
        /// largest ones.
        header_exchange: HeaderExchange = HeaderExchange::Switch(false),
        /// Maximum size of the values in a header, and of the keys of omitted ones.
        #[schemars(extend("x-range" = ["64", "64KiB"]))]
        header_exchange_max_bytes: Size = Size(3 * 1024),
        /// Session cookies of the site itself, which sessions hold: the browser gets our cookie alone, and the site
        /// its own with each request. A changed value rotates the session unless `rotate` is false.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        hold_cookies: Vec<HeldCookie> = Vec::new(),
        /// Requests that rotate the session whatever they change, as method and path, with `*` at its end for all that
        /// begin so. Needed if a held cookie has `rotate = false`.
        rotate_on: Option<Vec<Text>> = None,
        /// Another header that has the principal, percent-encoded unless `encoding` is "utf-8".
        principal_header: Option<PrincipalHeader> = None,
        /// Login page for visitors who are not logged in; `{path}` becomes the requested path. Scripts get 401;
        /// CORS preflights pass.
        require_principal: Option<Text> = None,
        /// Headers added to each request, e.g. a secret by which the site knows that it came from here.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        request_headers: BTreeMap<String, SecretSource> = BTreeMap::new(),
        /// Send the id of the request in the response too, as `X-Request-Id`.
        request_id: bool = false,
        /// As `store.on_error`, for this route. If unset: `store.on_error`.
        on_error: Option<OnError> = None,
        /// `"head"`: requests of one session wait for each other, until the response head of the one before, so that
        /// a site may read a value and write it back. Not for WebSockets, images and the like. Within one process.
        one_at_a_time: OneAtATime = OneAtATime::Switch(false),
        /// Time that a request may wait for others of its session; then it gets 503. Less than `response_timeout`.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        one_at_a_time_wait: Span = seconds(30),
        /// Maximum number of requests at a time to each upstream; more wait for `connect_timeout`, then get 503.
        #[schemars(range(min = 1, max = 1_000_000))]
        upstream_requests: Option<Count> = None,
        /// Maximum size of a request body; more get 413. If unset: any size.
        max_body: Option<Size> = None,
        /// Minimum rate of a request body in bytes per second, averaged over `limits.body_idle_timeout`, until
        /// the response head has arrived; slower requests get 400. "0B" allows any rate.
        min_body_rate: Size = Size(500),
        /// Time that connecting to an upstream may take.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        connect_timeout: Span = seconds(2),
        /// Time that a response head may take, from the end of the request.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        response_timeout: Span = seconds(60),
        /// Maximum time without progress in either direction while a response body is in transit.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        stream_idle_timeout: Span = seconds(3600),
        /// `with-session` closes WebSockets and event streams within 2 s of the end of their session.
        tunnels: Tunnels = Tunnels::WithSession,
        /// Time that a WebSocket may be silent in both directions.
        #[schemars(extend("x-range" = ["1ms", "1d"]))]
        tunnel_idle_timeout: Span = seconds(3600),
        /// Time that an idle connection to an upstream is kept. Choose less than the upstream's own timeout
        /// (Node: 5 s).
        #[schemars(extend("x-range" = ["0s", "1d"]))]
        upstream_idle_timeout: Span = seconds(4),
    }
}
