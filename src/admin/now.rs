//! The page of this instance: what it does now, and did in the last hour. It needs no token, and shows no names, addresses
//! or ids of visitors: nothing but what `/metrics` has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::graph::Graph;
use super::history::{History, Point};
use super::page::{Tab, Time, View, Viewer};
use crate::html::Text;
use crate::metrics::Samples;
use crate::sessions::Shared;
use crate::time::Timestamp;

/// The state of this instance.
#[derive(Debug, Serialize)]
pub(super) struct Now {
    version: &'static str,
    instance: Instance,
    at: Instant,
    store: Store,
    config: Config,
    /// The time over which rates and quantiles are computed.
    window_seconds: u64,
    requests: BTreeMap<String, Rate>,
    requests_in_flight: u64,
    latency: Latency,
    upstreams: BTreeMap<String, &'static str>,
    connections: BTreeMap<String, u64>,
    tunnels: u64,
    sessions: Sessions,
    session_events: BTreeMap<String, u64>,
    history: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Instance {
    /// A random number that each start draws.
    id: String,
    /// Where other instances reach it, if the store is shared.
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
}

/// A time as text in JSON.
#[derive(Clone, Copy, Debug)]
struct Instant(Timestamp);

impl Serialize for Instant {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.to_string())
    }
}

#[derive(Debug, Serialize)]
struct Store {
    kind: &'static str,
    read: bool,
    write: bool,
}

#[derive(Debug, Serialize)]
struct Config {
    loaded_at: Instant,
    age_seconds: u64,
    /// Whether the last reload, if there was one, succeeded.
    last_reload_succeeded: bool,
    reloads: u64,
    failed_reloads: u64,
}

/// Of this instance, since its start.
#[derive(Debug, Serialize)]
struct Sessions {
    /// Used within a time.
    active: BTreeMap<String, u64>,
    created: u64,
    ended: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    per_second: f64,
    total: u64,
}

#[derive(Debug, Serialize)]
struct Latency {
    upstream: Quantiles,
    store: Quantiles,
}

/// In seconds; `None` without observations.
#[derive(Clone, Copy, Debug, Serialize)]
struct Quantiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

/// Events that hint at an attack, or at a mistake of a site.
const NOTABLE: [&str; 3] = ["ambiguous_cookie", "cookie_withheld", "replayed"];

impl Now {
    /// Reads the state. `store` is the kind of the store.
    pub(super) fn read(shared: &Shared, history: &History, store: &'static str) -> Self {
        let now = shared.clock.now();
        shared.metrics.count_active_sessions(now);
        let samples = shared.metrics.samples();
        let base = history.base();
        let seconds = samples.sum("config_last_reload_success_timestamp_seconds");
        let loaded_at = Timestamp::from_millis(i64::try_from(count(seconds)).unwrap_or(0) * 1000);
        let is_up = |operation| samples.of("store_up", "operation", operation) > 0.0;
        let reloads = |outcome| count(samples.of("config_reloads_total", "outcome", outcome));
        let quantiles = |name| quantiles(&samples, &base, name);
        let upstreams = samples.by("upstream_healthy", "upstream").into_iter();
        let state = |up: f64| if up > 0.0 { "healthy" } else { "ejected" };
        let instance = &shared.instance;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            instance: Instance {
                id: format!("{:016x}", instance.number),
                address: instance.authority.clone(),
            },
            at: Instant(now),
            store: Store { kind: store, read: is_up("read"), write: is_up("write") },
            config: Config {
                loaded_at: Instant(loaded_at),
                age_seconds: now.since(loaded_at).as_secs(),
                last_reload_succeeded: samples.sum("config_last_reload_successful") > 0.0,
                reloads: reloads("success"),
                failed_reloads: reloads("failure"),
            },
            window_seconds: window(&base, &samples).as_secs(),
            requests: rates(&samples, &base),
            requests_in_flight: count(samples.sum("requests_in_flight")),
            latency: Latency {
                upstream: quantiles("upstream_request_duration_seconds"),
                store: quantiles("store_duration_seconds"),
            },
            upstreams: upstreams.map(|(url, up)| (url.to_owned(), state(up))).collect(),
            connections: counts(&samples, "connections_open", "listener"),
            tunnels: count(samples.sum("tunnels_open")),
            sessions: Sessions {
                active: counts(&samples, "sessions_active", "within"),
                created: count(samples.sum("sessions_created_total")),
                ended: counts(&samples, "sessions_ended_total", "reason"),
            },
            session_events: counts(&samples, "session_events_total", "event"),
            history: history.points(),
        }
    }
}

