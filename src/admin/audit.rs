//! The page of the audit trail: the latest entries of this instance.

use std::fmt::Write as _;

use serde::Serialize;

use super::page::{Encoded, Tab, Time, View, Viewer, table};
use super::problem::{self, PageResult};
use crate::audit::{Audit, Counts, Entry, Filter, Line, Numbered};
use crate::html::{Form, Text};
use crate::metrics::Event;
use crate::session::record::Principal;
use crate::time::Timestamp;

/// The entries to show.
#[derive(Clone, Debug)]
pub(super) struct Query {
    principal: Option<String>,
    session: Option<String>,
    kind: Option<Event>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    cursor: Option<u64>,
    limit: usize,
}

/// The page of the entries that a query selects.
#[derive(Debug)]
pub(super) struct Trail {
    query: Query,
    entries: Vec<Numbered>,
    /// The cursor of the next page.
    next: Option<u64>,
    /// Of all pages.
    matched: Counts,
}

#[derive(Serialize)]
struct Page<'a> {
    entries: Vec<Line<'a>>,
    next: Option<u64>,
    matched: Counts,
}

/// The events that the trail records.
const KINDS: [Event; 12] = [
    Event::Created,
    Event::LoggedIn,
    Event::LoggedOut,
    Event::Rotated,
    Event::Joined,
    Event::Destroyed,
    Event::Evicted,
    Event::Replayed,
    Event::AmbiguousCookie,
    Event::CookieWithheld,
    Event::WrongToken,
    Event::ValuesShown,
];

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

impl Query {
    /// Parses a query. Empty fields, which browsers send, are no conditions.
    pub(super) fn parse(query: &Form) -> PageResult<Self> {
        let known = ["principal", "id", "kind", "since", "until", "cursor", "limit"];
        if let Some(unknown) = query.names().find(|name| !known.contains(name)) {
            return Err(problem::malformed_request(format!("unknown parameter {unknown:?}")));
        }
        let text = |name: &str| query.get(name).filter(|text| !text.trim().is_empty());
        let malformed = |right: &str| problem::malformed_request(right.to_owned());
        let moment = |name: &str| {
            let moment = text(name).map(|text| time(text.trim()));
            let right = "since and until must be like 2026-11-20T11:03:00Z";
            moment.map(|moment| moment.ok_or_else(|| malformed(right))).transpose()
        };
        let number = |name: &str, range: std::ops::RangeInclusive<u64>| {
            let number = text(name).map(|text| text.parse().ok().filter(|one| range.contains(one)));
            let wrong = || malformed(&format!("{name} is out of range"));
            number.map(|number: Option<u64>| number.ok_or_else(wrong)).transpose()
        };
        let kind = text("kind").map(|text| {
            let mut kinds = KINDS.into_iter();
            kinds.find(|kind| kind.as_str() == text).ok_or_else(|| malformed("unknown kind"))
        });
        let limit = number("limit", 1..=MAX_LIMIT as u64)?;
        Ok(Self {
            principal: text("principal").map(str::to_owned),
            session: text("id").map(|id| id.trim().to_owned()),
            kind: kind.transpose()?,
            since: moment("since")?,
            until: moment("until")?,
            cursor: number("cursor", 1..=u64::MAX)?,
            limit: limit.and_then(|limit| limit.try_into().ok()).unwrap_or(DEFAULT_LIMIT),
        })
    }

    pub(super) fn run(self, audit: &Audit) -> Trail {
        let filter = Filter {
            principal: self.principal.as_deref(),
            session: self.session.as_deref(),
            event: self.kind.map(Event::as_str),
            since: self.since,
            until: self.until,
            before: self.cursor,
        };
        let matched = audit.count(&filter);
        let mut entries = audit.recent(&filter, self.limit + 1);
        let mut next = None;
        if entries.len() > self.limit {
            entries.truncate(self.limit);
            next = entries.last().map(|last| last.number);
        }
        Trail { query: self, entries, next, matched }
    }
}

/// Parses a time, in UTC if it has no offset, as browsers send it.
fn time(text: &str) -> Option<Timestamp> {
    let variants = [text.to_owned(), format!("{text}Z"), format!("{text}:00Z")];
    variants.iter().find_map(|text| Timestamp::parse_rfc3339(text))
}

impl View for Trail {
    fn tab(&self) -> Tab {
        Tab::Audit
    }

    fn title(&self) -> String {
        "Audit".to_owned()
    }

    fn json(&self) -> serde_json::Result<String> {
        let entries = self.entries.iter().map(|one| one.entry.line("")).collect();
        serde_json::to_string(&Page { entries, next: self.next, matched: self.matched })
    }

