//! Metrics, in the `OpenMetrics` text format that Prometheus reads. `docs/reference/metrics.md` lists them.
//!
//! Every series exists from the start, so that a rate over its first increment is right, and handles are resolved once: a
//! request looks no series up by its labels. Series of listeners, upstreams and keys are created with these.

mod accept_pause;
mod active;
mod clock;
mod label;
mod network;
mod process;
mod register;
mod samples;
mod values;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::time::Timestamp;
use active::{Active, Within};
use clock::ClockOffset;
use label::{ByLabel, Label as _, Labels};
use network::Network;
use process::{Process, ProcessCounts};
use register::{GaugeGuard, Register, request_histogram, store_histogram};
use values::{ReloadOutcome, StatusClass};

pub(crate) use clock::ClockComparison;
pub(crate) use network::{
    AbortReason, Resumed, TlsVersion, UpstreamFailure, UpstreamHealthGauge, UpstreamOutcome,
};
pub(crate) use network::{ListenerMetrics, UpstreamMetrics};
pub(crate) use samples::{Quantile, Samples};
pub use values::Event;
pub(crate) use values::{
    EndReason, Outcome, ResponseEnd, SpanOutcome, StoreAccess, StoreOperation,
};

/// The metrics of one process. Clones share their counts.
#[derive(Clone)]
pub struct Metrics(Arc<Series>);

struct Series {
    registry: Registry,
    requests: ByLabel<Outcome, Counter>,
    request_duration: ByLabel<StatusClass, Histogram>,
    requests_in_flight: Gauge,
    requests_waiting: Gauge,
    finished_requests: Gauge,
    responses: ByLabel<ResponseEnd, Counter>,
    tunnels: Gauge,
    api_requests: ApiRequests,
    session_events: ByLabel<Event, Counter>,
    sessions_created: Counter,
    sessions_ended: ByLabel<EndReason, Counter>,
    sessions_active: ByLabel<Within, Gauge>,
    active: Active,
    session_tokens: Family<Labels, Counter>,
    store_duration: ByLabel<StoreOperation, Histogram>,
    store_errors: ByLabel<StoreOperation, Counter>,
    /// Without series until it is known whether the store is up.
    store_up: Family<Labels, Gauge>,
    memory_store_bytes: Gauge,
    clock_offset: ClockOffset,
    reloads: ByLabel<ReloadOutcome, Counter>,
    last_reload_successful: Gauge,
    last_reload_success: Gauge,
    certificate_expiry: Family<Labels, Gauge>,
    draining: Gauge,
    spans: ByLabel<SpanOutcome, Counter>,
    network: Network,
}

/// The statuses that the session API is known to respond with.
const API_STATUSES: [u16; 17] =
    [200, 204, 400, 401, 404, 405, 409, 410, 412, 413, 415, 421, 422, 500, 501, 503, 504];

/// Counters of the session API's responses, by status.
struct ApiRequests {
    family: Family<Labels, Counter>,
    known: [(u16, Counter); API_STATUSES.len()],
}

impl ApiRequests {
    fn new(family: Family<Labels, Counter>) -> Self {
        let known = API_STATUSES.map(|status| (status, Self::series(&family, status)));
        Self { family, known }
    }

    fn series(family: &Family<Labels, Counter>, status: u16) -> Counter {
        family.get_or_create_owned(&vec![("code", status.to_string())])
    }

    fn count(&self, status: u16) {
        match self.known.iter().find(|(known, _)| *known == status) {
            Some((_, counter)) => counter.inc(),
            // Of another instance, whose response was relayed.
            None => Self::series(&self.family, status).inc(),
        };
    }
}

/// Counters of the cookies that opened a session, by the key that signed them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionTokens(Arc<[Counter]>);

impl SessionTokens {
    /// Counts a cookie that was signed by the key at this place of the ring.
    pub(crate) fn count(&self, place: usize) {
        if let Some(counter) = self.0.get(place) {
            counter.inc();
        }
    }
}

/// The expiry of a certificate that a listener presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateExpiry {
    pub(crate) listener: String,
    pub(crate) certificate: String,
    /// Seconds since the Unix epoch.
    pub(crate) not_after: i64,
}

