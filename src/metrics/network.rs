//! Metrics of connections: those that clients open, and those to upstreams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::accept_pause::{AcceptPause, AcceptPauses};
use super::label::{ByLabel, Label, Labels, label};
use super::register::{GaugeGuard, Register, request_histogram};

label! {
    /// The reason why a client's connection was refused, or closed before the client wanted.
    pub(crate) AbortReason as "reason" {
        /// Its address has as many connections as it may have.
        AddressLimit = "address_limit",
        /// The PROXY protocol header was missing or invalid.
        ProxyHeader = "proxy_header",
        /// The TLS handshake failed.
        TlsHandshake = "tls_handshake",
        /// The head of a request was malformed; the response was 400.
        Malformed = "malformed",
        /// The head of a request was too large; the response was 431, or 414.
        TooLarge = "too_large",
        /// The client broke the rules of HTTP/2.
        Http2 = "http2",
        /// The head of a request, or a handshake, took too long.
        HeaderTimeout = "header_timeout",
        /// The client did not read its response fast enough.
        WriteTimeout = "write_timeout",
        /// The drain's deadline passed.
        Drain = "drain",
    }
}

label! {
    /// The outcome of a request to an upstream.
    pub(crate) UpstreamOutcome as "outcome" {
        /// The head of a response arrived.
        Responded = "responded",
        /// The connection or the request failed.
        Failed = "failed",
        /// The upstream did not respond in time.
        TimedOut = "timed_out",
        /// The upstream had as many requests as it may have, and this one waited in vain.
        Busy = "busy",
    }
}

label! {
    /// The version of TLS.
    pub(crate) TlsVersion as "version" {
        Tls12 = "1.2",
        Tls13 = "1.3",
    }
}

label! {
    /// Resumption of a session by a TLS handshake (RFC 8446, section 2.2).
    pub(crate) Resumed as "resumed" {
        No = "false",
        Yes = "true",
    }
}

type Counters = Family<Labels, Counter, fn() -> Counter>;
type Gauges = Family<Labels, Gauge, fn() -> Gauge>;

/// The families of connections.
pub(super) struct Network {
    connections: Counters,
    connections_open: Gauges,
    connections_aborted: Counters,
    tls_handshakes: Counters,
    accept_paused: Gauges,
    /// By listener.
    accept_pauses: Mutex<HashMap<String, Arc<AcceptPauses>>>,
    stalled_streams: Gauge,
    upstream_requests: Counters,
    upstream_requests_in_flight: Gauges,
    upstream_request_duration: Family<Labels, Histogram, fn() -> Histogram>,
    upstream_connections: Counters,
    upstream_connections_open: Gauges,
    upstream_connect_failures: Counters,
    upstream_health: Arc<UpstreamHealths>,
}

/// The gauge of upstreams' health, and what it is computed from.
#[derive(Debug)]
struct UpstreamHealths {
    gauge: Gauges,
    /// By upstream.
    routes: Mutex<HashMap<String, Routes>>,
}

/// The number of routes with an upstream, and of those that send it requests.
#[derive(Clone, Debug, Default)]
struct Routes {
    all: usize,
    healthy: usize,
    /// The last failure, while a route sends it no requests.
    failure: Option<UpstreamFailure>,
}

/// Why an upstream gets no requests.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamFailure {
    /// The time since which a route sends it none.
    pub(crate) since: Instant,
    /// The cause of its last failure.
    pub(crate) cause: String,
    /// The requests to which it had responded when the failure began.
    pub(crate) responses: u64,
    /// The connections that had been opened to it by then.
    pub(crate) connections: u64,
}

impl Network {
    #[expect(clippy::too_many_lines, reason = "a list: one call for each metric")]
    pub(super) fn new(register: &mut Register<'_>) -> Self {
        let counter = Counter::default as fn() -> Counter;
        let gauge = Gauge::default as fn() -> Gauge;
        Self {
            connections: register.family(
                "connections",
                "Connections of clients that were accepted, by listener",
                counter,
            ),
            connections_open: register.family(
                "connections_open",
                "Open connections of clients, by listener",
                gauge,
            ),
            connections_aborted: register.family(
                "connections_aborted",
                "Connections of clients that were refused or closed early, by listener and reason",
                counter,
            ),
            tls_handshakes: register.family(
                "tls_handshakes",
                "Completed TLS handshakes, by listener, version and whether a session was resumed",
                counter,
            ),
            accept_paused: register.family(
                "accept_paused",
                "Workers that accept no connections of a listener, because descriptors are scarce",
                gauge,
            ),
            accept_pauses: Mutex::default(),
            stalled_streams: register.default(
                "stalled_streams",
                "HTTP/2 streams whose client does not read its response",
            ),
            upstream_requests: register.family(
                "upstream_requests",
                "Requests to an upstream, by outcome",
                counter,
            ),
            upstream_requests_in_flight: register.family(
                "upstream_requests_in_flight",
                "Requests that an upstream is processing",
                gauge,
            ),
            upstream_request_duration: register.family(
                "upstream_request_duration_seconds",
                "Time until an upstream's response head arrived, or its request failed",
                request_histogram,
            ),
            upstream_connections: register.family(
                "upstream_connections",
                "Connections to an upstream that were opened",
                counter,
            ),
            upstream_connections_open: register.family(
                "upstream_connections_open",
                "Open connections to an upstream",
                gauge,
            ),
            upstream_connect_failures: register.family(
                "upstream_connect_failures",
                "Connections to an upstream that could not be opened",
                counter,
            ),
            upstream_health: Arc::new(UpstreamHealths {
                gauge: register.family(
                    "upstream_healthy",
                    "1 if any route sends requests to the upstream, 0 while all have ejected it",
                    gauge,
                ),
                routes: Mutex::default(),
            }),
        }
    }

