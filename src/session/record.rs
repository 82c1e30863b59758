//! The record: what a store keeps of a session.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::json::Json;
use crate::time::Timestamp;

/// What stands in a store under a session's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A session.
    Live(Record),
    /// The marker of a session that a request of its own browser has ended a moment ago: no
    /// session, and counted as none, but a token of it is stale rather than unknown.
    Ended {
        /// When the marker goes.
        until: Timestamp,
    },
}

impl Entry {
    /// Returns the session, if it is one.
    pub fn into_live(self) -> Option<Record> {
        match self {
            Self::Live(record) => Some(record),
            Self::Ended { .. } => None,
        }
    }
}

/// A session, or as much of it as was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// All but the values.
    pub meta: Meta,
    /// The values; those that were asked for, where a store answers.
    pub values: Values,
}

/// All of a session but its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Moved by one with every applied patch; starts at a random number, so that an `ETag` from
    /// before a flush never fits.
    pub version: u64,
    /// The generation of the token that opens the session.
    pub generation: u32,
    /// When the generation last moved.
    pub generation_since: Timestamp,
    /// Until when the generation before is valid too.
    pub previous_until: Option<Timestamp>,
    /// The generation that the last asked-for rotation made: what is below is dead.
    pub floor: u32,
    /// When the last asked-for rotation was a log-in: its time.
    pub login_at: Option<Timestamp>,
    /// Whom the session is logged in as.
    pub principal: Option<Principal>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used: a touch, or a patch that counts as use.
    pub last_seen_at: Timestamp,
    /// When its cookie was last set, as far as the record was told.
    pub cookie_set_at: Timestamp,
    /// What it has in place of the policy's lifetime.
    pub expiry: Option<Expiry>,
    /// Made through a request whose cookie the browser withheld: it has no cookie of its own, and
    /// ends soon after its latest write, unless that request logs in or rotates.
    pub withheld: bool,
    /// No request has presented a token of it yet, and no one has logged in to it. Set at its
    /// creation only, and only if the policy or the store makes use of it; `false` if unknown.
    pub unproven: bool,
    /// Who began it, where the policy keeps that.
    pub client: Option<Client>,
}

/// The values of a session, by key.
pub type Values = BTreeMap<Key, Json>;

/// The key of a value: UTF-8 text of 1 to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The longest key, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Takes a text of the right length; `None` for another.
    pub fn new(text: &str) -> Option<Self> {
        (1..=Self::MAX_BYTES).contains(&text.len()).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The user that a session is logged in as: UTF-8 text of 1 to 256 bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Arc<str>);

impl Principal {
    /// The longest principal, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Takes a text of that form; `None` for another. For what a store holds: callers' names come
    /// in by [`Principal::from_caller`].
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// Takes the name that a caller logs in with or looks for: of that form, and without white space
    /// at either end.
    ///
    /// HTTP drops white space around a field value (RFC 9110 section 5.5), so a site would read
    /// `"admin "` as `admin`. Records that were written before this rule may have such names.
    pub fn from_caller(text: &str) -> Option<Self> {
        (text.trim().len() == text.len()).then(|| Self::new(text)).flatten()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lifetime of the session's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Ends after this much time without use; whole seconds, at least one.
    Idle(Duration),
    /// Ends at this instant, whatever its use.
    At(Timestamp),
    /// Its cookie ends with the browser; the record ends after this much time without use, or the
    /// policy's where there is none.
    BrowserClose(Option<Duration>),
}

/// Who began a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address, where the client came over the network.
    pub address: Option<IpAddr>,
    /// Its `User-Agent`, at most [`Client::MAX_USER_AGENT`] bytes.
    pub user_agent: Box<str>,
}

impl Client {
    /// How much of a `User-Agent` is kept, in bytes.
    pub const MAX_USER_AGENT: usize = 256;
}

/// The size of a session: the bytes of its keys and JSON texts.
pub fn size_of(values: &Values) -> usize {
    values.iter().map(|(key, text)| key.as_str().len() + text.as_str().len()).sum()
}
