//! The page of this instance: its state as HTML.

use std::fmt::Write as _;

use super::findings::Finding;
use super::graph::Graph;
use super::history::Point;
use super::now::{Clock, Config, Now, SessionKeys, Store};
use super::page::{Rfc3339, Sentence, Tab, Time, View, Viewer};
use super::rates::{Quantiles, Rate};
use super::upstreams::State;
use crate::html::Text;

/// Events that hint at an attack, or at a mistake of a site.
const NOTABLE: [&str; 3] = ["ambiguous_cookie", "cookie_withheld", "replayed"];

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
            "<p>{} UTC. Rates are of the last {} and {} s, latencies of the last {} s, unless the \
             column says otherwise; latencies are estimates within the buckets of a histogram. <a href='/'>Reload</a></p>\n{}{}<div class=cards>{}{}{}{}{}{}</div>\n{}",
            Time(self.at.0),
            self.recent_window_seconds,
            self.window_seconds,
            self.window_seconds,
            self.problems(),
            self.upstreams(),
            self.instance(),
            self.requests(),
            self.sessions(),
            self.store_latency(),
            self.connections(),
            self.events(),
            self.graphs(),
        )
    }
}

impl Now {
    fn problems(&self) -> String {
        if self.problems.is_empty() {
            return "<section id=problems><h2>Problems</h2><p class=good>No known problem</p></section>\n"
                .to_owned();
        }
        let mut items = String::new();
        for finding in &self.problems {
            let Finding { detail, since, .. } = finding;
            let since = match since {
                Some(Rfc3339(since)) => format!(" <span class=soft>since {}</span>", Time(*since)),
                None => String::new(),
            };
            let title = finding.title();
            let _ = write!(
                items,
                "<li><strong class=bad>{}</strong>: {}{since}</li>",
                Text(&title),
                Sentence(detail)
            );
        }
        format!(
            "<section id=problems class='notice alert'><h2>Problems</h2><ul>{items}</ul></section>\n"
        )
    }

    fn instance(&self) -> String {
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
             <dt>Store</dt><dd id=store>{}</dd><dt>Clock</dt><dd id=clock>{}</dd>\
             <dt>Configuration</dt><dd>loaded {}, {} ago</dd><dt>Last reload</dt><dd>{reload}</dd>{}</dl></section>\n",
            self.version,
            self.instance.id,
            self.store.html(),
            self.clock.html(),
            Time(loaded_at.0),
            age(*age_seconds),
            self.session_keys.html(),
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
        let requests = self.requests.iter().map(|(outcome, rate)| (words(outcome), *rate));
        let events = self.session_event_rates.iter().map(|(event, rate)| (words(event), *rate));
        format!(
            "<section id=rates><h2>Requests</h2>{}<h2>Session events</h2>{}{}</section>\n",
            self.rates("Outcome", requests),
            self.rates("Event", events),
            self.log_ins_compared_from()
        )
    }

    fn log_ins_compared_from(&self) -> String {
        let Some(Rfc3339(from)) = self.log_ins_compared_from else { return String::new() };
        format!(
            "<p id=compared class=soft>Log-ins are compared from {} on: how many are usual is not known yet.</p>",
            Time(from)
        )
    }

    fn rates(&self, title: &str, rates: impl Iterator<Item = (String, Rate)>) -> String {
        let mut rows = String::new();
        for (name, Rate { per_second, recent_per_second, total }) in rates {
            let _ = write!(
                rows,
                "<tr><th scope=row>{name}</th><td>{recent_per_second:.1}</td><td>{per_second:.1}</td>\
                 <td>{total}</td></tr>",
            );
        }
        format!(
            "<table class=plain><thead><tr><th scope=col>{title}</th><th scope=col>per second, {}\u{a0}s</th>\
             <th scope=col>{}\u{a0}s</th><th scope=col>total</th></tr></thead><tbody>{rows}</tbody></table>",
            self.recent_window_seconds, self.window_seconds
        )
    }

    fn upstreams(&self) -> String {
        let (mut rows, recent) = (String::new(), self.recent_window_seconds);
        for (url, upstream) in &self.upstreams {
            let Quantiles { p50, p99, recent_p50, recent_p99 } = upstream.latency;
            let class = match upstream.state {
                State::Healthy => "good",
                State::Slow | State::Ejected => "bad",
            };
            let _ = write!(
                rows,
                "<tr><th scope=row class=long>{}</th><td><strong class={class}>{}</strong></td>{}{}{}<td>{}</td></tr>",
                Text(url),
                upstream.state.as_str(),
                rate_cell(upstream.requests),
                rate_cell(upstream.failures),
                latency_cells(&[p50, recent_p50, p99, recent_p99]),
                upstream.in_flight,
            );
        }
        format!(
            "<section id=upstreams><h2>Upstreams</h2>\
             <div class=wide tabindex=0 role=region aria-label='Upstreams, a wide table'><table class=plain><thead><tr>\
             <th scope=col>Upstream</th><th scope=col>state</th><th scope=col>requests/s</th>\
             <th scope=col>failures/s</th><th scope=col>p50</th><th scope=col>p50, {recent}\u{a0}s</th>\
             <th scope=col>p99</th><th scope=col>p99, {recent}\u{a0}s</th><th scope=col>in flight</th></tr></thead>\
             <tbody>{rows}</tbody></table></div></section>\n",
        )
    }

