//! Jobs: the work that the site does in one request of a visitor, and its progress.

use std::sync::Mutex;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::history::State;

/// A session cookie and its content: `id[16] ‖ generation[4] ‖ tag[16]` in base64url.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub id: String,
    pub generation: u32,
}

impl Token {
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let generation = u32::from_be_bytes(*rest.first_chunk()?);
        let id = BASE64_URL_SAFE_NO_PAD.encode(id);
        (bytes.len() == 36).then(|| Self { text: text.to_owned(), id, generation })
    }
}

/// One atomic change of a session.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// `None` removes the value.
    pub sets: Vec<(String, Option<Value>)>,
    pub increments: Vec<String>,
    pub login: Option<String>,
    pub rotate: bool,
    pub destroy: bool,
}

impl Change {
    pub fn set(key: &str, value: impl Into<Value>) -> Self {
        Self { sets: vec![(key.to_owned(), Some(value.into()))], ..Self::default() }
    }

    pub fn increment(key: &str) -> Self {
        Self { increments: vec![key.to_owned()], ..Self::default() }
    }

    /// Adds the number of the visitor, so that data of another visitor is detected.
    pub fn owned_by(mut self, visitor: usize) -> Self {
        self.sets.push(("owner".to_owned(), Some(visitor.into())));
        self
    }

    /// Returns true if it invalidates all earlier tokens.
    pub fn rotates(&self) -> bool {
        self.rotate || self.login.is_some()
    }

    /// Returns true if it creates a session if there is none.
    pub fn creates(&self) -> bool {
        let keeps = self.sets.iter().any(|(_, value)| value.is_some());
        !self.destroy && (keeps || self.rotates() || !self.increments.is_empty())
    }

    /// Returns the patch document.
    pub fn json(&self) -> Value {
        let mut patch = Map::new();
        if self.destroy {
            patch.insert("destroy".to_owned(), true.into());
        }
        if !self.sets.is_empty() {
            let values: Map<String, Value> = self
                .sets
                .iter()
                .map(|(key, value)| (key.clone(), value.clone().unwrap_or_default()))
                .collect();
            patch.insert("values".to_owned(), values.into());
        }
        if !self.increments.is_empty() {
            let by: Map<_, _> = self.increments.iter().map(|key| (key.clone(), 1.into())).collect();
            patch.insert("increment".to_owned(), by.into());
        }
        if let Some(principal) = &self.login {
            patch.insert("principal".to_owned(), json!(principal));
        }
        if self.rotate {
            patch.insert("rotate".to_owned(), true.into());
        }
        patch.into()
    }
}

/// A call of the session API.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads the whole session.
    Read,
    /// `PATCH`.
    Patch(Change),
    /// `POST …/{key}/increment`, which returns the number only.
    Increment(String),
    /// `POST /rotate`.
    Rotate,
    /// `DELETE`.
    LogOut,
    /// `DELETE ?everywhere=true`.
    LogOutEverywhere,
    /// `DELETE /principal/sessions`.
    LogOutOthers,
    /// `GET /principal/sessions`.
    List,
}

impl Step {
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Read | Self::List)
    }
}

/// A change in flight.
#[derive(Debug)]
pub struct Pending {
    pub id: u64,
    pub started: Instant,
    /// The session that it changes; `None` if it creates one.
    pub target: Option<String>,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    Refused,
    Unknown,
}

/// The work of one request of a visitor.
#[derive(Debug)]
pub struct Job {
    pub number: u64,
    pub visitor: usize,
    pub token: Option<Token>,
    pub steps: Vec<Step>,
    /// The `X-Session-Patch` of the site's response.
    pub patch: Option<Change>,
    pub progress: Mutex<Progress>,
    /// Notified when the site has finished it.
    pub done: Notify,
}

#[derive(Debug, Default)]
pub struct Progress {
    /// True if the visitor has given up: the site no longer starts it.
    pub closed: bool,
    pub arrivals: usize,
    pub running: usize,
    /// The change by header, once the site has responded.
    pub pending: Option<Pending>,
    /// Changes that created a session whose id no response named.
    pub created: Vec<(Change, State)>,
    /// True if the site received no session.
    pub anonymous: bool,
    /// The numbers of the rotations that it requested.
    pub rotations: Vec<u64>,
}

impl Job {
    pub fn writes(&self) -> bool {
        self.patch.is_some() || self.steps.iter().any(Step::writes)
    }

    pub fn logs_in(&self) -> bool {
        let logs_in = |change: &Change| change.login.is_some();
        self.patch.as_ref().is_some_and(logs_in)
            || self.steps.iter().any(|step| matches!(step, Step::Patch(change) if logs_in(change)))
    }
}
