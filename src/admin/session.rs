//! The page of one session, and its values.

use std::fmt::Write as _;

use serde::Serialize;

use super::audit;
use super::page::{Encoded, Tab, View, Viewer};
use super::summary::Summary;
use crate::audit::{Line, Numbered};
use crate::html::Text;
use crate::session::policy::Policy;
use crate::session::record::Values;
use crate::time::Timestamp;
use crate::wire::{SummaryObject, ValuesObject};

/// The page of one session.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) summary: Summary,
    pub(super) policy: &'a Policy,
    pub(super) now: Timestamp,
    /// Its entries of the audit trail, newest first.
    pub(super) entries: Vec<Numbered>,
}

#[derive(Serialize)]
struct Object<'a> {
    session: SummaryObject<'a>,
    entries: Vec<Line<'a>>,
}

impl View for Session<'_> {
    fn tab(&self) -> Tab {
        Tab::Sessions
    }

    fn title(&self) -> String {
        "Session".to_owned()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Object {
            session: self.summary.object(self.policy, self.now),
            entries: self.entries.iter().map(|one| one.entry.line("")).collect(),
        })
    }

    fn html(&self, viewer: &Viewer<'_>) -> String {
        let mut list = String::new();
        for (label, html) in self.summary.columns(self.policy) {
            let _ = write!(list, "<dt>{label}</dt><dd>{html}</dd>");
        }
        let _ = write!(list, "<dt>Version</dt><dd>{}</dd>", self.summary.meta.version);
        format!(
            "<dl class=card>{list}</dl>{}<h2>Events of this instance</h2>{}",
            self.actions(viewer),
            audit::rows(&self.entries)
        )
    }
}

impl Session<'_> {
    fn actions(&self, viewer: &Viewer<'_>) -> String {
        if !viewer.may_change() {
            return String::new();
        }
        let id = self.summary.public_id();
        let mut actions =
            format!("<li><a href='/sessions/{id}/end' id=end>End this session</a></li>");
        if let Some(principal) = &self.summary.meta.principal {
            let (query, name) = (Encoded(principal.as_str()), Text(principal.as_str()));
            let _ = write!(
                actions,
                "<li><a href='/sessions/end?principal={query}&amp;except={id}' id=end-others>End all others of \
                 {name}</a></li><li><a href='/sessions/end?principal={query}' id=end-all>End all of {name}</a></li>"
            );
        }
        let values = if viewer.show_values {
            format!(
                "<form method=post action='/sessions/{id}/values' class=middle>{}<button class=plain id=values>Show the \
                 values</button><span class=soft>This is recorded.</span></form>",
                viewer.form_token()
            )
        } else {
            "<p class=soft>Values are not shown here: <code>[admin] show_values = false</code>.</p>"
                .to_owned()
        };
        format!("<ul class=actions>{actions}</ul>{values}")
    }
}

/// The page of the values of a session.
#[derive(Debug)]
pub(super) struct SessionValues {
    pub(super) id: String,
    pub(super) values: Values,
}

#[derive(Serialize)]
struct ValuesOf<'a> {
    id: &'a str,
    values: ValuesObject<'a>,
}

impl View for SessionValues {
    fn tab(&self) -> Tab {
        Tab::Sessions
    }

    fn title(&self) -> String {
        "Values of a session".to_owned()
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&ValuesOf { id: &self.id, values: ValuesObject(&self.values) })
    }

    fn html(&self, _viewer: &Viewer<'_>) -> String {
        let mut rows = String::new();
        for (key, value) in &self.values {
            let (key, value) = (Text(key.as_str()), Text(value.as_str()));
            let _ = write!(rows, "<dt><code>{key}</code></dt><dd><code>{value}</code></dd>");
        }
        let list = if rows.is_empty() {
            "<p>It has none.</p>".to_owned()
        } else {
            format!("<dl class=card>{rows}</dl>")
        };
        let id = &self.id;
        format!("{list}<p><a href='/sessions/{id}'>Back to the session <code>{id}</code></a></p>")
    }
}
