//! Changes that callers ask for, and the sessions that calls return.

use super::failure::Failure;
use super::shared::Shared;
use crate::session::held::HeldKeys;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{
    Applied, Authority, Change, Condition, Patch, Refusal, Replicated, Tombstone,
};
use crate::session::record::{Key, Record, Values};
use crate::store::Want;

/// A change that a caller asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangeRequest<'a> {
    pub(crate) patch: &'a Patch,
    /// A condition on one value, in addition to the patch's `if_version`.
    pub(crate) condition: Option<&'a Condition>,
    /// The values that the result has.
    pub(crate) want: Want<'a>,
}

impl<'a> ChangeRequest<'a> {
    /// Creates a change without a condition, whose result has no values.
    pub(crate) fn new(patch: &'a Patch) -> Self {
        Self { patch, condition: None, want: Want::Meta }
    }

    /// Returns the change to apply to a session now, which touches nothing and leaves no tombstone.
    pub(super) fn to_change(self, id: Id, authority: Authority, shared: &'a Shared) -> Change<'a> {
        Change {
            patch: self.patch,
            condition: self.condition,
            authority,
            policy: &shared.policy,
            now: shared.clock.now(),
            touches: false,
            tombstone: Tombstone::None,
            held_keys: Some(HeldKeys { ring: &shared.ring, id }),
            known: None,
        }
    }

    /// Refuses a patch with a version: a session that does not exist has none.
    pub(super) fn check_unversioned(&self) -> Result<(), Failure> {
        match self.patch.if_version {
            Some(_) => Err(Refusal::VersionMoved.into()),
            None => Ok(()),
        }
    }
}

/// A session as a call found or left it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// The session; `None` if there is none.
    pub(crate) session: Option<(Id, Record)>,
    /// The previous value of the key in [`Want::Before`].
    pub(crate) before: Option<Json>,
    /// This request has created the session.
    pub(crate) is_new: bool,
    /// The id that a session would get, if there is none and the request can still create one.
    pub(crate) next_id: Option<Id>,
    /// The confirmation by a replica, if the change ended the session.
    pub(crate) replicated: Replicated,
}

impl Snapshot {
    /// Creates that of a session that was read.
    pub(super) fn of(id: Id, record: Record) -> Self {
        Self { session: Some((id, record)), ..Self::default() }
    }

    /// Creates that of a session after a change.
    pub(super) fn after(id: Id, applied: Applied) -> Self {
        let Applied { record, before, replicated, .. } = applied;
        Self { session: Some((id, record)), before, replicated, ..Self::default() }
    }

    /// Returns the values that were asked for.
    pub(crate) fn values(&self) -> Values {
        self.session.as_ref().map(|(_, record)| record.values.clone()).unwrap_or_default()
    }

    /// Returns one value.
    pub(crate) fn value(&self, key: &Key) -> Option<Json> {
        self.session.as_ref().and_then(|(_, record)| record.values.get(key).cloned())
    }
}

/// The result of destroying sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Destroyed {
    pub(crate) count: u64,
    /// The confirmation by a replica of the end of all of them.
    pub(crate) replicated: Replicated,
}

impl Destroyed {
    /// Returns what a patch that destroys has destroyed.
    pub(crate) fn by(changed: &Snapshot) -> Self {
        Self { count: u64::from(changed.session.is_some()), replicated: changed.replicated }
    }

    /// Adds two results.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        let count = self.count + other.count;
        Self { count, replicated: self.replicated.and(other.replicated) }
    }
}
