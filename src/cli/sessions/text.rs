//! The responses of the admin listener as text.

use std::fmt::Write as _;

use serde_json::Value;

use crate::metrics::Samples;

/// Lists sessions as a table.
pub(super) fn list(page: &Value) -> String {
    let sessions = items(at(page, "/sessions"));
    let mut rows = vec![COLUMNS.map(|(title, _)| title.to_owned())];
    rows.extend(sessions.iter().map(|session| COLUMNS.map(|(_, column)| column(session))));
    let mut text = table(&rows);
    let (matched, scanned) = (number(at(page, "/matched")), number(at(page, "/scanned")));
    if !at(page, "/next").is_null() {
        let _ = writeln!(text, "{} of {matched}; --limit shows more", sessions.len());
    }
    if at(page, "/complete") == &Value::Bool(false) {
        let _ = writeln!(
            text,
            "stopped after {scanned} sessions; search by principal or by a whole id"
        );
    }
    let unreadable = number(at(page, "/unreadable"));
    if unreadable > 0 {
        let _ = writeln!(text, "{unreadable} records cannot be read; see the log");
    }
    text
}

type Column = (&'static str, fn(&Value) -> String);

const COLUMNS: [Column; 8] = [
    ("ID", |session| word(at(session, "/id"))),
    ("PRINCIPAL", |session| word(at(session, "/principal"))),
    ("CREATED", |session| word(at(session, "/created_at"))),
    ("LAST SEEN", |session| word(at(session, "/last_seen_at"))),
    ("ENDS", |session| word(at(session, "/expires_at"))),
    ("BYTES", |session| word(at(session, "/bytes"))),
    ("CLIENT", |session| word(at(session, "/client/address"))),
    ("KEYS", |session| items(at(session, "/keys")).iter().map(word).collect::<Vec<_>>().join(" ")),
];

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Shows a session, and its events.
pub(super) fn session(page: &Value) -> String {
    let mut text = String::new();
    for (name, value) in at(page, "/session").as_object().into_iter().flatten() {
        if name != "values" && !value.is_null() {
            let _ = writeln!(text, "{name}: {}", inline(value));
        }
    }
    if let Some(values) = at(page, "/session/values").as_object() {
        text.push_str("values:\n");
        for (key, value) in values {
            let _ = writeln!(text, "  {}: {value}", printable(key));
        }
    }
    let entries = items(at(page, "/entries"));
    if !entries.is_empty() {
        text.push_str("events:\n");
    }
    for entry in entries {
        let of = ["time", "event", "by", "client"].map(|name| word(at(entry, &format!("/{name}"))));
        let _ = writeln!(text, "  {}", of.join("  ").trim_end());
    }
    text
}

/// Says how many sessions were ended.
pub(super) fn ended(answer: &Value) -> String {
    let count = number(at(answer, "/ended"));
    let sessions = if count == 1 { "session" } else { "sessions" };
    let replicated = match at(answer, "/replicated") {
        Value::Bool(true) => "; a replica of the store has it",
        Value::Bool(false) => "; no replica of the store has confirmed it",
        _ => "",
    };
    format!("ended {count} {sessions}{replicated}")
}

/// Shows the state of an instance: its problems, then a line for each member.
pub(super) fn stats(state: &Value) -> String {
    let mut text = String::new();
    for problem in items(at(state, "/problems")) {
        let of = |name: &str| word(at(problem, &format!("/{name}")));
        let since = match at(problem, "/since") {
            Value::Null => String::new(),
            since => format!(" (since {})", word(since)),
        };
        let _ = writeln!(text, "problem: {}: {}{since}", of("problem"), of("detail"));
    }
    if at(state, "/problems") == &Value::Array(Vec::new()) {
        text.push_str("No known problem\n");
    }
    write_members(&mut text, "", state);
    text
}

fn write_members(text: &mut String, path: &str, value: &Value) {
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match member {
            Value::Object(_) => write_members(text, &path, member),
            // The graph of the last hour is for the page, and the problems come first.
            Value::Array(items) if items.iter().any(Value::is_object) => {}
            Value::Array(_) => {
                let _ = writeln!(text, "{path}: {}", inline(member));
            }
            other => {
                let _ = writeln!(text, "{path}: {}", word(other));
            }
        }
    }
}

