//! What is counted of connections: those that clients open, and those to upstreams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Open, Registered};

/// Why a connection was not taken, or was ended before its client wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Cut {
    /// Its address has as many as it may have.
    Address,
    /// Who came through a proxy was not said, or not as it has to be.
    ProxyHeader,
    /// The handshake of TLS failed.
    Handshake,
    /// What came is no head of a request; the answer was 400.
    Malformed,
    /// A head is larger than it may be; the answer was 431, or 414.
    TooLarge,
    /// The rules of HTTP/2 were broken.
    Http2,
    /// A head, or a handshake, took too long.
    HeadTimeout,
    /// The body of a request came too slowly.
    BodyTimeout,
    /// The client took too long to take its response.
    WriteTimeout,
    /// The drain's time was over.
    Drain,
}

/// How an upstream's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Answer {
    /// With the head of a response.
    Answered,
    /// Without one.
    Failed,
    /// Without one in time.
    TimedOut,
    /// It had as many as it may have, and this one waited in vain.
    Busy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabel {
    listener: String,
    reason: Cut,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabel {
    listener: String,
    version: &'static str,
    resumed: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    upstream: String,
    outcome: Answer,
}

/// The families of these counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    open: Family<ListenerLabel, Gauge>,
    accepted: Family<ListenerLabel, Counter>,
    cut: Family<CutLabel, Counter>,
    handshakes: Family<HandshakeLabel, Counter>,
    stalled_streams: Gauge,
    upstream_in_flight: Family<UpstreamLabel, Gauge>,
    upstream_requests: Family<AnswerLabel, Counter>,
    upstream_connections: Family<UpstreamLabel, Gauge>,
    upstream_dialled: Family<UpstreamLabel, Counter>,
    upstream_well: Family<UpstreamLabel, Gauge>,
    /// By upstream: how many routes send it requests, of how many.
    healthy: Arc<Mutex<HashMap<String, (usize, usize)>>>,
}

impl Network {
    pub(super) fn register(all: &mut Registered<'_>) -> Self {
        Self {
            open: all.of("connections_open", "Open connections of clients"),
            accepted: all.of("connections", "Connections of clients that were accepted"),
            cut: all.of(
                "connections_cut",
                "Connections of clients that were refused or ended, by reason",
            ),
            handshakes: all.of("tls_handshakes", "Handshakes of TLS that came to their end"),
            stalled_streams: all
                .of("stalled_streams", "HTTP/2 streams whose client takes nothing of its response"),
            upstream_in_flight: all
                .of("upstream_requests_in_flight", "Requests that an upstream works on"),
            upstream_requests: all.of("upstream_requests", "Requests to an upstream, by outcome"),
            upstream_connections: all
                .of("upstream_connections_open", "Open connections to an upstream"),
            upstream_dialled: all
                .of("upstream_connections", "Connections to an upstream that were opened"),
            upstream_well: all.of(
                "upstream_well",
                "Of an upstream: 1 if any route sends it requests, 0 while all have ejected it",
            ),
            healthy: Arc::default(),
        }
    }

    pub(super) fn connections(&self, listener: &str) -> Connections {
        Connections { listener: listener.to_owned(), network: self.clone() }
    }

    pub(super) fn upstream(&self, upstream: &str) -> Upstream {
        let label = UpstreamLabel { upstream: upstream.to_owned() };
        let outcome = |outcome| {
            let label = AnswerLabel { upstream: upstream.to_owned(), outcome };
            self.upstream_requests.get_or_create(&label).clone()
        };
        Upstream {
            in_flight: self.upstream_in_flight.get_or_create(&label).clone(),
            answered: outcome(Answer::Answered),
            failed: outcome(Answer::Failed),
            timed_out: outcome(Answer::TimedOut),
            busy: outcome(Answer::Busy),
            open: self.upstream_connections.get_or_create(&label).clone(),
            dialled: self.upstream_dialled.get_or_create(&label).clone(),
            network: self.clone(),
            label,
        }
    }
}

/// The counters of a listener's connections; those of nobody by default.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    listener: String,
    network: Network,
}

impl Connections {
    /// Counts one that was accepted, and as open until what this answers is dropped.
    pub fn opened(&self) -> Open {
        let label = ListenerLabel { listener: self.listener.clone() };
        self.network.accepted.get_or_create(&label).inc();
        Open::of(self.network.open.get_or_create(&label).clone())
    }