impl Metrics {
    /// Registers all metrics, with their counts at zero.
    #[expect(clippy::too_many_lines, reason = "a list: one call for each metric")]
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let ours = registry.sub_registry_with_prefix("cloakroom");
        ours.register_collector(Box::new(ProcessCounts));
        let clock_offset = ClockOffset::default();
        ours.register_collector(Box::new(clock_offset.clone()));
        let mut register = Register(ours);
        register.metric("build", "Version and platform of this program", build_info());
        Self(Arc::new(Series {
            clock_offset,
            requests: register.by_label(
                "requests",
                "Requests on the public listeners, by outcome",
                Counter::default,
            ),
            request_duration: register.by_label(
                "request_duration_seconds",
                "Time from a request's head to the head of its response, by class of the status code",
                request_histogram,
            ),
            requests_in_flight: register
                .default("requests_in_flight", "Requests that are being forwarded"),
            requests_waiting: register
                .default("requests_waiting", "Requests that wait for another one of their session"),
            finished_requests: register.default(
                "finished_requests",
                "Finished requests whose tokens the session API still accepts",
            ),
            responses: register.by_label(
                "responses",
                "Finished responses on the public listeners, by how they ended",
                Counter::default,
            ),
            tunnels: register.default("tunnels_open", "Open WebSockets and other upgrades"),
            api_requests: ApiRequests::new(
                register.default("api_requests", "Requests to the session API, by status code"),
            ),
            session_events: register.by_label(
                "session_events",
                "Events of sessions and session cookies",
                Counter::default,
            ),
            sessions_created: register.default("sessions_created", "Sessions that were created"),
            sessions_ended: register.by_label(
                "sessions_ended",
                "Sessions that have ended, by the reason",
                Counter::default,
            ),
            sessions_active: register.by_label(
                "sessions_active",
                "Sessions that requests to this instance have used within a time",
                Gauge::default,
            ),
            active: Active::default(),
            session_tokens: register.default(
                "session_tokens",
                "Cookies that opened a session, by the fingerprint of the key that signed them",
            ),
            store_duration: register.by_label(
                "store_duration_seconds",
                "Duration of calls to the session store, by operation",
                store_histogram,
            ),
            store_errors: register.by_label(
                "store_errors",
                "Failed calls to the session store, by operation",
                Counter::default,
            ),
            store_up: register.default(
                "store_up",
                "1 if the last read or write of the session store succeeded, else 0",
            ),
            memory_store_bytes: register
                .default("memory_store_bytes", "Memory of the records of the memory store"),
            reloads: register.by_label(
                "config_reloads",
                "Reloads of the configuration, by outcome",
                Counter::default,
            ),
            last_reload_successful: register.default(
                "config_last_reload_successful",
                "1 if the last reload of the configuration succeeded, else 0",
            ),
            last_reload_success: register.default(
                "config_last_reload_success_timestamp_seconds",
                "Time of the start or of the last successful reload, in seconds since the Unix epoch",
            ),
            certificate_expiry: register.default(
                "certificate_expiry_timestamp_seconds",
                "Time after which a listener's certificate, or one of its chain, is not valid any more",
            ),
            draining: register
                .default("draining", "1 while the process shuts down, predrain included, else 0"),
            spans: register.by_label("spans", "Recorded spans, by outcome", Counter::default),
            network: Network::new(&mut register),
            registry,
        }))
    }

    /// Counts a request on a public listener, when the head of its response is sent.
    pub(crate) fn request(&self, outcome: Outcome, status: u16, duration: Duration) {
        self.0.requests.get(outcome).inc();
        self.0.request_duration.get(StatusClass::of(status)).observe(duration.as_secs_f64());
    }

    /// Counts a response whose body has ended.
    pub(crate) fn response(&self, end: ResponseEnd) {
        self.0.responses.get(end).inc();
    }

    /// Returns the gauge of requests that are being forwarded.
    pub fn requests_in_flight(&self) -> &Gauge {
        &self.0.requests_in_flight
    }

    /// Counts a request as waiting for its turn on its session until the guard is dropped.
    pub(crate) fn request_waiting(&self) -> GaugeGuard {
        GaugeGuard::new(&self.0.requests_waiting)
    }

    /// Returns the gauge of finished requests whose tokens are still accepted.
    pub(crate) fn finished_requests(&self) -> &Gauge {
        &self.0.finished_requests
    }

    /// Counts a tunnel as open until the guard is dropped.
    pub(crate) fn tunnel_opened(&self) -> GaugeGuard {
        GaugeGuard::new(&self.0.tunnels)
    }

    /// Returns the metrics of a listener, by its address.
    pub(crate) fn listener(&self, address: &str) -> ListenerMetrics {
        self.0.network.listener(address)
    }

    /// Returns the metrics of an upstream, by its URL.
    pub(crate) fn upstream(&self, url: &str) -> UpstreamMetrics {
        self.0.network.upstream(url)
    }

    /// Returns when a listener began to accept no connections, all the time or again and again.
    pub(crate) fn accept_paused_since(&self, listener: &str) -> Option<Instant> {
        self.0.network.accept_paused_since(listener)
    }

    /// Returns why an upstream gets no requests from a route, by its URL; `None` if all routes send it requests.
    pub(crate) fn upstream_failure(&self, url: &str) -> Option<UpstreamFailure> {
        self.0.network.upstream_failure(url)
    }

    /// Counts a response of the session API.
    pub(crate) fn api_request(&self, status: u16) {
        self.0.api_requests.count(status);
    }

    pub(crate) fn event(&self, event: Event) {
        self.events(event, 1);
    }

    /// Counts an event that has happened several times.
    pub(crate) fn events(&self, event: Event, count: u64) {
        self.0.session_events.get(event).inc_by(count);
    }

    pub(crate) fn session_created(&self) {
        self.0.sessions_created.inc();
    }

    /// Counts sessions that have ended.
    pub(crate) fn sessions_ended(&self, reason: EndReason, count: u64) {
        self.0.sessions_ended.get(reason).inc_by(count);
    }

    /// Notes that a request uses a session, by a part of its id that is random.
    pub(crate) fn session_used(&self, session: u64, now: Timestamp) {
        self.0.active.used(session, now);
    }

    /// Sets the gauges of active sessions. It takes milliseconds if there are very many.
    pub(crate) fn count_active_sessions(&self, now: Timestamp) {
        for (within, count) in self.0.active.count(now) {
            self.0.sessions_active.get(within).set(count);
        }
    }

    /// Returns how often an event has happened.
    pub fn event_count(&self, event: Event) -> u64 {
        self.0.session_events.get(event).get()
    }

    /// Returns the counters of the keys with these fingerprints, in the same order. Each appears with a count of zero, which
    /// shows that an old key is not used any more.
    pub(crate) fn session_tokens(
        &self,
        fingerprints: impl Iterator<Item = String>,
    ) -> SessionTokens {
        let series = |key| self.0.session_tokens.get_or_create_owned(&vec![("key", key)]);
        SessionTokens(fingerprints.map(series).collect())
    }

    /// Records a call to the store.
    pub(crate) fn store_call(&self, operation: StoreOperation, duration: Duration, failed: bool) {
        self.0.store_duration.get(operation).observe(duration.as_secs_f64());
        if failed {
            self.0.store_errors.get(operation).inc();
        }
    }

    /// Returns how many calls of an operation the store has had.
    pub fn store_calls(&self, operation: &str) -> u64 {
        // A histogram's count is in the text form alone.
        let line = format!("cloakroom_store_duration_seconds_count{{operation=\"{operation}\"}} ");
        let text = self.text();
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    /// Sets whether the store can be read or written.
    pub(crate) fn store_up(&self, access: StoreAccess, up: bool) {
        self.0.store_up.get_or_create(&vec![access.pair()]).set(i64::from(up));
    }

    /// Sets how much memory the records of the memory store take.
    pub(crate) fn memory_store_bytes(&self, bytes: usize) {
        self.0.memory_store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Sets by how many milliseconds the clock of this machine is ahead of the store's, and returns the previous comparison.
    pub(crate) fn set_clock_offset(&self, ahead: i64) -> Option<ClockComparison> {
        self.0.clock_offset.set(ahead)
    }

    /// Returns the last comparison of the clock of this machine with the store's.
    pub(crate) fn clock(&self) -> Option<ClockComparison> {
        self.0.clock_offset.last()
    }

    /// Records that the configuration of the start is in effect.
    pub(crate) fn config_loaded(&self, now: Timestamp) {
        self.0.last_reload_successful.set(1);
        self.0.last_reload_success.set(now.as_millis() / 1000);
    }

    /// Records a reload that succeeded.
    pub(crate) fn config_reloaded(&self, now: Timestamp) {
        self.0.reloads.get(ReloadOutcome::Success).inc();
        self.config_loaded(now);
    }

    /// Records a reload that failed: the running configuration was kept.
    pub(crate) fn config_reload_failed(&self) {
        self.0.reloads.get(ReloadOutcome::Failure).inc();
        self.0.last_reload_successful.set(0);
    }

    /// Replaces the certificates whose expiry is exposed.
    pub(crate) fn set_certificates(
        &self,
        certificates: impl IntoIterator<Item = CertificateExpiry>,
    ) {
        let family = &self.0.certificate_expiry;
        family.clear();
        for CertificateExpiry { listener, certificate, not_after } in certificates {
            let labels = vec![("listener", listener), ("certificate", certificate)];
            family.get_or_create(&labels).set(not_after);
        }
    }

    /// Records that the shutdown has begun.
    pub(crate) fn drain_started(&self) {
        self.0.draining.set(1);
    }

    /// Counts spans by outcome.
    pub(crate) fn spans(&self, outcome: SpanOutcome, count: usize) {
        self.0.spans.get(outcome).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Returns all metrics in the `OpenMetrics` text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.0.registry);
        text
    }
}

