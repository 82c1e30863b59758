//! The patch: the one grammar of change, and what it does to a record.
//!
//! [`Change::apply`] is the semantics. The embedded stores call it under their lock or
//! transaction; the Redis script does the same on field bytes, and one property test drives both.

use std::time::Duration;

use super::json::Json;
use super::policy::Policy;
use super::record::{Entry, Expiry, Key, Meta, Principal, Record, Values, size_of};
use crate::time::Timestamp;

/// A change to a session, as the upstream asks for it; several patches that are to be one change
/// are joined by [`Patch::then`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Refuse if the version is another.
    pub if_version: Option<u64>,
    /// End the session. With anything beside it, that makes a new one.
    pub destroy: bool,
    /// What to do to the values, in this order.
    pub ops: Vec<Op>,
    /// A lifetime of its own.
    pub expiry: Option<ExpiryChange>,
    /// Log in.
    pub principal: Option<Principal>,
    /// New token, same session.
    pub rotate: bool,
}

/// One step on the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Remove all.
    Clear,
    /// Remove all if the session belongs to another principal.
    ClearUnless(Principal),
    /// Set, whatever was there.
    Set(Key, Json),
    /// Set only where nothing is there.
    Default(Key, Json),
    /// Remove.
    Remove(Key),
    /// Add to an integer; a missing one counts as 0.
    Increment(Key, i64),
    /// Add to the end of an array, made if missing.
    Append(Key, Json),
}

/// What becomes of a session's own lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryChange {
    /// Back to the policy.
    Policy,
    /// This one.
    Own(Expiry),
}

/// Two patches of one list that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the patches of one list log in as two principals")]
pub struct TwoPrincipals;

impl Patch {
    /// A patch of one step.
    pub fn of(op: Op) -> Self {
        Self { ops: vec![op], ..Self::default() }
    }

    /// This patch, then `next`, as one change.
    pub fn then(self, next: Self) -> Result<Self, TwoPrincipals> {
        let principal = match (self.principal, next.principal) {
            (Some(one), Some(other)) if one != other => return Err(TwoPrincipals),
            (one, other) => other.or(one),
        };
        // What stood before a destroy is gone with the session; a log-in is not, since it decides
        // what becomes of the request.
        let (ops, expiry, rotate) = if next.destroy {
            (next.ops, next.expiry, next.rotate)
        } else {
            let ops = self.ops.into_iter().chain(next.ops).collect();
            (ops, next.expiry.or(self.expiry), self.rotate || next.rotate)
        };
        let if_version = match (self.if_version, next.if_version) {
            // No version is both.
            (Some(one), Some(other)) if one != other => Some(u64::MAX),
            (one, other) => one.or(other),
        };
        let destroy = self.destroy || next.destroy;
        Ok(Self { if_version, destroy, ops, expiry, principal, rotate })
    }

    /// Whether it ends the session and makes no other.
    pub fn only_destroys(&self) -> bool {
        self.destroy
            && self.ops.is_empty()
            && self.expiry.is_none()
            && self.principal.is_none()
            && !self.rotate
    }

    /// Whether it can only take away: where there is no session, it makes none.
    pub fn only_removes(&self) -> bool {
        let takes_away = |op: &Op| matches!(op, Op::Clear | Op::Remove(_));
        let removes = self.destroy || !self.ops.is_empty() || self.expiry.is_some();
        removes
            && self.ops.iter().all(takes_away)
            && matches!(self.expiry, None | Some(ExpiryChange::Policy))
            && self.principal.is_none()
            && !self.rotate
    }

    /// Whether the browser needs another cookie for what it does to a session that exists.
    pub fn needs_cookie(&self) -> bool {
        self.principal.is_some()
            || self.rotate
            || self.expiry.is_some()
            || (self.destroy && !self.only_destroys())
    }
}

