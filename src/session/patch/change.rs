//! Changes: a patch with everything that its atomic step needs, and its result.

use super::{Condition, ExpiryChange, Patch, PrincipalChange, Rotate, value_tag};
use crate::session::held::{Held, HeldKeys, Holding};
use crate::session::json::Json;
use crate::session::policy::Policy;
use crate::session::record::{Entry, Key, Meta, Principal, Record, Values, size_of};
use crate::time::Timestamp;

/// A patch with everything that its atomic step needs.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The patch.
    pub patch: &'a Patch,
    /// A condition on one value, in addition to `if_version`.
    pub condition: Option<&'a Condition>,
    /// The authority of the caller.
    pub authority: Authority,
    /// The lifetimes and limits.
    pub policy: &'a Policy,
    /// The time of the change.
    pub now: Timestamp,
    /// The change counts as a use of the session.
    pub touches: bool,
    /// The tombstone of a session that the change destroys.
    pub tombstone: Tombstone,
    /// The keys of held cookies. Without them the patch changes none.
    pub(crate) held_keys: Option<HeldKeys<'a>>,
    /// The session as the caller read it. Others may have changed it since, so it decides nothing, but
    /// may spare a store work.
    pub known: Option<&'a Meta>,
}

/// The authority of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A request that was opened at this generation.
    Request(u32),
    /// A request whose token of this generation was stale. It may only join the session by a log-in of the same
    /// principal, log out, and destroy.
    Stale(u32),
    /// A back office, which names the session by the id of this number (`Meta::id_counter`).
    Service(u16),
}

impl Authority {
    /// Returns whether the token of the request was rotated away.
    pub(crate) fn is_away(self, meta: &Meta) -> bool {
        match self {
            Self::Request(generation) => meta.rotated_away(generation),
            Self::Stale(_) => true,
            Self::Service(_) => false,
        }
    }

    /// Returns whether the caller may end the log-in with a token that was rotated away.
    pub(crate) fn may_log_out(self, meta: &Meta) -> bool {
        match self {
            Self::Request(generation) | Self::Stale(generation) => {
                meta.may_be_logged_out_at(generation)
            }
            Self::Service(_) => true,
        }
    }
}

/// The tombstone of a session that is destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstone {
    /// Leaves one for the grace period, since the browser is about to get another cookie.
    Leave,
    /// Leaves none.
    None,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The entry in the store after the change.
    pub(crate) entry: Option<Entry>,
    /// The session after the change, even if the change ended it.
    pub record: Record,
    /// The effect on the token.
    pub(crate) rotation: Rotation,
    /// The session's own lifetime has changed.
    pub(crate) expiry_changed: bool,
    /// The previous value of the key that was asked for.
    pub(crate) before: Option<Json>,
    /// The confirmation of the change by a replica of the store.
    pub(crate) replicated: Replicated,
}

/// The confirmation of a change by a replica of the store: a failover does not undo it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicated {
    /// The change did not wait for a replica.
    #[default]
    NotAsked,
    /// A replica has it.
    Yes,
    /// No replica confirmed it in time. The change is made nevertheless.
    No,
}

impl Replicated {
    /// Combines the results of two changes.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::NotAsked, Self::NotAsked) => Self::NotAsked,
        }
    }
}

/// The effect of a change on the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// Nothing.
    None,
    /// All earlier tokens are invalid.
    Rotated,
    /// The request has joined the session of a parallel log-in, without another rotation.
    Joined,
}

/// A change that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Admitted {
    rotation: Rotation,
    /// The token of the request was rotated away.
    is_away: bool,
}

/// The reason why a change was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The session does not exist.
    #[error("there is no such session")]
    Gone,
    /// The session was destroyed a moment ago.
    #[error("the session was ended a moment ago")]
    Ended,
    /// Another request has rotated the token.
    #[error("the session's token was rotated by another request")]
    Rotated,
    /// The session belongs to a principal other than the one that logs in.
    #[error("the session belongs to another principal")]
    OtherPrincipal,
    /// The session has another version.
    #[error("the session has been changed since")]
    VersionMoved,
    /// The value has changed.
    #[error("the value has been changed since")]
    ValueMoved,
    /// The key has a value.
    #[error("there is a value of this key")]
    ValueExists,
    /// The key has no value.
    #[error("there is no value of this key")]
    NoSuchValue,
    /// The value is not an integer.
    #[error("the value {:?} is not an integer of 64 bits", .0.as_str())]
    NotAnInteger(Key),
    /// The sum does not fit 64 bits.
    #[error("the sum at {:?} does not fit an integer of 64 bits", .0.as_str())]
    OutOfRange(Key),
    /// The value is not an array.
    #[error("the value {:?} is not an array", .0.as_str())]
    NotAnArray(Key),
    /// The value is not an object.
    #[error("the value {:?} is not an object", .0.as_str())]
    NotAnObject(Key),
    /// The session would have too many values.
    #[error("the session would hold more values than it may")]
    TooManyValues,
    /// The session would have too many bytes.
    #[error("the session would be larger than it may")]
    TooLarge,
}

