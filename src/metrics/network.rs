//! What is counted of connections: those that clients open, and those to upstreams.

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
    upstream_in_flight: Family<UpstreamLabel, Gauge>,
    upstream_requests: Family<AnswerLabel, Counter>,
    upstream_connections: Family<UpstreamLabel, Gauge>,
    upstream_dialled: Family<UpstreamLabel, Counter>,
    upstream_well: Family<UpstreamLabel, Gauge>,
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
            upstream_in_flight: all
                .of("upstream_requests_in_flight", "Requests that an upstream works on"),
            upstream_requests: all.of("upstream_requests", "Requests to an upstream, by outcome"),
            upstream_connections: all
                .of("upstream_connections_open", "Open connections to an upstream"),
            upstream_dialled: all
                .of("upstream_connections", "Connections to an upstream that were opened"),
            upstream_well: all.of(
                "upstream_well",
                "Of an upstream: 1 where it gets requests, 0 while it is left alone",
            ),
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
            well: self.upstream_well.clone(),
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
    well: Family<UpstreamLabel, Gauge>,
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

    /// Says whether it gets requests.
    pub fn is_well(&self, well: bool) {
        self.well.get_or_create(&self.label).set(i64::from(well));
    }
}
