//! The state of this instance: what it does now, did in the last hour, and known problems. It needs no token, and has no
//! names, addresses or ids of visitors: nothing but what `/metrics` has, and the causes of problems.

use std::collections::BTreeMap;

use serde::Serialize;

use super::findings::{self, Descriptors, Facts, Finding};
use super::history::Point;
use super::keys::Keys;
use super::page::Rfc3339;
use super::rates::{Quantiles, Rate, Windows, count};
use super::slow::LATENCY;
use super::upstreams::{Upstream, upstreams};
use super::{Settings, State, StoreName};
use crate::metrics::{ClockComparison, Samples};
use crate::net::descriptors;
use crate::session::peer;
use crate::sessions::Shared;
use crate::store::health::{Access, Report};
use crate::time::Timestamp;

/// What the state is read from.
pub(super) struct Sources<'a> {
    pub(super) shared: &'a Shared,
    pub(super) state: &'a State,
    pub(super) settings: &'a Settings,
    pub(super) store: Report,
}

/// The state of this instance.
#[derive(Debug, Serialize)]
pub(super) struct Now {
    pub(super) problems: Vec<Finding>,
    pub(super) version: &'static str,
    pub(super) instance: Instance,
    pub(super) at: Rfc3339,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) config: Config,
    pub(super) session_keys: SessionKeys,
    /// The time over which rates and quantiles are computed.
    pub(super) window_seconds: u64,
    /// The same of recent rates and quantiles.
    pub(super) recent_window_seconds: u64,
    pub(super) requests: BTreeMap<String, Rate>,
    pub(super) requests_in_flight: u64,
    pub(super) latency: Latency,
    pub(super) upstreams: BTreeMap<String, Upstream>,
    pub(super) connections: BTreeMap<String, u64>,
    /// Those that were refused or closed early, by reason.
    pub(super) connections_aborted: BTreeMap<String, Rate>,
    pub(super) tunnels: u64,
    pub(super) sessions: Sessions,
    pub(super) session_events: BTreeMap<String, u64>,
    /// Of some events.
    pub(super) session_event_rates: BTreeMap<String, Rate>,
    /// From when log-ins are compared with those before, if they are not yet.
    pub(super) log_ins_compared_from: Option<Rfc3339>,
    pub(super) history: Vec<Point>,
}

#[derive(Debug, Serialize)]
pub(super) struct Instance {
    /// A random number that each start draws.
    pub(super) id: String,
    /// Where other instances reach it, if the store is shared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) address: String,
}

/// The store, with what the last calls say: whether they succeeded, and how long ago they were. `None` before the first.
#[derive(Debug, Serialize)]
pub(super) struct Store {
    pub(super) kind: &'static str,
    /// Without the user and the password.
    pub(super) url: String,
    pub(super) read: Option<bool>,
    pub(super) read_age_seconds: Option<u64>,
    pub(super) write: Option<bool>,
    pub(super) write_age_seconds: Option<u64>,
}

/// The last comparison of the clock of this machine with that of the store; `None` if there was none.
#[derive(Debug, Serialize)]
pub(super) struct Clock {
    /// Positive if the clock of this machine is ahead.
    pub(super) offset_seconds: Option<f64>,
    pub(super) age_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Config {
    pub(super) loaded_at: Rfc3339,
    pub(super) age_seconds: u64,
    /// Whether the last reload, if there was one, succeeded.
    pub(super) last_reload_succeeded: bool,
    pub(super) reloads: u64,
    pub(super) failed_reloads: u64,
}

/// The fingerprints of session keys.
#[derive(Debug, Serialize)]
pub(super) struct SessionKeys {
    /// The first one signs.
    pub(super) own: Vec<String>,
    /// Those that the other instances have recorded; `None` if the store keeps none.
    pub(super) others: Option<Vec<String>>,
}

/// Of this instance, since its start.
#[derive(Debug, Serialize)]
pub(super) struct Sessions {
    /// Used within a time.
    pub(super) active: BTreeMap<String, u64>,
    pub(super) created: u64,
    pub(super) ended: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) upstream: Quantiles,
    pub(super) store: Quantiles,
}

/// Events whose rate says that something is going on.
const RATED: [&str; 5] = ["created", "logged_in", "logged_out", "invalid_cookie", "replayed"];