/// A patch with all that its one atomic step needs.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What to change.
    pub patch: &'a Patch,
    /// Under what condition on a value, beside `if_version`.
    pub condition: Option<&'a Condition>,
    /// On whose authority.
    pub authority: Authority,
    /// Lifetimes and limits.
    pub policy: &'a Policy,
    /// The time of the change.
    pub now: Timestamp,
    /// Whether it prolongs the session.
    pub touches: bool,
    /// What a session that it ends leaves behind.
    pub tombstone: Tombstone,
}

/// A condition on one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is none of this key.
    Missing(Key),
    /// There is one of this key.
    Present(Key),
    /// The value's [`tag`](value_tag) is this one.
    Tagged(Key, String),
}

/// On whose authority a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A request's, opened at this generation.
    Request(u32),
    /// A log-in's, whose token was stale, ended or rotated away: only into a session of the same
    /// principal.
    LogIn,
    /// A back office's.
    Service,
}

/// What a session that ends leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstone {
    /// A tombstone for the grace period, because its browser is being given another cookie.
    Leave,
    /// Nothing.
    None,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What stands in the store now; `None` for nothing.
    pub entry: Option<Entry>,
    /// The session as the change left it, also where that ended it.
    pub record: Record,
    /// What it did to the token.
    pub rotation: Rotation,
    /// Whether it gave the session another lifetime.
    pub expiry_changed: bool,
    /// The value before, of the key that was asked for.
    pub before: Option<Json>,
    /// Whether a replica of the store has it too, where that was waited for.
    pub replicated: Replicated,
}

/// Whether a replica of the store has a change, so that no failover undoes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicated {
    /// Nobody waited for that.
    #[default]
    NotAsked,
    /// One has it.
    Yes,
    /// None had said so when the time was over. The change is made all the same.
    No,
}

impl Replicated {
    /// What holds of two changes together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::NotAsked, Self::NotAsked) => Self::NotAsked,
        }
    }
}

/// What a change did to the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Nothing.
    None,
    /// Every token before is dead.
    Rotated,
    /// The request has joined the session that a log-in beside it made: no further rotation.
    Joined,
}

/// Why a change was refused; then nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such session.
    #[error("there is no such session")]
    Gone,
    /// It was ended a moment ago.
    #[error("the session was ended a moment ago")]
    Ended,
    /// Another request has rotated the token since.
    #[error("the session's token was rotated by another request")]
    Rotated,
    /// It belongs to another principal than the one that logs in.
    #[error("the session belongs to another principal")]
    OtherPrincipal,
    /// The version has moved.
    #[error("the session has been changed since")]
    VersionMoved,
    /// The value is another than the one asked for.
    #[error("the value has been changed since")]
    ValueMoved,
    /// There is a value of that key.
    #[error("there is a value of this key")]
    ValueExists,
    /// There is no value of that key.
    #[error("there is no value of this key")]
    NoSuchValue,
    /// The value is no integer.
    #[error("the value {:?} is not an integer of 64 bits", .0.as_str())]
    NotAnInteger(Key),
    /// The sum does not fit.
    #[error("the sum at {:?} does not fit an integer of 64 bits", .0.as_str())]
    OutOfRange(Key),
    /// The value is no array.
    #[error("the value {:?} is not an array", .0.as_str())]
    NotAnArray(Key),
    /// Too many values.
    #[error("the session would hold more values than it may")]
    TooManyValues,
    /// Too many bytes.
    #[error("the session would be larger than it may")]
    TooLarge,
}