    /// Creates families that are not exposed.
    fn unregistered() -> Self {
        Self::new(&mut Register(&mut Registry::default()))
    }

    pub(super) fn listener(&self, address: &str) -> ListenerMetrics {
        let listener = || ("listener", address.to_owned());
        let handshakes = |version: TlsVersion| {
            [Resumed::No, Resumed::Yes].map(|resumed| {
                let labels = vec![listener(), version.pair(), resumed.pair()];
                self.tls_handshakes.get_or_create_owned(&labels)
            })
        };
        ListenerMetrics {
            connections: self.connections.get_or_create_owned(&vec![listener()]),
            connections_open: self.connections_open.get_or_create_owned(&vec![listener()]),
            connections_aborted: ByLabel::new(|reason: AbortReason| {
                self.connections_aborted.get_or_create_owned(&vec![listener(), reason.pair()])
            }),
            tls_handshakes: ByLabel::new(handshakes),
            accept_pauses: self.accept_pauses(address),
            stalled_streams: self.stalled_streams.clone(),
        }
    }

    fn accept_pauses(&self, listener: &str) -> Arc<AcceptPauses> {
        let mut pauses = self.accept_pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let of_listener = pauses.entry(listener.to_owned()).or_insert_with(|| {
            let labels = vec![("listener", listener.to_owned())];
            Arc::new(AcceptPauses::new(self.accept_paused.get_or_create_owned(&labels)))
        });
        Arc::clone(of_listener)
    }

    /// Returns when a listener began to accept no connections.
    pub(super) fn accept_paused_since(&self, listener: &str) -> Option<Instant> {
        let pauses = self.accept_pauses.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.get(listener)?.since()
    }

    /// Returns why an upstream gets no requests from a route; `None` if all send it requests.
    pub(super) fn upstream_failure(&self, url: &str) -> Option<UpstreamFailure> {
        let routes = self.upstream_health.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.get(url).and_then(|routes| routes.failure.clone())
    }

    pub(super) fn upstream(&self, url: &str) -> UpstreamMetrics {
        let upstream = || ("upstream", url.to_owned());
        let labels = vec![upstream()];
        UpstreamMetrics {
            requests: ByLabel::new(|outcome: UpstreamOutcome| {
                self.upstream_requests.get_or_create_owned(&vec![upstream(), outcome.pair()])
            }),
            in_flight: self.upstream_requests_in_flight.get_or_create_owned(&labels),
            duration: self.upstream_request_duration.get_or_create_owned(&labels),
            connections: self.upstream_connections.get_or_create_owned(&labels),
            connections_open: self.upstream_connections_open.get_or_create_owned(&labels),
            connect_failures: self.upstream_connect_failures.get_or_create_owned(&labels),
            health: Arc::clone(&self.upstream_health),
            url: url.into(),
        }
    }
}

/// The metrics of one listener.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    connections: Counter,
    connections_open: Gauge,
    connections_aborted: ByLabel<AbortReason, Counter>,
    /// By version: of full handshakes, and of resumed ones.
    tls_handshakes: ByLabel<TlsVersion, [Counter; 2]>,
    accept_pauses: Arc<AcceptPauses>,
    stalled_streams: Gauge,
}

impl ListenerMetrics {
    /// Counts a connection that was accepted, and as open until the guard is dropped.
    pub(crate) fn connection_opened(&self) -> GaugeGuard {
        self.connections.inc();
        GaugeGuard::new(&self.connections_open)
    }

    /// Counts a worker as accepting no connections until the guard is dropped.
    pub(crate) fn accept_paused(&self) -> AcceptPause {
        self.accept_pauses.begin()
    }

    /// Counts a connection that was refused or closed early.
    pub(crate) fn connection_aborted(&self, reason: AbortReason) {
        self.connections_aborted.get(reason).inc();
    }

    /// Counts a TLS handshake that completed.
    pub(crate) fn tls_handshake(&self, version: TlsVersion, resumed: Resumed) {
        let [full, abbreviated] = self.tls_handshakes.get(version);
        match resumed {
            Resumed::No => full.inc(),
            Resumed::Yes => abbreviated.inc(),
        };
    }

    /// Returns the gauge of HTTP/2 streams whose client does not read its response.
    pub(crate) fn stalled_streams(&self) -> &Gauge {
        &self.stalled_streams
    }
}