    fn store_latency(&self) -> String {
        let mut rows = String::new();
        for (name, found) in [("Upstreams", self.latency.upstream), ("Store", self.latency.store)] {
            let Quantiles { p50, p99, recent_p99, .. } = found;
            let cells = latency_cells(&[p50, p99, recent_p99]);
            let _ = write!(rows, "<tr><th scope=row>{name}</th>{cells}</tr>");
        }
        format!(
            "<section><h2>Latency</h2><div class=wide tabindex=0 role=region aria-label='Latency, a wide table'>\
             <table class=plain><thead><tr><th scope=col>Calls to</th>\
             <th scope=col>p50</th><th scope=col>p99</th><th scope=col>p99, {}\u{a0}s</th></tr></thead>\
             <tbody>{rows}</tbody></table></div></section>\n",
            self.recent_window_seconds
        )
    }

    fn connections(&self) -> String {
        let mut list = String::new();
        for (listener, open) in &self.connections {
            let _ = write!(list, "<dt>{}</dt><dd>{open}</dd>", Text(listener));
        }
        format!(
            "<section id=connections><h2>Open connections</h2><dl class=counts>{list}<dt>WebSockets and other tunnels</dt><dd>{}</dd>\
             <dt>Requests in flight</dt><dd>{}</dd></dl>{}</section>\n",
            self.tunnels,
            self.requests_in_flight,
            self.aborted()
        )
    }

    /// Returns the reasons for which connections were aborted since the start.
    fn aborted(&self) -> String {
        let reasons = self.connections_aborted.iter().filter(|(_, rate)| rate.total > 0);
        let rates: Vec<_> = reasons.map(|(reason, rate)| (words(reason), *rate)).collect();
        if rates.is_empty() {
            return "<p id=aborted>No connection was refused or closed early.</p>".to_owned();
        }
        let rates = self.rates("Reason", rates.into_iter());
        format!("<h2 id=aborted>Refused or closed early</h2>{rates}")
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
            Graph {
                title: "Log-ins per second",
                values: values(|point| Some(point.log_ins_per_second)),
                show: |rate| format!("{rate:.1}"),
            },
        ];
        let graphs = graphs.map(|graph| graph.html()).concat();
        format!("<section><h2>The last hour</h2><div class=graphs>{graphs}</div></section>\n")
    }
}

impl Store {
    fn html(&self) -> String {
        let Self { kind, url, read, read_age_seconds, write, write_age_seconds } = self;
        let state = |works: Option<bool>, seconds: &Option<u64>| {
            let state = match works {
                None => return "not used yet".to_owned(),
                Some(true) => "works",
                Some(false) => "<strong class=bad>fails</strong>",
            };
            format!("{state} ({} ago)", age(seconds.unwrap_or_default()))
        };
        let name = match url.as_str() {
            "memory:" => (*kind).to_owned(),
            url => format!("{kind} <code>{}</code>", Text(url)),
        };
        match (*kind, read, write) {
            ("cookies", ..) => return "none: sessions are in cookies".to_owned(),
            (_, None, None) => return format!("{name}: not used yet"),
            _ => {}
        }
        format!(
            "{name}: reading {}, writing {}",
            state(*read, read_age_seconds),
            state(*write, write_age_seconds)
        )
    }
}

impl Clock {
    fn html(&self) -> String {
        let (Some(offset), Some(seconds)) = (self.offset_seconds, self.age_seconds) else {
            return "not compared".to_owned();
        };
        let side = if offset < 0.0 { "behind" } else { "ahead of" };
        format!("{:.1} s {side} that of Redis ({} ago)", offset.abs(), age(seconds))
    }
}

impl SessionKeys {
    fn html(&self) -> String {
        let codes = |keys: &[String]| {
            let codes: Vec<_> = keys.iter().map(|key| format!("<code>{key}</code>")).collect();
            if codes.is_empty() { "none yet".to_owned() } else { codes.join(" ") }
        };
        let others = self.others.as_ref().map_or_else(String::new, |others| {
            format!("<dt>Keys of other instances</dt><dd>{}</dd>", codes(others))
        });
        format!(
            "<dt>Session keys</dt><dd id=keys>{}, the first one signs</dd>{others}",
            codes(&self.own)
        )
    }
}

fn rate_cell(rate: Rate) -> String {
    format!(
        "<td>{:.1} <span class=soft>({:.1})</span></td>",
        rate.recent_per_second, rate.per_second
    )
}

/// Returns latencies in seconds as cells of a table.
fn latency_cells(latencies: &[Option<f64>]) -> String {
    let cell = |seconds: &Option<f64>| seconds.map_or_else(|| "–".to_owned(), milliseconds);
    let cells = latencies.iter().map(|latency| format!("<td>{}</td>", cell(latency)));
    cells.collect::<Vec<_>>().concat()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_says_how_far_it_is_off() {
        let clock = |offset, age| Clock { offset_seconds: offset, age_seconds: age };
        assert_eq!(clock(None, None).html(), "not compared");
        let ahead = clock(Some(0.04), Some(3)).html();
        assert_eq!(ahead, "0.0 s ahead of that of Redis (3 s ago)");
        let behind = clock(Some(-1500.0), Some(130)).html();
        assert_eq!(behind, "1500.0 s behind that of Redis (2 min ago)");
    }

    #[test]
    fn store_says_how_old_its_answers_are() {
        let store = |read, write, age| Store {
            kind: "Redis",
            url: "redis://10.0.0.1:6379/0".to_owned(),
            read,
            read_age_seconds: age,
            write,
            write_age_seconds: age,
        };
        let name = "Redis <code>redis://10.0.0.1:6379/0</code>";
        assert_eq!(store(None, None, None).html(), format!("{name}: not used yet"));
        let html = store(Some(true), Some(false), Some(3)).html();
        let expected =
            ": reading works (3 s ago), writing <strong class=bad>fails</strong> (3 s ago)";
        assert_eq!(html, format!("{name}{expected}"));
    }
}