impl Change<'_> {
    /// Applies the change to what stands in the store: all of it or nothing.
    ///
    /// `before` names a value whose text before the change is wanted.
    pub fn apply(&self, entry: Option<Entry>, before: Option<&Key>) -> Result<Applied, Refusal> {
        let mut record = self.live(entry)?;
        let rotation = self.admit(&record.meta)?;
        self.check_condition(&record.values)?;
        let before = before.and_then(|key| record.values.get(key).cloned());
        self.change_values(&mut record)?;
        let expiry_before = record.meta.expiry;
        self.change_meta(&mut record.meta, rotation);
        let expiry_changed = record.meta.expiry != expiry_before;
        let ends = self.patch.only_destroys() || !self.policy.is_alive(&record.meta, self.now);
        let entry = match self.tombstone {
            _ if !ends => Some(Entry::Live(record.clone())),
            Tombstone::Leave => Some(Entry::Ended { until: self.now + self.policy.rotation_grace }),
            Tombstone::None => None,
        };
        let replicated = Replicated::NotAsked;
        Ok(Applied { entry, record, rotation, expiry_changed, before, replicated })
    }

    /// A new record of this patch alone; its `if_version` is for the record that it replaces.
    ///
    /// `meta` is what it begins with; see [`Meta::new`].
    pub fn begin(&self, meta: Meta) -> Result<Record, Refusal> {
        let mut record = Record { meta, values: Values::new() };
        self.check_condition(&record.values)?;
        self.change_values(&mut record)?;
        if self.patch.principal.is_some() {
            record.meta.login_at = Some(self.now);
        }
        record.meta.principal.clone_from(&self.patch.principal);
        record.meta.unproven &= self.patch.principal.is_none();
        if let Some(ExpiryChange::Own(expiry)) = self.patch.expiry {
            record.meta.expiry = Some(expiry);
        }
        // A log-in, or a rotation asked for, gives the usual lifetime in the same step.
        record.meta.withheld &= self.patch.principal.is_none() && !self.patch.rotate;
        Ok(record)
    }

    fn live(&self, entry: Option<Entry>) -> Result<Record, Refusal> {
        match entry {
            Some(Entry::Live(record)) if self.policy.is_alive(&record.meta, self.now) => Ok(record),
            Some(Entry::Ended { until }) if self.now <= until => Err(Refusal::Ended),
            _ => Err(Refusal::Gone),
        }
    }

    /// Whether the change may be made, and what it does to the token.
    fn admit(&self, meta: &Meta) -> Result<Rotation, Refusal> {
        let away = match self.authority {
            Authority::Request(generation) => meta.rotated_away(generation),
            Authority::LogIn => true,
            Authority::Service => false,
        };
        let rotation = match &self.patch.principal {
            Some(_) if !away => Rotation::Rotated,
            Some(principal) if meta.principal.as_ref() != Some(principal) => {
                return Err(if self.authority == Authority::LogIn {
                    Refusal::OtherPrincipal
                } else {
                    Refusal::Rotated
                });
            }
            Some(_)
                if meta.login_at.is_some_and(|at| self.now <= at + self.policy.rotation_grace) =>
            {
                Rotation::Joined
            }
            Some(_) => Rotation::Rotated,
            None if away => return Err(Refusal::Rotated),
            None if self.patch.rotate => Rotation::Rotated,
            None => Rotation::None,
        };
        match self.patch.if_version {
            Some(version) if version != meta.version => Err(Refusal::VersionMoved),
            _ => Ok(rotation),
        }
    }

    fn check_condition(&self, values: &Values) -> Result<(), Refusal> {
        match self.condition {
            Some(Condition::Missing(key)) if values.contains_key(key) => Err(Refusal::ValueExists),
            Some(Condition::Present(key)) if !values.contains_key(key) => Err(Refusal::NoSuchValue),
            Some(Condition::Tagged(key, tag))
                if values.get(key).map(value_tag).as_ref() != Some(tag) =>
            {
                Err(Refusal::ValueMoved)
            }
            _ => Ok(()),
        }
    }

    fn change_values(&self, record: &mut Record) -> Result<(), Refusal> {
        let Record { meta, values } = record;
        let size_before = (values.len(), size_of(values));
        for op in &self.patch.ops {
            op.apply(meta, values)?;
        }
        // What has become smaller may stay above a limit that was lowered since.
        if values.len() > self.policy.max_values.max(size_before.0) {
            return Err(Refusal::TooManyValues);
        }
        if size_of(values) > self.policy.max_bytes.max(size_before.1) {
            return Err(Refusal::TooLarge);
        }
        Ok(())
    }

    fn change_meta(&self, meta: &mut Meta, rotation: Rotation) {
        meta.version = meta.version.wrapping_add(1);
        if self.touches || meta.withheld {
            meta.last_seen_at = meta.last_seen_at.max(self.now);
        }
        match self.patch.expiry {
            None => {}
            Some(ExpiryChange::Policy) => meta.expiry = None,
            Some(ExpiryChange::Own(expiry)) => meta.expiry = Some(expiry),
        }
        if rotation == Rotation::Rotated {
            meta.rotate(self.now);
            meta.login_at = self.patch.principal.is_some().then_some(self.now);
        }
        if let Some(principal) = &self.patch.principal {
            meta.principal = Some(principal.clone());
            meta.unproven = false;
        }
        if rotation != Rotation::None || self.patch.expiry.is_some() {
            meta.cookie_set_at = self.now;
        }
    }
}

