//! Owned copies of what a call borrows, since a job runs on another thread and may outlive its call.

use std::sync::Arc;

use crate::session::held::HeldKeys;
use crate::session::id::Id;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{Authority, Change, Condition, Patch, Tombstone};
use crate::session::policy::Policy;
use crate::session::record::Key;
use crate::store::Want;
use crate::time::Timestamp;

/// An owned [`Change`].
#[derive(Debug)]
pub(super) struct OwnedChange {
    patch: Patch,
    condition: Option<Condition>,
    authority: Authority,
    policy: Policy,
    now: Timestamp,
    touches: bool,
    tombstone: Tombstone,
    held_keys: Option<(Arc<KeyRing>, Id)>,
}

impl From<Change<'_>> for OwnedChange {
    fn from(change: Change<'_>) -> Self {
        Self {
            patch: change.patch.clone(),
            condition: change.condition.cloned(),
            authority: change.authority,
            policy: change.policy.clone(),
            now: change.now,
            touches: change.touches,
            tombstone: change.tombstone,
            held_keys: change.held_keys.map(|keys| (Arc::clone(keys.ring), keys.id)),
        }
    }
}

impl OwnedChange {
    pub(super) fn borrow(&self) -> Change<'_> {
        Change {
            patch: &self.patch,
            condition: self.condition.as_ref(),
            authority: self.authority,
            policy: &self.policy,
            now: self.now,
            touches: self.touches,
            tombstone: self.tombstone,
            held_keys: self.held_keys.as_ref().map(|(ring, id)| HeldKeys { ring, id: *id }),
            known: None,
        }
    }
}

/// An owned [`Want`].
#[derive(Debug)]
pub(super) enum OwnedWant {
    Meta,
    Value(Key),
    Before(Key),
    Values,
}

impl From<Want<'_>> for OwnedWant {
    fn from(want: Want<'_>) -> Self {
        match want {
            Want::Meta => Self::Meta,
            Want::Value(key) => Self::Value(key.clone()),
            Want::Before(key) => Self::Before(key.clone()),
            Want::Values => Self::Values,
        }
    }
}

impl OwnedWant {
    pub(super) fn borrow(&self) -> Want<'_> {
        match self {
            Self::Meta => Want::Meta,
            Self::Value(key) => Want::Value(key),
            Self::Before(key) => Want::Before(key),
            Self::Values => Want::Values,
        }
    }
}
