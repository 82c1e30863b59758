//! Patches, and their effect on a record.
//!
//! [`Change::apply`] defines the semantics. The embedded stores call it under their lock or in their
//! transaction; the Redis script does the same on the bytes of fields, and a property test compares
//! both.

mod change;
mod usage;

use super::held::HeldChange;
use super::json::Json;
use super::record::{Expiry, Key, Meta, Principal, Values};

pub(crate) use change::{Applied, Refusal, Replicated, Rotation};
pub use change::{Authority, Change, Tombstone};
pub(crate) use usage::{Proof, Use};

/// A change of a session that an upstream asks for. [`Patch::then`] joins several patches to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Refuses the patch if the session has another version.
    pub if_version: Option<u64>,
    /// Destroys the session. Together with any other member, a new session is created.
    pub destroy: bool,
    /// The changes of values, in order.
    pub ops: Vec<Op>,
    /// Changes the lifetime.
    pub expiry: Option<ExpiryChange>,
    /// Logs in or out.
    pub principal: Option<PrincipalChange>,
    /// Replaces the token of the session.
    pub rotate: Option<Rotate>,
    /// Changes held cookies.
    pub(crate) held: Option<HeldChange>,
    /// In a response header, drops the patch instead of failing the response if the session has ended or changed.
    pub drops_if_lost: bool,
}

/// A change of the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrincipalChange {
    /// Logs in, and rotates the token.
    LogIn(Principal),
    /// Logs out, keeps the values, and rotates the token. Changes nothing if no principal is logged in.
    LogOut,
}

/// A requested rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rotate {
    /// Replaces the token.
    Token,
    /// Replaces the token, and gives the session another id. After 65,535 ids it keeps the last.
    Id,
}

/// A change of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Removes all values.
    Clear,
    /// Removes all if the session belongs, or belonged before its log-out, to another principal.
    ClearUnless(Principal),
    /// Sets a value.
    Set(Key, Json),
    /// Sets a value if the key has none.
    Default(Key, Json),
    /// Removes a value.
    Remove(Key),
    /// Adds to an integer. A missing value counts as 0.
    Increment(Key, i64),
    /// Appends the elements of an array to an array. A missing value counts as an empty one.
    Append(Key, Json),
    /// Merges an object into an object (RFC 7396). A missing value and `[]` count as an empty one.
    Merge(Key, Json),
}

/// A change of a session's own lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryChange {
    /// Returns to the policy's lifetime.
    Policy,
    /// Sets a lifetime of its own.
    Own(Expiry),
}

/// The error of two patches in one list that log in as different principals, or in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the patches of one list have two principals")]
pub(crate) struct TwoPrincipals;

impl Patch {
    /// Creates a patch of one change of values.
    pub fn of(op: Op) -> Self {
        Self { ops: vec![op], ..Self::default() }
    }

    /// Creates a patch that destroys the session.
    pub fn of_destroy() -> Self {
        Self { destroy: true, ..Self::default() }
    }

    /// Creates a patch that logs in.
    #[cfg(test)]
    pub(crate) fn of_log_in(principal: Principal) -> Self {
        Self { principal: Some(PrincipalChange::LogIn(principal)), ..Self::default() }
    }

    /// Creates a patch that rotates.
    #[cfg(test)]
    pub(crate) fn of_rotation(rotate: Rotate) -> Self {
        Self { rotate: Some(rotate), ..Self::default() }
    }

    /// Joins this patch and `next` to one.
    pub(crate) fn then(self, next: Self) -> Result<Self, TwoPrincipals> {
        let principal = match (self.principal, next.principal) {
            (Some(one), Some(other)) if one != other => return Err(TwoPrincipals),
            (one, other) => other.or(one),
        };
        // A destroy ends earlier changes with the session. An earlier log-in stays, since it decides
        // which session the request gets.
        let (ops, expiry, rotate) = if next.destroy {
            (next.ops, next.expiry, next.rotate)
        } else {
            let ops = self.ops.into_iter().chain(next.ops).collect();
            (ops, next.expiry.or(self.expiry), self.rotate.max(next.rotate))
        };
        let if_version = match (self.if_version, next.if_version) {
            // No session has both versions.
            (Some(one), Some(other)) if one != other => Some(u64::MAX),
            (one, other) => one.or(other),
        };
        let destroy = self.destroy || next.destroy;
        let held = next.held.or(self.held);
        let drops_if_lost = self.drops_if_lost && next.drops_if_lost;
        Ok(Self { if_version, destroy, ops, expiry, principal, rotate, held, drops_if_lost })
    }