fn build_info() -> Info<Labels> {
    Info::new(vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        // Set by who builds a release.
        ("commit", option_env!("CLOAKROOM_COMMIT").unwrap_or("unknown").to_owned()),
        ("os", std::env::consts::OS.to_owned()),
        ("arch", std::env::consts::ARCH.to_owned()),
    ])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_value(metrics: &Metrics, series: &str, value: i64) {
        let text = metrics.text();
        let line = format!("cloakroom_{series} {value}");
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }

    #[test]
    fn failed_reload_shows_until_one_succeeds() {
        let metrics = Metrics::new();
        metrics.config_loaded(Timestamp::from_millis(1_000));
        assert_value(&metrics, "config_last_reload_successful", 1);
        assert_value(&metrics, "config_reloads_total{outcome=\"success\"}", 0);
        metrics.config_reload_failed();
        assert_value(&metrics, "config_last_reload_successful", 0);
        assert_value(&metrics, "config_last_reload_success_timestamp_seconds", 1);
        assert_value(&metrics, "config_reloads_total{outcome=\"failure\"}", 1);
        metrics.config_reloaded(Timestamp::from_millis(5_999));
        assert_value(&metrics, "config_last_reload_successful", 1);
        assert_value(&metrics, "config_last_reload_success_timestamp_seconds", 5);
    }

    #[test]
    fn certificates_replace_the_previous_ones() {
        let metrics = Metrics::new();
        let certificate = |file: &str| CertificateExpiry {
            listener: "127.0.0.1:443".to_owned(),
            certificate: file.to_owned(),
            not_after: 42,
        };
        metrics.set_certificates([certificate("a.pem"), certificate("b.pem")]);
        metrics.set_certificates([certificate("b.pem")]);
        let labels = "listener=\"127.0.0.1:443\",certificate=\"b.pem\"";
        assert_value(&metrics, &format!("certificate_expiry_timestamp_seconds{{{labels}}}"), 42);
        assert!(!metrics.text().contains("a.pem"));
    }

    #[test]
    fn unknown_api_status_gets_a_series() {
        let metrics = Metrics::new();
        metrics.api_request(200);
        metrics.api_request(599);
        assert_value(&metrics, "api_requests_total{code=\"200\"}", 1);
        assert_value(&metrics, "api_requests_total{code=\"599\"}", 1);
        assert_value(&metrics, "api_requests_total{code=\"410\"}", 0);
    }
}
