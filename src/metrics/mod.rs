//! What is counted, and its text form (`OpenMetrics`, which Prometheus reads).

mod network;

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _, LabelValueEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::{log, tasks};
use network::Network;
pub use network::{Answer, Connections, Cut, Upstream, UpstreamHealth};

/// The counters of one process. Clones count together.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<OutcomeLabel, Counter>,
    api_calls: Family<StatusLabel, Counter>,
    sessions: Family<EventLabel, Counter>,
    session_tokens: Family<KeyLabel, Counter>,
    store_seconds: Family<OperationLabel, Histogram>,
    store_errors: Family<OperationLabel, Counter>,
    store_up: Family<OperationLabel, Gauge>,
    tunnels: Gauge,
    memory_store_bytes: Gauge,
    response_ends: ResponseEnds,
    reloads: Family<ReloadLabel, Counter>,
    spans: Family<SpanLabel, Counter>,
    network: Network,
    /// Requests that are being forwarded now.
    pub in_flight: Gauge,
    /// Requests that are over and of which something is kept for late calls.
    pub lingering: Gauge,
}

/// Counters of responses that have ended, by reason.
#[derive(Clone, Debug)]
pub struct ResponseEnds(Family<ReasonLabel, Counter>);

impl ResponseEnds {
    /// Counts a response whose body has ended, for a reason in snake case.
    pub fn count(&self, reason: &'static str) {
        self.0.get_or_create(&ReasonLabel { reason }).inc();
    }
}

/// Something that is counted while it is open.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn of(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How a request on a public listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The upstream's response went on.
    Forwarded,
    /// The client was sent to the listener with TLS.
    Redirected,
    /// The client's request could not be taken.
    ClientError,
    /// The upstream did not answer as it should.
    UpstreamError,
    /// The store did not answer.
    StoreError,
    /// The fault was ours.
    InternalError,
}

/// What happened to a session or a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Event {
    /// A session was made.
    Created,
    /// A token was rotated because the upstream asked for it.
    Rotated,
    /// A log-in joined the session that another had just made.
    Joined,
    /// A periodic rotation's new token went out.
    RenewalIssued,
    /// A session was ended by a request.
    Destroyed,
    /// A session was found over.
    Expired,
    /// What stands in the store under a session's name cannot be read.
    Unreadable,
    /// A token of a generation that was over long ago was presented.
    Replayed,
    /// A token that another response has just replaced was presented.
    Stale,
    /// A request brought the cookies of two sessions.
    AmbiguousCookie,
    /// A request came from another site, and its browser kept the cookie back.
    CookieWithheld,
    /// A cookie of our name was not signed by us.
    BadCookie,
    /// The full memory store gave up a session that no browser had come back with.
    Evicted,
    /// A session was not created because its client's address had created as many as it may.
    TooManyNewSessions,
    /// A patch by header was dropped, as the configuration or the rules of rotation have it.
    PatchDropped,
}

/// What became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reload {
    /// It is served.
    Done,
    /// It was wrong, and nothing has changed.
    Refused,
}

/// What became of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SpanFate {
    /// The collector has taken it.
    Exported,
    /// Too many waited for their export already.
    Dropped,
    /// The collector did not take it, or did not answer in time.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabel {
    outcome: SpanFate,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    outcome: Reload,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabel {
    key: Hex,
}

/// A fingerprint as a label: no text is made for it while requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hex(u64);

