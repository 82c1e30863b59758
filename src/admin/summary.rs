//! A session as the pages show it: without its values.

use std::fmt::Write as _;

use super::page::{Encoded, Time};
use crate::html::Text;
use crate::session::id::Id;
use crate::session::policy::Policy;
use crate::session::record::{Key, Meta, Record, size_of};
use crate::sessions::{Directory, Failure};
use crate::store::Want;
use crate::time::Timestamp;
use crate::wire::{SummaryObject, View};

/// A session without its values.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) id: Id,
    pub(super) meta: Meta,
    /// `None` if its values cannot be read.
    contents: Option<Contents>,
}

/// What the values of a session take.
#[derive(Clone, Debug)]
struct Contents {
    bytes: usize,
    keys: Vec<String>,
}

impl Summary {
    /// Creates that of a record with all values.
    pub(super) fn of(id: Id, record: Record) -> Self {
        let Record { meta, values } = record;
        let keys = values.keys().map(Key::to_string).collect();
        let contents = Contents { bytes: size_of(&values) + meta.held_size(), keys };
        Self { id, meta, contents: Some(contents) }
    }

    /// Loads that of a session that was listed; `None` if it has ended in the meantime.
    pub(super) async fn load(directory: &Directory, id: Id, meta: Meta) -> Option<Self> {
        match directory.find(meta.public_id(id), Want::Values).await {
            Ok(snapshot) => snapshot.session.map(|(id, record)| Self::of(id, record)),
            Err(Failure::NoSuchSession) => None,
            // The list is more useful than none.
            Err(_) => Some(Self::without_contents(id, meta)),
        }
    }

    /// Creates that of a session whose values are not known.
    pub(super) fn without_contents(id: Id, meta: Meta) -> Self {
        Self { id, meta, contents: None }
    }

    pub(super) fn object<'a>(&'a self, policy: &'a Policy, now: Timestamp) -> SummaryObject<'a> {
        let contents = self.contents.as_ref();
        View { session: Some((self.id, &self.meta)), policy, now }.summary(
            contents.map(|contents| contents.bytes),
            contents.map(|contents| &contents.keys[..]),
        )
    }

    pub(super) fn public_id(&self) -> String {
        self.meta.public_id(self.id).to_string()
    }

    /// Returns the labels and the HTML of its columns. The first one is the link to its page.
    pub(super) fn columns(&self, policy: &Policy) -> [(&'static str, String); 8] {
        let id = self.public_id();
        [
            ("Id", format!("<a href='/sessions/{id}'><code>{id}</code></a>")),
            ("Principal", self.principal()),
            ("Created", Time(self.meta.created_at).to_string()),
            ("Last seen", Time(self.meta.last_seen_at).to_string()),
            ("Ends", Time(policy.expires_at(&self.meta)).to_string()),
            ("Bytes", self.contents.as_ref().map_or_else(none, |found| found.bytes.to_string())),
            ("Keys", self.keys()),
            ("Client", self.client()),
        ]
    }

    fn principal(&self) -> String {
        let Some(principal) = &self.meta.principal else { return none() };
        let name = principal.as_str();
        format!("<a href='/sessions?principal={}' class=long>{}</a>", Encoded(name), Text(name))
    }

    fn keys(&self) -> String {
        let Some(contents) = &self.contents else { return none() };
        let mut list = String::new();
        for key in &contents.keys {
            let _ = write!(list, "<code>{}</code> ", Text(key));
        }
        if let Some(held) = &self.meta.held {
            for name in held.names() {
                let _ = write!(list, "<code>{}</code>\u{a0}(held cookie) ", Text(name));
            }
        }
        if list.is_empty() { none() } else { list }
    }

    fn client(&self) -> String {
        let Some(client) = &self.meta.client else { return none() };
        let address = client.address.map_or_else(none, |address| {
            let address = address.to_string();
            format!("<a href='/sessions?address={}'>{address}</a>", Encoded(&address))
        });
        format!("{address} <span class=agent>{}</span>", Text(&client.user_agent))
    }
}

fn none() -> String {
    "–".to_owned()
}
