//! The page of all sessions.

use std::fmt::Write as _;

use serde::Serialize;

use super::page::{Encoded, Tab, View, Viewer, table};
use super::search::{Found, Search};
use crate::html::Text;
use crate::session::policy::Policy;
use crate::time::Timestamp;
use crate::wire::SummaryObject;

/// The page of the sessions that a search has found.
#[derive(Debug)]
pub(super) struct List<'a> {
    pub(super) search: Search,
    pub(super) found: Found,
    pub(super) policy: &'a Policy,
    pub(super) now: Timestamp,
}

#[derive(Serialize)]
struct Page<'a> {
    sessions: Vec<SummaryObject<'a>>,
    /// The cursor of the next page.
    next: Option<String>,
    matched: usize,
    scanned: usize,
    /// Whether all sessions were scanned.
    complete: bool,
    unreadable: usize,
}

impl View for List<'_> {
    fn tab(&self) -> Tab {
        Tab::Sessions
    }

    fn title(&self) -> String {
        "Sessions".to_owned()
    }

    fn json(&self) -> serde_json::Result<String> {
        let sessions = self.found.sessions.iter();
        serde_json::to_string(&Page {
            sessions: sessions.map(|one| one.object(self.policy, self.now)).collect(),
            next: self.found.next.map(|next| next.to_string()),
            matched: self.found.matched,
            scanned: self.found.scanned,
            complete: self.found.is_complete,
            unreadable: self.found.unreadable,
        })
    }

    fn html(&self, viewer: &Viewer<'_>) -> String {
        format!("{}{}{}{}", self.form(), self.notices(viewer), self.table(), self.next())
    }
}

impl List<'_> {
    fn principal(&self) -> &str {
        self.search.principal.as_ref().map_or("", |principal| principal.as_str())
    }

    fn id(&self) -> &str {
        self.search.id.as_deref().unwrap_or_default()
    }

    fn address(&self) -> String {
        self.search.address.map(|address| address.to_string()).unwrap_or_default()
    }

    fn form(&self) -> String {
        format!(
            "<form action='/sessions' class=card role=search>\
             <label>Principal<input name=principal value='{}'></label>\
             <label>Id, or its beginning<input name=id value='{}' autocapitalize=off spellcheck=false></label>\
             <label>Client address<input name=address value='{}'></label><button>Search</button></form>",
            Text(self.principal()),
            Text(self.id()),
            Text(&self.address()),
        )
    }

    fn notices(&self, viewer: &Viewer<'_>) -> String {
        let Found { matched, scanned, unreadable, is_complete, .. } = &self.found;
        let mut text = format!("<p id=matched>{matched} found, newest first. Times are in UTC.");
        if let (Some(principal), true) = (&self.search.principal, viewer.may_change()) {
            let name = principal.as_str();
            let (query, name) = (Encoded(name), Text(name));
            let _ = write!(
                text,
                " <a href='/sessions/end?principal={query}'>End all sessions of {name}</a>"
            );
        }
        text.push_str("</p>");
        if !is_complete {
            let _ = write!(
                text,
                "<p class='notice alert' role=status>The search stopped after {scanned} sessions: there may be \
                 more, and newer ones. Search by principal or by a whole id.</p>"
            );
        }
        if *unreadable > 0 {
            let _ = write!(
                text,
                "<p class='notice alert' role=status>{unreadable} records cannot be read; see the log.</p>"
            );
        }
        text
    }

    fn table(&self) -> String {
        let rows: Vec<_> = self.found.sessions.iter().map(|one| one.columns(self.policy)).collect();
        if rows.is_empty() { "<p>There is no such session.</p>".to_owned() } else { table(&rows) }
    }

    fn next(&self) -> String {
        let Some(next) = &self.found.next else { return String::new() };
        let mut query = format!("cursor={}", Encoded(&next.to_string()));
        let address = self.address();
        for (name, value) in
            [("principal", self.principal()), ("id", self.id()), ("address", &address)]
        {
            if !value.is_empty() {
                let _ = write!(query, "&amp;{name}={}", Encoded(value));
            }
        }
        format!("<p><a href='/sessions?{query}' rel=next id=next>Older sessions</a></p>")
    }
}
