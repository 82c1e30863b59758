//! The record that a store keeps of a session.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::held::Held;
use super::id::{Id, PublicId};
use super::json::Json;
use crate::time::Timestamp;

/// The content of a store under a session's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A session.
    Live(Record),
    /// The tombstone of a session that a request of its own browser has destroyed a moment ago. It
    /// counts as no session, but its tokens are stale rather than unknown.
    Ended {
        /// When the tombstone expires.
        until: Timestamp,
    },
}

impl Entry {
    /// Returns the session, unless this is a tombstone.
    pub(crate) fn into_live(self) -> Option<Record> {
        match self {
            Self::Live(record) => Some(record),
            Self::Ended { .. } => None,
        }
    }
}

/// A session, with the values that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Everything but the values.
    pub meta: Meta,
    /// The values; from a store, those that were asked for.
    pub values: Values,
}

/// Everything of a session but its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Incremented by each applied patch. Starts at a random number, so that an `ETag` of an earlier
    /// session does not match.
    pub(crate) version: u64,
    /// The generation of the token that opens the session.
    pub(crate) generation: u32,
    /// When the generation last changed.
    pub(crate) generation_since: Timestamp,
    /// Until when the previous generation is also valid.
    pub(crate) previous_until: Option<Timestamp>,
    /// The generation that the last requested rotation made. Tokens of lower generations are invalid.
    pub(crate) floor: u32,
    /// The time of the last requested rotation, if it was a log-in.
    pub(crate) login_at: Option<Timestamp>,
    /// The principal that the session is logged in as.
    pub(crate) principal: Option<Principal>,
    /// The generation at which the principal, or the former one, logged in; 0 if unknown.
    pub(crate) principal_since: u32,
    /// The principal that has logged out and left its values. The values are dropped when another one logs in.
    pub(crate) former_principal: Option<Box<Principal>>,
    /// The number of times that the session was given another id.
    pub(crate) id_counter: u16,
    /// The cookies of the site that it holds.
    pub(crate) held: Option<Arc<Held>>,
    /// No request has presented a token of the latest rotation yet. Set only if it holds cookies.
    pub(crate) unpresented: bool,
    pub(crate) created_at: Timestamp,
    /// When it was last used: a touch, or a patch that counts as use.
    pub(crate) last_seen_at: Timestamp,
    /// When its cookie was last set, as far as it was recorded.
    pub(crate) cookie_set_at: Timestamp,
    /// A lifetime of its own, in place of the policy's.
    pub(crate) expiry: Option<Expiry>,
    /// Created by a request whose cookie the browser withheld. It has no cookie of its own, and ends
    /// soon after its latest write unless that request logs in or rotates.
    pub(crate) withheld: bool,
    /// No request has presented a token of it yet, and no one has logged in to it. Set at its
    /// creation only, and only if the policy or the store makes use of it; `false` if unknown.
    pub(crate) unproven: bool,
    /// The client that created it, if the policy records that.
    pub(crate) client: Option<Box<Client>>,
}

impl Meta {
    /// Creates that of a new session.
    pub fn new(version: u64, now: Timestamp) -> Self {
        Self {
            version,
            generation: 1,
            generation_since: now,
            previous_until: None,
            floor: 1,
            login_at: None,
            principal: None,
            principal_since: 0,
            former_principal: None,
            id_counter: 0,
            held: None,
            unpresented: false,
            created_at: now,
            last_seen_at: now,
            cookie_set_at: now,
            expiry: None,
            withheld: false,
            unproven: false,
            client: None,
        }
    }

    /// Returns the size of the held cookies, in bytes. It counts as a part of the session's size.
    pub(crate) fn held_size(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.as_str().len())
    }

    /// Returns the id of this session, which is at `place`, as callers see it.
    pub(crate) fn public_id(&self, place: Id) -> PublicId {
        PublicId { place, counter: self.id_counter }
    }
}

/// The values of a session, by key.
pub type Values = BTreeMap<Key, Json>;

/// The key of a value: UTF-8 text of 1 to 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The maximum length, in bytes.
    pub(crate) const MAX_BYTES: usize = 256;

    /// Creates a key; `None` if the text has a wrong length.
    pub fn new(text: &str) -> Option<Self> {
        (1..=Self::MAX_BYTES).contains(&text.len()).then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
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
    /// The maximum length, in bytes.
    pub(crate) const MAX_BYTES: usize = 256;

    /// Creates a principal from a store; `None` if the text has another form. Names from callers are
    /// checked by [`Principal::from_caller`].
    pub(crate) fn new(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        (fits && !text.chars().any(char::is_control)).then(|| Self(text.into()))
    }

    /// Creates a principal from a caller. White space at either end is refused.
    ///
    /// HTTP drops white space around a field value (RFC 9110 section 5.5), so a site would read
    /// `"admin "` as `admin`. Older records may have such names.
    pub(crate) fn from_caller(text: &str) -> Option<Self> {
        (text.trim().len() == text.len()).then(|| Self::new(text)).flatten()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lifetime of a session's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Ends after this time without use; whole seconds, at least one.
    Idle(Duration),
    /// Ends at this instant, even if it is used.
    At(Timestamp),
    /// The cookie ends with the browser. The record ends after this time without use; `None` is the
    /// policy's.
    BrowserClose(Option<Duration>),
}

/// The client that created a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// Its address, unless it connected over a Unix socket.
    pub(crate) address: Option<IpAddr>,
    /// Its `User-Agent`, at most [`Client::MAX_USER_AGENT`] bytes.
    pub(crate) user_agent: Box<str>,
}

impl Client {
    /// The maximum length of a recorded `User-Agent`, in bytes.
    pub(crate) const MAX_USER_AGENT: usize = 256;
}

/// Returns the size of a session's values: the bytes of its keys and JSON texts.
pub(crate) fn size_of(values: &Values) -> usize {
    values.iter().map(|(key, text)| key.as_str().len() + text.as_str().len()).sum()
}