impl Default for ListenerMetrics {
    /// Creates metrics that are not exposed.
    fn default() -> Self {
        Network::unregistered().listener("")
    }
}

/// The metrics of one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    url: Arc<str>,
    requests: ByLabel<UpstreamOutcome, Counter>,
    in_flight: Gauge,
    duration: Histogram,
    connections: Counter,
    connections_open: Gauge,
    connect_failures: Counter,
    health: Arc<UpstreamHealths>,
}

impl UpstreamMetrics {
    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn request_started(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// Counts a request whose response head has arrived, or that failed.
    pub(crate) fn request_finished(&self, outcome: UpstreamOutcome, duration: Duration) {
        self.requests.get(outcome).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Counts a new connection, and as open until the guard is dropped.
    pub(crate) fn connection_opened(&self) -> GaugeGuard {
        self.connections.inc();
        GaugeGuard::new(&self.connections_open)
    }

    /// Counts a connection that could not be opened.
    pub(crate) fn connect_failed(&self) {
        self.connect_failures.inc();
    }

    /// Adds a route that sends requests to this upstream.
    pub(crate) fn health(&self) -> UpstreamHealthGauge {
        let gauge = UpstreamHealthGauge {
            url: Arc::clone(&self.url),
            healthy: AtomicBool::new(true),
            responses: self.requests.get(UpstreamOutcome::Responded).clone(),
            connections: self.connections.clone(),
            health: Arc::clone(&self.health),
        };
        gauge.update(|routes| {
            routes.all += 1;
            routes.healthy += 1;
        });
        gauge
    }
}

impl Default for UpstreamMetrics {
    /// Creates metrics that are not exposed.
    fn default() -> Self {
        Network::unregistered().upstream("")
    }
}

/// The health of an upstream as one route sees it, until this is dropped.
#[derive(Debug)]
pub(crate) struct UpstreamHealthGauge {
    url: Arc<str>,
    healthy: AtomicBool,
    responses: Counter,
    connections: Counter,
    health: Arc<UpstreamHealths>,
}

impl UpstreamHealthGauge {
    /// Sets whether the route sends requests to the upstream.
    pub(crate) fn set(&self, healthy: bool) {
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            self.update(|routes| {
                if healthy {
                    routes.healthy += 1;
                    routes.failure = None;
                } else {
                    routes.healthy = routes.healthy.saturating_sub(1);
                }
            });
        }
    }

    /// Keeps the cause for which the route sends the upstream no requests.
    pub(crate) fn set_failure(&self, cause: &str) {
        self.update(|routes| {
            let first = routes.failure.get_or_insert_with(|| UpstreamFailure {
                since: Instant::now(),
                cause: String::new(),
                responses: self.responses.get(),
                connections: self.connections.get(),
            });
            cause.clone_into(&mut first.cause);
        });
    }

    /// Updates the gauge, which is of all routes together: several may share an upstream, and after a reload the previous
    /// routes may still finish their requests.
    fn update(&self, change: impl FnOnce(&mut Routes)) {
        let UpstreamHealths { gauge, routes } = &*self.health;
        let labels = vec![("upstream", String::from(&*self.url))];
        let mut by_upstream = routes.lock().unwrap_or_else(PoisonError::into_inner);
        let routes = by_upstream.entry(String::from(&*self.url)).or_default();
        change(routes);
        if routes.all == 0 {
            by_upstream.remove(&*self.url);
            gauge.remove(&labels);
        } else {
            gauge.get_or_create(&labels).set(i64::from(routes.healthy > 0));
        }
    }
}

impl Drop for UpstreamHealthGauge {
    fn drop(&mut self) {
        let healthy = usize::from(self.healthy.load(Ordering::Relaxed));
        self.update(|routes| {
            routes.all = routes.all.saturating_sub(1);
            routes.healthy = routes.healthy.saturating_sub(healthy);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn upstream_health_is_of_all_its_routes() {
        let metrics = Metrics::new();
        let expect = |healthy: Option<u8>| {
            let line = "cloakroom_upstream_healthy{upstream=\"http://app\"} ";
            let found =
                metrics.text().lines().find_map(|text| text.strip_prefix(line)?.parse().ok());
            assert_eq!(found, healthy);
        };
        let (one, other) = (metrics.upstream("http://app"), metrics.upstream("http://app"));
        let (one, other) = (one.health(), other.health());
        expect(Some(1));
        one.set(false);
        one.set(false);
        expect(Some(1));
        other.set_failure("refused");
        other.set(false);
        expect(Some(0));
        let failure = |metrics: &Metrics| metrics.upstream_failure("http://app");
        let first = failure(&metrics).expect("a failure");
        one.set_failure("timed out");
        let last = failure(&metrics).expect("a failure");
        assert_eq!((first.cause.as_str(), last.cause.as_str()), ("refused", "timed out"));
        assert_eq!(first.since, last.since);
        other.set(true);
        assert!(failure(&metrics).is_none());
        drop(other);
        expect(Some(0));
        drop(one);
        expect(None);
    }
}