/// Rounds a count, which a sample has as a floating-point number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole numbers, and far below 2^53"
)]
fn count(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn counts(samples: &Samples, name: &str, label: &str) -> BTreeMap<String, u64> {
    let counts = samples.by(name, label).into_iter();
    counts.map(|(value, sum)| (value.to_owned(), count(sum))).collect()
}

fn window(base: &Samples, samples: &Samples) -> Duration {
    samples.at.duration_since(base.at).max(Duration::from_secs(1))
}

fn rates(samples: &Samples, base: &Arc<Samples>) -> BTreeMap<String, Rate> {
    let seconds = window(base, samples).as_secs_f64();
    let rate = |(outcome, total): (&str, f64)| {
        let before = base.of("requests_total", "outcome", outcome);
        let per_second = (total - before) / seconds;
        (outcome.to_owned(), Rate { per_second, total: count(total) })
    };
    samples.by("requests_total", "outcome").into_iter().map(rate).collect()
}

fn quantiles(samples: &Samples, base: &Samples, name: &str) -> Quantiles {
    let quantile = |quantile| samples.quantile_since(base, name, quantile);
    Quantiles { p50: quantile(0.5), p99: quantile(0.99) }
}

impl View for Now {
    fn tab(&self) -> Tab {
        Tab::Now
    }

    fn title(&self) -> String {
        "Now".to_owned()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    fn html(&self, _viewer: &Viewer<'_>) -> String {
        format!(
            "<p>{} UTC. Rates and latencies are of the last {} s. <a href='/'>Reload</a></p>\n\
             <div class=cards>{}{}{}{}{}{}</div>\n{}",
            Time(self.at.0),
            self.window_seconds,
            self.instance(),
            self.sessions(),
            self.requests(),
            self.latencies(),
            self.connections(),
            self.events(),
            self.graphs(),
        )
    }
}

impl Now {
    fn instance(&self) -> String {
        let state = |works: bool| if works { "works" } else { "<strong class=bad>fails</strong>" };
        let Store { kind, read, write } = self.store;
        let Config { loaded_at, age_seconds, last_reload_succeeded, reloads, failed_reloads } =
            &self.config;
        let reload = match (last_reload_succeeded, reloads + failed_reloads) {
            (false, _) => "<strong class=bad>failed</strong>; the running one was kept".to_owned(),
            (true, 0) => "none since the start".to_owned(),
            (true, _) => "succeeded".to_owned(),
        };
        let address = match self.instance.address.as_str() {
            "" => String::new(),
            address => format!(" at {}", Text(address)),
        };
        format!(
            "<section><h2>Instance</h2><dl><dt>Version</dt><dd>{}</dd><dt>Instance</dt><dd><code>{}</code>{address}</dd>\
             <dt>Store</dt><dd id=store>{kind}: reading {}, writing {}</dd>\
             <dt>Configuration</dt><dd>loaded {}, {} ago</dd><dt>Last reload</dt><dd>{reload}</dd></dl></section>\n",
            self.version,
            self.instance.id,
            state(read),
            state(write),
            Time(loaded_at.0),
            age(*age_seconds),
        )
    }

    fn sessions(&self) -> String {
        let mut list = String::new();
        for (within, label) in [("5m", "5 minutes"), ("1h", "hour"), ("24h", "24 hours")] {
            let active = self.sessions.active.get(within).copied().unwrap_or_default();
            let _ = write!(list, "<dt>Active in the last {label}</dt><dd>{active}</dd>");
        }
        let _ = write!(list, "<dt>Created</dt><dd id=created>{}</dd>", self.sessions.created);
        for (reason, ended) in &self.sessions.ended {
            let _ = write!(list, "<dt>Ended: {}</dt><dd>{ended}</dd>", words(reason));
        }
        format!(
            "<section><h2>Sessions since the start</h2><dl class=counts>{list}</dl></section>\n"
        )
    }

    fn requests(&self) -> String {
        let mut rows = String::new();
        for (outcome, rate) in &self.requests {
            let _ = write!(
                rows,
                "<tr><th scope=row>{}</th><td>{:.1}</td><td>{}</td></tr>",
                words(outcome),
                rate.per_second,
                rate.total
            );
        }
        format!(
            "<section><h2>Requests</h2><table class=plain><thead><tr><th scope=col>Outcome</th>\
             <th scope=col>per second</th><th scope=col>total</th></tr></thead><tbody>{rows}</tbody></table></section>\n"
        )
    }

    fn latencies(&self) -> String {
        let mut rows = String::new();
        for (name, found) in [("Upstreams", self.latency.upstream), ("Store", self.latency.store)] {
            let [p50, p99] = [found.p50, found.p99]
                .map(|seconds| seconds.map_or_else(|| "–".to_owned(), milliseconds));
            let _ = write!(rows, "<tr><th scope=row>{name}</th><td>{p50}</td><td>{p99}</td></tr>");
        }
        let mut upstreams = String::new();
        for (url, state) in &self.upstreams {
            let class = if *state == "healthy" { "good" } else { "bad" };
            let _ = write!(
                upstreams,
                "<dt>{}</dt><dd><strong class={class}>{state}</strong></dd>",
                Text(url)
            );
        }
        format!(
            "<section><h2>Upstreams and store</h2><table class=plain><thead><tr><th scope=col>Latency</th>\
             <th scope=col>p50</th><th scope=col>p99</th></tr></thead><tbody>{rows}</tbody></table>\
             <dl id=upstreams class=counts>{upstreams}</dl></section>\n"
        )
    }

    fn connections(&self) -> String {
        let mut list = String::new();
        for (listener, open) in &self.connections {
            let _ = write!(list, "<dt>{}</dt><dd>{open}</dd>", Text(listener));
        }
        format!(
            "<section><h2>Open connections</h2><dl class=counts>{list}<dt>WebSockets and other tunnels</dt><dd>{}</dd>\
             <dt>Requests in flight</dt><dd>{}</dd></dl></section>\n",
            self.tunnels, self.requests_in_flight
        )
    }

    fn events(&self) -> String {
        let mut list = String::new();
        for (event, total) in &self.session_events {
            let is_notable = NOTABLE.contains(&event.as_str()) && *total > 0;
            let class = if is_notable { " class=bad" } else { "" };
            let _ = write!(list, "<dt>{}</dt><dd{class}>{total}</dd>", words(event));
        }
        format!(
            "<section id=events><h2>Session events since the start</h2><dl class=counts>{list}</dl></section>\n"
        )
    }

    fn graphs(&self) -> String {
        let values = |value: fn(&Point) -> Option<f64>| self.history.iter().map(value).collect();
        let graphs = [
            Graph {
                title: "Requests per second",
                values: values(|point| Some(point.requests_per_second)),
                show: |rate| format!("{rate:.1}"),
            },
            Graph {
                title: "Failed requests per second",
                values: values(|point| Some(point.failures_per_second)),
                show: |rate| format!("{rate:.2}"),
            },
            Graph {
                title: "Upstream latency, p99",
                values: values(|point| point.upstream_p99),
                show: milliseconds,
            },
        ];
        let graphs = graphs.map(|graph| graph.html()).concat();
        format!("<section><h2>The last hour</h2><div class=graphs>{graphs}</div></section>\n")
    }
}

/// Returns the value of a label as words.
fn words(label: &str) -> String {
    Text(&label.replace('_', " ")).to_string()
}

fn milliseconds(seconds: f64) -> String {
    let millis = seconds * 1000.0;
    if millis < 10.0 { format!("{millis:.2}\u{a0}ms") } else { format!("{millis:.0}\u{a0}ms") }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