impl<'a> Change<'a> {
    /// Creates the change of a service that names the session by its first id. It touches the session, and leaves a
    /// tombstone.
    pub fn of_service(patch: &'a Patch, policy: &'a Policy, now: Timestamp) -> Self {
        Self {
            patch,
            condition: None,
            authority: Authority::Service(0),
            policy,
            now,
            touches: true,
            tombstone: Tombstone::Leave,
            held_keys: None,
            known: None,
        }
    }
}

impl Change<'_> {
    /// Applies the whole change, or nothing, to the entry in the store.
    ///
    /// `before` is a key whose previous value is returned.
    pub(crate) fn apply(
        &self,
        entry: Option<Entry>,
        before: Option<&Key>,
    ) -> Result<Applied, Refusal> {
        let mut record = self.live(entry)?;
        let holding = self.holding(record.meta.held.as_deref());
        let rotates = holding.as_ref().is_some_and(|holding| holding.rotates);
        let Admitted { rotation, is_away } = self.admit(&record.meta, rotates)?;
        self.check_condition(&record.values)?;
        let before = before.and_then(|key| record.values.get(key).cloned());
        let ends_with_browser = self.policy.expires_at_browser_close(&record.meta);
        let expiry_before = record.meta.expiry;
        let is_emptied = self.change_content(&mut record, holding)?;
        self.change_meta(&mut record.meta, rotation, is_away);
        let expiry_changed = record.meta.expiry != expiry_before
            || self.policy.expires_at_browser_close(&record.meta) != ends_with_browser;
        let ends = self.patch.only_destroys()
            || (is_emptied && record.meta.principal.is_none())
            || !self.policy.is_alive(&record.meta, self.now);
        let entry = match self.tombstone {
            _ if !ends => Some(Entry::Live(record.clone())),
            Tombstone::Leave => Some(Entry::Ended { until: self.now + self.policy.rotation_grace }),
            Tombstone::None => None,
        };
        let replicated = Replicated::NotAsked;
        Ok(Applied { entry, record, rotation, expiry_changed, before, replicated })
    }

    /// Creates a record from this patch alone, starting with `meta`. The `if_version` of the patch is
    /// ignored: it is about the record that the new one replaces.
    pub(crate) fn begin(&self, meta: Meta) -> Result<Record, Refusal> {
        let mut record = Record { meta, values: Values::new() };
        self.check_condition(&record.values)?;
        self.change_content(&mut record, self.holding(None))?;
        if let Some(principal) = self.patch.log_in() {
            record.meta.login_at = Some(self.now);
            record.meta.log_in(principal);
        }
        if let Some(ExpiryChange::Own(expiry)) = self.patch.expiry {
            record.meta.expiry = Some(expiry);
        }
        // A log-in or a requested rotation gives the session a cookie, and with it the usual lifetime.
        record.meta.withheld &= self.patch.log_in().is_none() && self.patch.rotate.is_none();
        Ok(record)
    }

    /// Returns the session as the change leaves it, but for its version and values, if the change affects only
    /// those and the record of use, going by what the caller knows.
    ///
    /// It holds as long as the generation, the expiry, the time of the cookie and the held cookies are as the caller knows
    /// them, and the last use is not later than the one returned: everything else changes with one of these.
    pub fn foreseen(&self) -> Option<Meta> {
        let known = self.known?;
        let Patch {
            if_version: None,
            destroy: false,
            ops: _,
            expiry: None,
            principal: None,
            rotate: None,
            held: None,
            drops_if_lost: _,
        } = self.patch
        else {
            return None;
        };
        let is_plain = self.condition.is_none()
            && !known.withheld
            && !known.unproven
            // The last generation: a rotation does not change it.
            && known.generation < u32::MAX
            && self.policy.is_alive(known, self.now);
        let unchanged = Ok(Admitted { rotation: Rotation::None, is_away: false });
        if !is_plain || self.admit(known, false) != unchanged {
            return None;
        }
        let mut meta = known.clone();
        self.change_meta(&mut meta, Rotation::None, false);
        self.policy.is_alive(&meta, self.now).then_some(meta)
    }

    fn live(&self, entry: Option<Entry>) -> Result<Record, Refusal> {
        match entry {
            Some(Entry::Live(record)) if self.policy.is_alive(&record.meta, self.now) => Ok(record),
            Some(Entry::Ended { until }) if self.now <= until => Err(Refusal::Ended),
            _ => Err(Refusal::Gone),
        }
    }

    /// Checks whether the change may be made, and returns its effect on the token.
    fn admit(&self, meta: &Meta, held_rotates: bool) -> Result<Admitted, Refusal> {
        if matches!(self.authority, Authority::Service(counter) if counter != meta.id_counter) {
            return Err(Refusal::Gone);
        }
        let is_away = self.authority.is_away(meta);
        let rotation = match &self.patch.principal {
            Some(PrincipalChange::LogIn(principal)) if is_away => self.join(meta, principal)?,
            Some(PrincipalChange::LogIn(_)) => Rotation::Rotated,
            // The rotation that took the token away has made the others invalid.
            Some(PrincipalChange::LogOut) if is_away && self.authority.may_log_out(meta) => {
                Rotation::None
            }
            None if is_away && self.patch.only_destroys() && self.authority.may_log_out(meta) => {
                Rotation::None
            }
            _ if is_away => return Err(Refusal::Rotated),
            Some(PrincipalChange::LogOut) if meta.principal.is_some() => Rotation::Rotated,
            _ if self.patch.rotate.is_some() || held_rotates => Rotation::Rotated,
            _ => Rotation::None,
        };
        let admitted = Admitted { rotation, is_away };
        match self.patch.if_version {
            Some(version) if version != meta.version => Err(Refusal::VersionMoved),
            _ => Ok(admitted),
        }
    }

    /// Returns the effect of a log-in whose token was rotated away.
    fn join(&self, meta: &Meta, principal: &Principal) -> Result<Rotation, Refusal> {
        let is_recent = meta.login_at.is_some_and(|at| self.now <= at + self.policy.rotation_grace);
        match self.authority {
            _ if meta.principal.as_ref() == Some(principal) && is_recent => Ok(Rotation::Joined),
            _ if meta.principal.as_ref() == Some(principal) => Ok(Rotation::Rotated),
            Authority::Stale(_) => Err(Refusal::OtherPrincipal),
            Authority::Request(_) | Authority::Service(_) => Err(Refusal::Rotated),
        }
    }

    fn check_condition(&self, values: &Values) -> Result<(), Refusal> {
        match self.condition {
            Some(Condition::Missing(key)) if values.contains_key(key) => Err(Refusal::ValueExists),
            Some(Condition::Present(key)) if !values.contains_key(key) => Err(Refusal::NoSuchValue),
            Some(Condition::Tagged(key, tag))
                if values.get(key).map(|text| value_tag(text.as_str())).as_ref() != Some(tag) =>
            {
                Err(Refusal::ValueMoved)
            }
            _ => Ok(()),
        }
    }

    /// Returns the held cookies after the change; `None` if it does not change them.
    pub(crate) fn holding(&self, held: Option<&Held>) -> Option<Holding> {
        let grace = self.policy.rotation_grace;
        Some(self.patch.held.as_ref()?.apply(held, self.held_keys?, grace, self.now))
    }

    /// Changes the values and the held cookies. Returns whether nothing is left because the last cookie was deleted.
    fn change_content(
        &self,
        record: &mut Record,
        holding: Option<Holding>,
    ) -> Result<bool, Refusal> {
        let Record { meta, values } = record;
        let size_before = (values.len(), size_of(values) + meta.held_size());
        for op in &self.patch.ops {
            op.apply(meta, values)?;
        }
        let mut is_emptied = false;
        if let Some(holding) = holding {
            is_emptied = holding.is_emptied && values.is_empty();
            meta.held = holding.held;
        }
        // A session above a limit that was lowered since may still shrink.
        if values.len() > self.policy.max_values.max(size_before.0) {
            return Err(Refusal::TooManyValues);
        }
        if size_of(values) + meta.held_size() > self.policy.max_bytes.max(size_before.1) {
            return Err(Refusal::TooLarge);
        }
        Ok(is_emptied)
    }

    fn change_meta(&self, meta: &mut Meta, rotation: Rotation, is_away: bool) {
        meta.version = meta.version.wrapping_add(1);
        if (self.touches && (!is_away || rotation != Rotation::None)) || meta.withheld {
            meta.last_seen_at = meta.last_seen_at.max(self.now);
        }
        match self.patch.expiry {
            None => {}
            Some(ExpiryChange::Policy) => meta.expiry = None,
            Some(ExpiryChange::Own(expiry)) => meta.expiry = Some(expiry),
        }
        if rotation == Rotation::Rotated {
            meta.rotate(self.now);
            meta.login_at = self.patch.log_in().map(|_| self.now);
            meta.unpresented = meta.held.is_some();
            if self.patch.rotate == Some(Rotate::Id) {
                meta.id_counter = meta.id_counter.saturating_add(1);
            }
        }
        match &self.patch.principal {
            Some(PrincipalChange::LogIn(principal)) => meta.log_in(principal),
            Some(PrincipalChange::LogOut) => meta.log_out(),
            None => {}
        }
        if rotation != Rotation::None || self.patch.expiry.is_some() {
            meta.cookie_set_at = self.now;
        }
    }
}