impl EncodeLabelValue for Hex {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{:016x}", self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("cloakroom");
        registry.register_collector(Box::new(OfProcess));
        let mut all = Registered(&mut registry);
        let store_seconds = Family::new_with_constructor(store_histogram as fn() -> Histogram);
        Self {
            network: Network::register(&mut all),
            requests: all.of("requests", "Requests on the public listeners, by outcome"),
            in_flight: all.of("requests_in_flight", "Requests that are being forwarded"),
            lingering: all.of(
                "requests_lingering",
                "Finished requests that calls of the session API may still be made for",
            ),
            tunnels: all.of("tunnels", "Open WebSockets"),
            memory_store_bytes: all
                .of("memory_store_bytes", "Memory that the records of the memory store take"),
            response_ends: ResponseEnds(
                all.of("response_ends", "Responses on the public listeners that ended, by reason"),
            ),
            api_calls: all.of("api_calls", "Calls of the session API, by status"),
            sessions: all.of("session_events", "What happened to sessions and their cookies"),
            session_tokens: all.of(
                "session_tokens",
                "Cookies that opened a session, by the fingerprint of the key that signed them",
            ),
            store_seconds: all.this(
                "store_seconds",
                "How long the store took to answer",
                store_seconds,
            ),
            store_errors: all.of("store_errors", "Calls that the store did not answer"),
            store_up: all.of(
                "store_up",
                "Whether the last call that read or wrote the store, or the last probe, succeeded",
            ),
            reloads: all.of("reloads", "Reloads of the configuration, by outcome"),
            spans: all.of("spans", "Spans that were recorded, by outcome"),
            registry: Arc::new(registry),
        }
    }

    /// Counts a request.
    pub fn request(&self, outcome: Outcome) {
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Returns the counters of responses that have ended.
    pub fn response_ends(&self) -> ResponseEnds {
        self.response_ends.clone()
    }

    /// Counts a tunnel, until what this answers is dropped.
    pub fn tunnel(&self) -> Open {
        Open::of(self.tunnels.clone())
    }

    /// Sets what the records of the memory store take, in bytes.
    pub fn memory_store_bytes(&self, bytes: usize) {
        self.memory_store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The counters of a listener's connections, under its address.
    pub fn connections(&self, listener: &str) -> Connections {
        self.network.connections(listener)
    }

    /// The counters of an upstream, under its URL.
    pub fn upstream(&self, upstream: &str) -> Upstream {
        self.network.upstream(upstream)
    }

    /// Counts a reload.
    pub fn reload(&self, outcome: Reload) {
        self.reloads.get_or_create(&ReloadLabel { outcome }).inc();
    }

    /// Counts spans that have come to their end.
    pub fn spans(&self, outcome: SpanFate, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.spans.get_or_create(&SpanLabel { outcome }).inc_by(count);
    }

    /// Counts a call of the session API.
    pub fn api_call(&self, status: u16) {
        self.api_calls.get_or_create(&StatusLabel { status }).inc();
    }

    /// Counts an event.
    pub fn event(&self, event: Event) {
        self.events(event, 1);
    }

    /// Counts several events of a kind.
    pub fn events(&self, event: Event, count: u64) {
        self.sessions.get_or_create(&EventLabel { event }).inc_by(count);
    }

    /// Counts cookies that opened a session, by the fingerprint of the key that verified them. With
    /// a count of 0 the key is shown, so that an operator sees that it is not used.
    pub fn session_tokens(&self, key: [u8; 8], count: u64) {
        let key = Hex(u64::from_be_bytes(key));
        self.session_tokens.get_or_create(&KeyLabel { key }).inc_by(count);
    }

    /// How often an event has happened.
    pub fn count(&self, event: Event) -> u64 {
        self.sessions.get_or_create(&EventLabel { event }).get()
    }

    /// How many calls of any kind the store has had.
    pub fn store_calls(&self, operation: &'static str) -> u64 {
        // The histogram shows its count in its text alone.
        let wanted = format!("cloakroom_store_seconds_count{{operation=\"{operation}\"}} ");
        let text = self.text();
        text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok()).unwrap_or(0)
    }

    /// Notes a call of the store.
    pub fn store_call(&self, operation: &'static str, took: Duration, failed: bool) {
        let label = OperationLabel { operation };
        self.store_seconds.get_or_create(&label).observe(took.as_secs_f64());
        if failed {
            self.store_errors.get_or_create(&label).inc();
        }
    }

    /// Sets whether the store can be read or written: `operation` is `read` or `write`.
    pub fn store_up(&self, operation: &'static str, up: bool) {
        self.store_up.get_or_create(&OperationLabel { operation }).set(i64::from(up));
    }

    /// The text form.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// Metrics are in the registry as soon as they are made.
struct Registered<'a>(&'a mut Registry);

impl Registered<'_> {
    fn of<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.this(name, help, M::default())
    }

    fn this<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

/// What is counted where no metrics are at hand: by the whole process.
#[derive(Debug)]
struct OfProcess;

impl Collector for OfProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lines = "Lines of the log that were dropped because nobody took them";
        let panics = "Requests and other tasks that ended with a panic, each by itself";
        for (name, help, count) in [
            ("log_lines_dropped", lines, log::dropped_lines()),
            ("panics", panics, tasks::panics()),
        ] {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(metric)?;
        }
        Ok(())
    }
}

/// From 50 µs, what a round trip on one machine takes, to the deadline.
fn store_histogram() -> Histogram {
    Histogram::new([0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