    /// Returns the principal that it logs in.
    pub(crate) fn log_in(&self) -> Option<&Principal> {
        match &self.principal {
            Some(PrincipalChange::LogIn(principal)) => Some(principal),
            Some(PrincipalChange::LogOut) | None => None,
        }
    }

    pub(crate) fn logs_out(&self) -> bool {
        self.principal == Some(PrincipalChange::LogOut)
    }

    /// Returns whether it destroys the session and creates no other.
    pub(crate) fn only_destroys(&self) -> bool {
        self.destroy
            && self.ops.is_empty()
            && self.expiry.is_none()
            && self.log_in().is_none()
            && self.rotate.is_none()
            && self.held.is_none()
    }

    /// Returns whether it only removes, so that it creates no session.
    pub(crate) fn only_removes(&self) -> bool {
        let is_removal = |op: &Op| matches!(op, Op::Clear | Op::Remove(_));
        let removes =
            self.destroy || !self.ops.is_empty() || self.expiry.is_some() || self.logs_out();
        removes
            && self.ops.iter().all(is_removal)
            && matches!(self.expiry, None | Some(ExpiryChange::Policy))
            && self.log_in().is_none()
            && self.rotate.is_none()
            && self.held.is_none()
    }

    /// Returns whether the browser needs another cookie after it is applied to an existing session.
    pub(crate) fn needs_cookie(&self) -> bool {
        self.principal.is_some()
            || self.rotate.is_some()
            || self.expiry.is_some()
            || self.held.is_some()
            || (self.destroy && !self.only_destroys())
    }
}

/// A condition on one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Missing(Key),
    /// The key has a value.
    Present(Key),
    /// The value has this [tag](value_tag).
    Tagged(Key, String),
}

impl Op {
    /// Returns the key of the value that it changes; `None` if it changes several.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Clear | Self::ClearUnless(_) => None,
            Self::Set(key, _)
            | Self::Default(key, _)
            | Self::Remove(key)
            | Self::Increment(key, _)
            | Self::Append(key, _)
            | Self::Merge(key, _) => Some(key),
        }
    }

    fn apply(&self, meta: &Meta, values: &mut Values) -> Result<(), Refusal> {
        match self {
            Self::Clear => values.clear(),
            Self::ClearUnless(principal) => {
                let owner = meta.principal.as_ref().or(meta.former_principal.as_deref());
                if owner.is_some_and(|owner| owner != principal) {
                    values.clear();
                }
            }
            Self::Set(key, text) => drop(values.insert(key.clone(), text.clone())),
            Self::Default(key, text) => {
                values.entry(key.clone()).or_insert_with(|| text.clone());
            }
            Self::Remove(key) => drop(values.remove(key)),
            Self::Increment(key, by) => {
                let sum = match values.get(key) {
                    None => *by,
                    Some(text) => text
                        .as_integer()
                        .ok_or_else(|| Refusal::NotAnInteger(key.clone()))?
                        .checked_add(*by)
                        .ok_or_else(|| Refusal::OutOfRange(key.clone()))?,
                };
                values.insert(key.clone(), Json::integer(sum));
            }
            Self::Append(key, elements) => {
                let empty = Json::trusted("[]");
                let array = values.get(key).unwrap_or(&empty);
                let longer =
                    array.appended(elements).ok_or_else(|| Refusal::NotAnArray(key.clone()))?;
                values.insert(key.clone(), longer);
            }
            Self::Merge(key, object) => {
                let merged = merged(values.get(key), key, object)?;
                values.insert(key.clone(), merged);
            }
        }
        Ok(())
    }
}

/// Returns the value of `key` with `object` merged into it.
pub(crate) fn merged(value: Option<&Json>, key: &Key, object: &Json) -> Result<Json, Refusal> {
    let empty = Json::trusted("{}");
    value.unwrap_or(&empty).merged(object).ok_or_else(|| Refusal::NotAnObject(key.clone()))
}

/// Returns the tag of a value's text: 40 hexadecimal digits of SHA-1.
///
/// Redis scripts have this hash. It only distinguishes the texts of one session, and protects nothing.
pub(crate) fn value_tag(text: &str) -> String {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    use std::fmt::Write;

    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(40), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