    /// Counts one that was cut.
    pub fn cut(&self, reason: Cut) {
        let label = CutLabel { listener: self.listener.clone(), reason };
        self.network.cut.get_or_create(&label).inc();
    }

    /// Returns the gauge of HTTP/2 streams whose client takes nothing of its response.
    pub(crate) fn stalled_streams(&self) -> &Gauge {
        &self.network.stalled_streams
    }

    /// Counts a handshake of TLS.
    pub fn shook_hands(&self, version: &'static str, resumed: bool) {
        let resumed = if resumed { "yes" } else { "no" };
        let label = HandshakeLabel { listener: self.listener.clone(), version, resumed };
        self.network.handshakes.get_or_create(&label).inc();
    }
}

/// The counters of an upstream.
#[derive(Clone, Debug)]
pub struct Upstream {
    label: UpstreamLabel,
    in_flight: Gauge,
    answered: Counter,
    failed: Counter,
    timed_out: Counter,
    busy: Counter,
    open: Gauge,
    dialled: Counter,
    network: Network,
}

/// The health of an upstream as one route sees it, until it is dropped.
#[derive(Debug)]
pub struct UpstreamHealth {
    label: UpstreamLabel,
    healthy: AtomicBool,
    network: Network,
}

impl Default for Upstream {
    /// Those of nobody.
    fn default() -> Self {
        Network::default().upstream("")
    }
}

impl Upstream {
    /// Counts a request as in flight, until what this answers is dropped.
    pub fn begin(&self) -> Open {
        Open::of(self.in_flight.clone())
    }

    /// Counts how one ended.
    pub fn ended(&self, answer: Answer) {
        match answer {
            Answer::Answered => self.answered.inc(),
            Answer::Failed => self.failed.inc(),
            Answer::TimedOut => self.timed_out.inc(),
            Answer::Busy => self.busy.inc(),
        };
    }

    /// Counts a connection to it, and as open until what this answers is dropped.
    pub fn connected(&self) -> Open {
        self.dialled.inc();
        Open::of(self.open.clone())
    }

    /// Shows the upstream as healthy to one more route.
    pub fn health(&self) -> UpstreamHealth {
        let (label, network) = (self.label.clone(), self.network.clone());
        let shown = UpstreamHealth { label, healthy: AtomicBool::new(true), network };
        shown.count(|(healthy, routes)| (healthy + 1, routes + 1));
        shown
    }
}

impl UpstreamHealth {
    /// Shows whether the route sends it requests.
    pub fn set(&self, healthy: bool) {
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            self.count(|(count, routes)| {
                (if healthy { count + 1 } else { count.saturating_sub(1) }, routes)
            });
        }
    }

    /// Several routes may share an upstream, and after a reload the routes of before may still end their
    /// requests: the gauge is of all of them together, whichever changed last.
    fn count(&self, change: impl Fn((usize, usize)) -> (usize, usize)) {
        let mut all = self.network.healthy.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = all.entry(self.label.upstream.clone()).or_default();
        *counts = change(*counts);
        let (healthy, routes) = *counts;
        if routes == 0 {
            all.remove(&self.label.upstream);
            self.network.upstream_well.remove(&self.label);
        } else {
            let gauge = self.network.upstream_well.get_or_create(&self.label);
            gauge.set(i64::from(healthy > 0));
        }
    }
}

impl Drop for UpstreamHealth {
    fn drop(&mut self) {
        let healthy = usize::from(self.healthy.load(Ordering::Relaxed));
        self.count(|(count, routes)| (count.saturating_sub(healthy), routes.saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    #[test]
    fn upstream_health_is_of_all_its_routes() {
        let metrics = Metrics::new();
        let shows = |well: Option<u8>| {
            let line = "cloakroom_upstream_well{upstream=\"http://app\"} ";
            let found =
                metrics.text().lines().find_map(|text| text.strip_prefix(line)?.parse().ok());
            assert_eq!(found, well);
        };
        let (one, other) = (metrics.upstream("http://app"), metrics.upstream("http://app"));
        let (one, other) = (one.health(), other.health());
        shows(Some(1));
        one.set(false);
        one.set(false);
        shows(Some(1));
        other.set(false);
        shows(Some(0));
        other.set(true);
        drop(other);
        shows(Some(0));
        drop(one);
        shows(None);
    }
}