/// The lines of `watch`, each with what has changed since the one before; `-` if that is not known.
#[derive(Debug, Default)]
pub(super) struct Watch {
    lines: usize,
    before: Option<(Totals, Samples)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Totals {
    requests: u64,
    errors: u64,
    created: u64,
    ended: u64,
}

/// Lines between two headings.
const HEADING: usize = 20;

impl Watch {
    /// Returns the line for a state and the metrics of the same moment.
    pub(super) fn line(&mut self, state: &Value, metrics: Samples) -> String {
        let totals = Totals::of(state);
        let unknown = || "-".to_owned();
        // The counters of another process begin at zero.
        let since = |now: u64, before: fn(&Totals) -> u64| {
            let growth = |(totals, _): &(Totals, _)| now.saturating_sub(before(totals)).to_string();
            self.before.as_ref().map_or_else(unknown, growth)
        };
        let p99 = |of: &str| {
            let (_, before) = self.before.as_ref()?;
            metrics.quantile_since(before, &format!("{of}_duration_seconds"), 0.99)
        };
        let p99 = |of: &str| {
            p99(of).map_or_else(unknown, |found| format!("{:.1}", found.estimate * 1000.0))
        };
        let problems = at(state, "/problems").as_array().map(Vec::len);
        let time = word(at(state, "/at"));
        let time = time.get(11..19).unwrap_or("-");
        let line = format!(
            "{time:8}  {:>8}  {:>6}  {:>12}  {:>9}  {:>9}  {:>8}  {:>6}  {:>8}",
            since(totals.requests, |before| before.requests),
            since(totals.errors, |before| before.errors),
            p99("upstream_request"),
            p99("store"),
            number(at(state, "/sessions/active/5m")),
            since(totals.created, |before| before.created),
            since(totals.ended, |before| before.ended),
            problems.map_or_else(unknown, |problems| problems.to_string()),
        );
        let heading = if self.lines.is_multiple_of(HEADING) {
            "TIME      REQUESTS  ERRORS  UPSTREAM p99  STORE p99  ACTIVE 5m  CREATED   ENDED  PROBLEMS\n"
        } else {
            ""
        };
        self.lines += 1;
        self.before = Some((totals, metrics));
        format!("{heading}{line}")
    }
}

impl Totals {
    fn of(state: &Value) -> Self {
        let total = |outcome: &str| number(at(state, &format!("/requests/{outcome}/total")));
        let all = |members: &Value, total: fn(&Value) -> u64| {
            members.as_object().into_iter().flatten().map(|(_, member)| total(member)).sum()
        };
        Self {
            requests: all(at(state, "/requests"), |outcome| number(at(outcome, "/total"))),
            errors: ["upstream_error", "store_error", "internal_error"].map(total).iter().sum(),
            created: number(at(state, "/sessions/created")),
            ended: all(at(state, "/sessions/ended"), number),
        }
    }
}

/// Returns the member at a JSON pointer (RFC 6901); null if there is none.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    const NULL: &Value = &Value::Null;
    value.pointer(pointer).unwrap_or(NULL)
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Returns a text or a number; `-` if there is none.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(" "),
        Value::Object(_) => printable(&value.to_string()),
        other => word(other),
    }
}

/// Removes what would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_have_what_has_changed() {
        let state = |requests: u64, created: u64, ended: u64| {
            json!({
                "at": "2026-11-28T10:00:00.000Z",
                "requests": {"forwarded": {"total": requests}, "upstream_error": {"total": 2}},
                "problems": [{"problem": "reload_failed"}],
                "sessions": {"active": {"5m": 7}, "created": created, "ended": {"logout": ended}},
            })
        };
        // Ten requests of less than a second, and the rest of at most 10 ms.
        let metrics = |all: u64| {
            let fast = all.saturating_sub(10);
            Samples::parse(&format!(
                "cloakroom_upstream_request_duration_seconds_bucket{{le=\"0.01\"}} {fast}\n\
                 cloakroom_upstream_request_duration_seconds_bucket{{le=\"1\"}} {all}\n\
                 cloakroom_upstream_request_duration_seconds_bucket{{le=\"+Inf\"}} {all}\n"
            ))
        };
        let mut watch = Watch::default();
        let first = watch.line(&state(100, 5, 1), metrics(10));
        assert!(first.starts_with("TIME "), "{first}");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let line = first.lines().nth(1).expect("a line below the heading");
        assert_eq!(words(line), ["10:00:00", "-", "-", "-", "-", "7", "-", "-", "1"]);
        let second = watch.line(&state(130, 8, 3), metrics(110));
        assert_eq!(words(&second), ["10:00:00", "30", "0", "9.9", "-", "7", "3", "2", "1"]);
        // Another process has begun again.
        let third = watch.line(&state(1, 0, 0), metrics(1));
        assert_eq!(words(&third), ["10:00:00", "0", "0", "-", "-", "7", "0", "0", "1"]);
    }

    #[test]
    fn problems_come_first() {
        let state = json!({
            "version": "1",
            "problems": [
                {"problem": "store_unreadable", "detail": "no reply", "since": "2026-11-28T10:00:00Z"},
                {"problem": "upstream_ejected", "detail": "one", "since": null},
            ],
            "session_keys": {"own": ["a", "b"]},
            "history": [],
        });
        let text = stats(&state);
        let expected = "problem: store_unreadable: no reply (since 2026-11-28T10:00:00Z)\n\
                        problem: upstream_ejected: one\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("session_keys.own: a b\n"), "{text}");
        assert!(stats(&json!({"problems": []})).starts_with("No known problem\n"));
    }

    #[test]
    fn terminals_are_not_steered() {
        let page = json!({"sessions": [{"id": "a", "principal": "x\u{1b}[2Jy"}]});
        assert!(!list(&page).contains('\u{1b}'));
    }
}