impl Sources<'_> {
    fn problems(&self, windows: &Windows, keys: &Keys, now: Timestamp) -> Vec<Finding> {
        let Sources { shared, state, settings, store } = self;
        findings::find(&Facts {
            now,
            moments: &state.moments,
            metrics: &shared.metrics,
            windows,
            routing: &settings.routing,
            usual_log_ins: state.history.usual_log_ins(),
            store: (settings.store.kind, store),
            failed_reload: state.reload.failure(),
            keys,
            descriptors: Descriptors {
                limit: descriptors::limit(),
                open: descriptors::open(),
                connections: settings.connections,
            },
        })
    }
}

impl Now {
    /// Reads the state.
    pub(super) fn read(sources: &Sources<'_>) -> Self {
        let Sources { shared, state, settings, store } = sources;
        let now = shared.clock.now();
        shared.metrics.count_active_sessions(now);
        let windows = Windows::read(&shared.metrics, &state.history);
        let keys = state.keys.keys(shared);
        let problems = sources.problems(&windows, &keys, now);
        let slow: Vec<_> = problems.iter().filter_map(|one| one.slow_upstream.as_deref()).collect();
        let upstreams = upstreams(&windows, &slow);
        let samples = &windows.now;
        let [window_seconds, recent_window_seconds] = windows.seconds();
        let mut session_event_rates = windows.rates("session_events_total", "event");
        session_event_rates.retain(|event, _| RATED.contains(&event.as_str()));
        let compared_from = state.history.log_ins_compared_from();
        let Keys { own, others, .. } = keys;
        Self {
            problems,
            version: env!("CARGO_PKG_VERSION"),
            instance: Instance::of(&shared.instance),
            at: Rfc3339(now),
            store: Store::of(&settings.store, store),
            clock: Clock::of(shared.metrics.clock()),
            config: Config::read(samples, now),
            session_keys: SessionKeys { own, others },
            window_seconds,
            recent_window_seconds,
            requests: windows.rates("requests_total", "outcome"),
            requests_in_flight: count(samples.sum("requests_in_flight")),
            latency: Latency {
                upstream: windows.quantiles(LATENCY),
                store: windows.quantiles("store_duration_seconds"),
            },
            upstreams,
            connections: counts(samples, "connections_open", "listener"),
            connections_aborted: windows.rates("connections_aborted_total", "reason"),
            tunnels: count(samples.sum("tunnels_open")),
            sessions: Sessions {
                active: counts(samples, "sessions_active", "within"),
                created: count(samples.sum("sessions_created_total")),
                ended: counts(samples, "sessions_ended_total", "reason"),
            },
            session_events: counts(samples, "session_events_total", "event"),
            session_event_rates,
            log_ins_compared_from: compared_from.map(|from| Rfc3339(state.moments.time(from, now))),
            history: state.history.points(),
        }
    }
}

impl Instance {
    fn of(instance: &peer::Instance) -> Self {
        Self { id: format!("{:016x}", instance.number), address: instance.authority.clone() }
    }
}

impl Store {
    fn of(name: &StoreName, Report { read, write }: &Report) -> Self {
        let works = |access: &Access| match access {
            Access::NotUsed => None,
            Access::Works { .. } => Some(true),
            Access::Fails { .. } => Some(false),
        };
        let seconds = |access: &Access| access.age().map(|age| age.as_secs());
        Self {
            kind: name.kind,
            url: name.url.clone(),
            read: works(read),
            read_age_seconds: seconds(read),
            write: works(write),
            write_age_seconds: seconds(write),
        }
    }
}

impl Clock {
    fn of(comparison: Option<ClockComparison>) -> Self {
        Self {
            offset_seconds: comparison.map(|comparison| comparison.seconds()),
            age_seconds: comparison.map(|comparison| comparison.at.elapsed().as_secs()),
        }
    }
}

impl Config {
    fn read(samples: &Samples, now: Timestamp) -> Self {
        let seconds = count(samples.sum("config_last_reload_success_timestamp_seconds"));
        let loaded_at = Timestamp::from_millis(i64::try_from(seconds).unwrap_or(0) * 1000);
        let reloads = |outcome| count(samples.of("config_reloads_total", "outcome", outcome));
        Self {
            loaded_at: Rfc3339(loaded_at),
            age_seconds: now.since(loaded_at).as_secs(),
            last_reload_succeeded: samples.sum("config_last_reload_successful") > 0.0,
            reloads: reloads("success"),
            failed_reloads: reloads("failure"),
        }
    }
}

fn counts(samples: &Samples, name: &str, label: &str) -> BTreeMap<String, u64> {
    let counts = samples.by(name, label).into_iter();
    counts.map(|(value, sum)| (value.to_owned(), count(sum))).collect()
}