impl Op {
    fn apply(&self, meta: &Meta, values: &mut Values) -> Result<(), Refusal> {
        match self {
            Self::Clear => values.clear(),
            Self::ClearUnless(principal) => {
                if meta.principal.as_ref().is_some_and(|owner| owner != principal) {
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
            Self::Append(key, element) => {
                let empty = Json::trusted("[]");
                let array = values.get(key).unwrap_or(&empty);
                let longer =
                    array.appended(element).ok_or_else(|| Refusal::NotAnArray(key.clone()))?;
                values.insert(key.clone(), longer);
            }
        }
        Ok(())
    }
}

impl Meta {
    /// A new session's, made at `now` for a request without one.
    pub fn new(version: u64, now: Timestamp) -> Self {
        Self {
            version,
            generation: 1,
            generation_since: now,
            previous_until: None,
            floor: 1,
            login_at: None,
            principal: None,
            created_at: now,
            last_seen_at: now,
            cookie_set_at: now,
            expiry: None,
            withheld: false,
            unproven: false,
            client: None,
        }
    }
}

/// A side effect of use: it never fails a request, and never moves the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The generation that the request was opened at; where it is the pending successor, the
    /// record moves to it.
    pub generation: u32,
    /// Whether it prolongs the session.
    pub touches: bool,
    /// Whether the cookie is being set again, if the generation still stands.
    pub sets_cookie: bool,
    /// Whether the request presented a token of the session.
    pub proves: bool,
    /// When.
    pub now: Timestamp,
}

impl Use {
    /// Writes the use down where a session stands that is alive, and answers it without its values.
    pub fn apply_to<'a>(&self, entry: &'a mut Entry, policy: &Policy) -> Option<&'a Meta> {
        match entry {
            Entry::Live(Record { meta, .. }) if policy.is_alive(meta, self.now) => {
                self.apply(meta, policy.rotation_grace);
                Some(meta)
            }
            Entry::Live(_) | Entry::Ended { .. } => None,
        }
    }

    /// Writes the use down. A generation below the floor prolongs and proves nothing: its token may
    /// be in other hands than the cookie of the log-in or rotation that made the floor.
    pub fn apply(&self, meta: &mut Meta, grace: Duration) {
        meta.promote(self.generation, grace, self.now);
        let proves_anything = !meta.rotated_away(self.generation);
        meta.unproven &= !(self.proves && proves_anything);
        if self.touches && proves_anything {
            meta.last_seen_at = meta.last_seen_at.max(self.now);
        }
        if self.sets_cookie && meta.generation == self.generation {
            meta.cookie_set_at = self.now;
        }
    }
}

/// The tag of a value's text, in 40 hexadecimal digits: SHA-1, since that is the hash which Redis
/// has in its scripts. It tells texts of one session apart and protects nothing.
pub fn value_tag(text: &Json) -> String {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    use std::fmt::Write;

    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_str().as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(40), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