    fn html(&self, _viewer: &Viewer<'_>) -> String {
        format!(
            "{}<p>The latest entries of this instance since its start, newest first. Times are in UTC. \
             <code>[audit] path</code> keeps all.</p><p id=matched>{}</p>{}{}",
            self.form(),
            self.matched(),
            rows(&self.entries),
            self.next()
        )
    }
}

impl Trail {
    fn fields(&self) -> [(&'static str, String); 5] {
        let Query { principal, session, kind, since, until, .. } = &self.query;
        let moment = |moment: &Option<Timestamp>| {
            let text = moment.map(|moment| moment.to_string()).unwrap_or_default();
            // As a field of this type has it: without the offset.
            text.get(..19).unwrap_or_default().to_owned()
        };
        [
            ("principal", principal.clone().unwrap_or_default()),
            ("id", session.clone().unwrap_or_default()),
            ("kind", kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default()),
            ("since", moment(since)),
            ("until", moment(until)),
        ]
    }

    fn form(&self) -> String {
        let [(_, principal), (_, id), (_, kind), (_, since), (_, until)] = self.fields();
        let mut options = String::from("<option value=''>any</option>");
        for known in KINDS.map(Event::as_str) {
            let selected = if known == kind { " selected" } else { "" };
            let label = known.replace('_', " ");
            let _ = write!(options, "<option value='{known}'{selected}>{label}</option>");
        }
        format!(
            "<form action='/audit' class=card role=search>\
             <label>Principal<input name=principal value='{}'></label>\
             <label>Session id, or its beginning<input name=id value='{}' autocapitalize=off spellcheck=false></label>\
             <label>Kind<select name=kind>{options}</select></label>\
             <label>Since (UTC)<input type=datetime-local step=1 name=since value='{since}'></label>\
             <label>Until (UTC)<input type=datetime-local step=1 name=until value='{until}'></label>\
             <button>Filter</button></form>",
            Text(&principal),
            Text(&id),
        )
    }

    /// Returns the number of entries, principals and addresses on all pages.
    fn matched(&self) -> String {
        let Counts { events, principals, addresses } = self.matched;
        let words = |count: usize, one: &str, more: &str| {
            format!("{count} {}", if count == 1 { one } else { more })
        };
        format!(
            "{}, {}, {}.",
            words(events, "entry", "entries"),
            words(principals, "principal", "principals"),
            words(addresses, "client address", "client addresses")
        )
    }

    fn next(&self) -> String {
        let Some(next) = self.next else { return String::new() };
        let mut query = format!("cursor={next}");
        for (name, value) in self.fields() {
            if !value.is_empty() {
                let _ = write!(query, "&amp;{name}={}", Encoded(&value));
            }
        }
        format!("<p><a href='/audit?{query}' rel=next id=next>Older entries</a></p>")
    }
}

/// Returns entries as a table.
pub(super) fn rows(entries: &[Numbered]) -> String {
    let entries: Vec<_> = entries.iter().map(|one| columns(&one.entry)).collect();
    if entries.is_empty() { "<p>There are no entries.</p>".to_owned() } else { table(&entries) }
}

fn columns(entry: &Entry) -> [(&'static str, String); 8] {
    let none = || "–".to_owned();
    let text = |text: Option<&str>| {
        text.map_or_else(none, |text| format!("<span class=long>{}</span>", Text(text)))
    };
    let session = entry
        .session
        .map_or_else(none, |id| format!("<a href='/sessions/{id}'><code>{id}</code></a>"));
    let trace = entry.source.trace.as_ref().map_or_else(none, |id| format!("<code>{id}</code>"));
    let principal = entry.principal.as_ref().map(Principal::as_str);
    [
        ("Time", Time(entry.time).to_string()),
        ("Event", entry.event.as_str().replace('_', " ")),
        ("By", entry.by.as_str().replace('_', " ")),
        ("Session", session),
        ("Principal", text(principal)),
        ("Route", text(entry.source.route.as_deref())),
        ("Client", entry.source.client.map_or_else(none, |client| client.to_string())),
        ("Trace", trace),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> PageResult<Query> {
        Query::parse(&Form::parse(text))
    }

    #[test]
    fn times_may_have_no_offset() {
        for text in [
            "1970-01-01T00:01:00Z",
            "1970-01-01T00:01:00",
            "1970-01-01T00:01",
            "1970-01-01T01:01:00%2B01:00",
        ] {
            let since = query(&format!("since={text}")).expect("a query").since;
            assert_eq!(since, Some(Timestamp::from_millis(60_000)), "{text}");
        }
    }

    #[test]
    fn unknown_conditions_are_refused() {
        assert_eq!(query("kind=logged_in&limit=5&until=").expect("a query").limit, 5);
        for wrong in ["kind=x", "since=now", "limit=0", "limit=1001", "cursor=a", "session=x"] {
            assert!(query(wrong).is_err(), "{wrong}");
        }
    }
}
