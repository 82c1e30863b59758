//! The arguments and replies of the scripts.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};

use super::arguments;
use super::fields::{Indexed, Unreadable, array, entry_of, instant, text, unreadable};
use super::held::HeldChange;
use super::merge::Merges;
use crate::session::json::Json;
use crate::session::patch::{
    Applied, Authority, Change, Condition, ExpiryChange, Op, Patch, Proof, Refusal, Replicated,
    Rotate, Rotation, Tombstone, Use,
};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Key, Meta, Principal, Record};
use crate::store::{Want, encode};
use crate::time::Timestamp;

fn common<'a>(
    now: Timestamp,
    policy: &Policy,
    indexed: Option<&'a Indexed>,
) -> arguments::Common<'a> {
    // `Timestamp::MAX` bounds durations, so that Lua's numbers hold them exactly.
    let millis = |duration: Duration| (Timestamp::default() + duration).as_millis();
    arguments::Common {
        now: now.as_millis().into(),
        idle_timeout: millis(policy.idle_timeout).into(),
        touch_interval: millis(policy.touch_interval).into(),
        absolute_timeout: policy.absolute_timeout.map(millis).into(),
        rotation_grace: millis(policy.rotation_grace).into(),
        request_token_linger: millis(policy.request_token_linger).into(),
        unproven_timeout: policy.unproven_timeout.map(millis).into(),
        indexed_principal: indexed.map(|indexed| indexed.principal.as_str()).into(),
        indexed_until: indexed.map(|indexed| indexed.until.as_millis()).into(),
    }
}

/// Adds the arguments of `use.lua`.
pub(super) fn use_arguments(
    command: &mut Cmd,
    used: Use,
    policy: &Policy,
    indexed: Option<&Indexed>,
) {
    common(used.now, policy, indexed).add_to(command);
    let arguments = arguments::Use {
        generation: i64::from(used.generation).into(),
        touches: used.touches.into(),
        sets_cookie: used.sets_cookie.into(),
        proves: name_of_proof(used.proves).into(),
    };
    arguments.add_to(command);
}

/// The parts of a change that are computed here, and written if what they were computed from still stands.
pub(super) struct Computed<'a> {
    pub(super) merges: Merges<'a>,
    pub(super) held: Option<HeldChange<'a>>,
}

impl<'a> Computed<'a> {
    pub(super) fn of(change: Change<'a>) -> Self {
        Self { merges: Merges::of(change.patch), held: HeldChange::of(change) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.merges.is_empty() && self.held.is_none()
    }

    /// Computes them again from the values that the script has found.
    pub(super) fn learn(&mut self, moved: &Moved) -> Result<Result<(), Refusal>, Unreadable> {
        if let (Some(held), Some(text)) = (&mut self.held, text(&moved.held)?) {
            held.learn(text);
        }
        self.merges.learn(&moved.merges)
    }
}

/// The values of a session that a change was not computed from.
pub(super) struct Moved {
    merges: Vec<Value>,
    held: Value,
}

/// Adds the arguments of `patch.lua`.
pub(super) fn patch_arguments(
    command: &mut Cmd,
    change: Change<'_>,
    want: Want<'_>,
    indexed: Option<&Indexed>,
    computed: &Computed<'_>,
) {
    let Change { patch, policy, .. } = change;
    let held = computed.held.as_ref().map(HeldChange::after);
    common(change.now, policy, indexed).add_to(command);
    let (authority, number) = authority_of(change.authority);
    let expiry = match patch.expiry {
        None => None,
        Some(ExpiryChange::Policy) => Some("-".to_owned()),
        Some(ExpiryChange::Own(expiry)) => Some(encode::expiry(expiry)),
    };
    let (condition, condition_key, condition_tag) = condition_of(change.condition);
    let (want, want_key) = name_of_want(want);
    let arguments = arguments::Patch {
        max_values: bound(policy.max_values).into(),
        max_bytes: bound(policy.max_bytes).into(),
        authority: authority.into(),
        generation: i64::from(number).into(),
        if_version: patch.if_version.map(|version| version.to_string()).into(),
        only_destroys: patch.only_destroys().into(),
        touches: change.touches.into(),
        leaves_tombstone: (change.tombstone == Tombstone::Leave).into(),
        rotate: patch.rotate.map(name_of_rotation).into(),
        principal: patch.log_in().map(Principal::as_str).into(),
        expiry: expiry.into(),
        condition: condition.into(),
        condition_key: condition_key.into(),
        condition_tag: condition_tag.into(),
        want: want.into(),
        want_key: want_key.into(),
        logs_out: patch.logs_out().into(),
        held_tag: computed.held.as_ref().map(HeldChange::tag).into(),
        held: computed.held.as_ref().map_or(arguments::Value::Nothing, HeldChange::text),
        held_rotates: held.is_some_and(|held| held.rotates).into(),
        held_emptied: held.is_some_and(|held| held.is_emptied).into(),
    };
    arguments.add_to(command);
    for (at, op) in patch.ops.iter().enumerate() {
        command.arg(name_of(op)).arg(name_argument(op));
        match op {
            Op::Merge(..) => command.arg(computed.merges.argument(at)),
            op => text_argument(command, op),
        };
    }
}

fn authority_of(authority: Authority) -> (&'static str, u32) {
    match authority {
        Authority::Request(generation) => ("request", generation),
        Authority::Stale(generation) => ("stale", generation),
        Authority::Service(counter) => ("service", counter.into()),
    }
}

fn condition_of(condition: Option<&Condition>) -> (&'static str, &str, &str) {
    match condition {
        None => ("", "", ""),
        Some(Condition::Missing(key)) => ("missing", key.as_str(), ""),
        Some(Condition::Present(key)) => ("present", key.as_str(), ""),
        Some(Condition::Tagged(key, tag)) => ("tagged", key.as_str(), tag.as_str()),
    }
}

fn name_of_want(want: Want<'_>) -> (&'static str, &str) {
    match want {
        Want::Meta => ("", ""),
        Want::Value(key) => ("value", key.as_str()),
        Want::Before(key) => ("before", key.as_str()),
        Want::Values => ("values", ""),
    }
}

/// A change that only affects values, and the record of use, of a session that the caller knows.
pub(super) struct ValuesChange<'a> {
    change: Change<'a>,
    /// The session after the change, but for its version.
    meta: Meta,
    /// The operation on the value that is returned, from 1.
    wanted: Option<usize>,
    /// Whether its value before the change is returned too.
    wants_before: bool,
}

impl<'a> ValuesChange<'a> {
    /// Most operations of a change; more are no longer cheaper.
    const MAX_OPS: usize = 16;

    /// Returns the change as such a one, if it is.
    pub(super) fn of(change: Change<'a>, want: Want<'_>) -> Option<Self> {
        let ops = &change.patch.ops;
        let is_distinct = |(at, op): (usize, &Op)| {
            op.key().is_some()
                && !matches!(op, Op::Merge(..))
                && ops.iter().skip(at + 1).all(|other| other.key() != op.key())
        };
        if ops.len() > Self::MAX_OPS || !ops.iter().enumerate().all(is_distinct) {
            return None;
        }
        let place = |key| ops.iter().position(|op| op.key() == Some(key)).map(|at| at + 1);
        let (wanted, wants_before) = match want {
            Want::Meta => (None, false),
            Want::Value(key) => (Some(place(key)?), false),
            Want::Before(key) => (Some(place(key)?), true),
            Want::Values => return None,
        };
        Some(Self { change, meta: change.foreseen()?, wanted, wants_before })
    }

    /// Adds the arguments of `values.lua`.
    pub(super) fn add_to(&self, command: &mut Cmd) {
        let (Change { patch, policy, .. }, meta) = (self.change, &self.meta);
        let expiry = meta.expiry.map(encode::expiry).unwrap_or_default();
        let arguments = arguments::ValuesChange {
            known: format!("{} {} {expiry}", meta.generation, meta.cookie_set_at.as_millis())
                .into(),
            held: meta.held.as_ref().map(|held| held.as_str()).into(),
            last_seen_at: meta.last_seen_at.as_millis().into(),
            ends_at: policy.ends_at(meta).as_millis().into(),
            max_values: bound(policy.max_values).into(),
            max_bytes: bound(policy.max_bytes.saturating_sub(meta.held_size())).into(),
            wanted: self.wanted.map(bound).into(),
        };
        arguments.add_to(command);
        for key in patch.ops.iter().filter_map(Op::key) {
            command.arg(encode::field_of(key));
        }
        for op in &patch.ops {
            command.arg(name_of(op));
        }
        for op in &patch.ops {
            text_argument(command, op);
        }
    }

    /// Reads the reply of `values.lua`: `None` if it has changed nothing.
    pub(super) fn applied(self, parts: &[Value]) -> Result<Option<Applied>, Unreadable> {
        let (version, before, after) = match parts {
            [] => return Ok(None),
            [version] => (version, None, None),
            [version, before, after] => (version, text(before)?, text(after)?),
            _ => return Err(Unreadable),
        };
        let version = text(version)?.ok_or(Unreadable)?.parse().map_err(unreadable)?;
        let meta = Meta { version, ..self.meta };
        let op = self.wanted.and_then(|wanted| self.change.patch.ops.get(wanted - 1));
        let key = op.and_then(Op::key);
        let values = key.zip(after).map(|(key, text)| (key.clone(), Json::trusted(text)));
        let record = Record { meta, values: values.into_iter().collect() };
        Ok(Some(Applied {
            entry: Some(Entry::Live(record.clone())),
            record,
            rotation: Rotation::None,
            expiry_changed: false,
            before: before.filter(|_| self.wants_before).map(Json::trusted),
            replicated: Replicated::NotAsked,
        }))
    }
}

fn bound(bound: usize) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX)
}

fn name_argument(op: &Op) -> &str {
    match op {
        Op::ClearUnless(principal) => principal.as_str(),
        op => op.key().map_or("", Key::as_str),
    }
}

fn name_of_proof(proof: Proof) -> &'static str {
    match proof {
        Proof::None => "",
        Proof::Session => "session",
        Proof::Token => "token",
    }
}

fn name_of_rotation(rotate: Rotate) -> &'static str {
    match rotate {
        Rotate::Token => "token",
        Rotate::Id => "id",
    }
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Clear => "clear",
        Op::ClearUnless(_) => "clear_unless",
        Op::Set(..) => "set",
        Op::Default(..) => "default",
        Op::Remove(_) => "remove",
        Op::Increment(..) => "increment",
        Op::Append(..) => "append",
        Op::Merge(..) => "merge",
    }
}

/// Adds the text of an operation that is no merge.
fn text_argument<'a>(command: &'a mut Cmd, op: &Op) -> &'a mut Cmd {
    match op {
        Op::Clear | Op::ClearUnless(_) | Op::Remove(_) | Op::Merge(..) => command.arg(""),
        Op::Set(_, text) | Op::Default(_, text) => command.arg(text.as_str()),
        Op::Append(_, elements) => command.arg(elements.within_brackets().unwrap_or_default()),
        Op::Increment(_, by) => command.arg(*by),
    }
}

/// The reply of a script.
pub(super) enum Answered<T> {
    /// The result.
    Done(T),
    /// Nothing has changed: the index must have the session until its end first.
    Index(Indexed),
    /// Nothing has changed: values are not those that were merged into.
    Moved(Moved),
}

fn index(parts: &[Value]) -> Result<Indexed, Unreadable> {
    let [principal, ends] = parts else {
        return Err(Unreadable);
    };
    Ok(Indexed {
        principal: text(principal)?.and_then(Principal::new).ok_or(Unreadable)?,
        until: instant(ends)?.ok_or(Unreadable)?,
    })
}

/// Reads the reply of `use.lua`.
pub(super) fn used(answer: Value) -> Result<Answered<Option<Entry>>, Unreadable> {
    let parts = array(answer)?;
    let (kind, parts) = parts.split_first().ok_or(Unreadable)?;
    match (text(kind)?, parts) {
        (Some("stands"), [Value::Array(fields)]) => Ok(Answered::Done(entry_of(fields)?)),
        (Some("index"), parts) => Ok(Answered::Index(index(parts)?)),
        _ => Err(Unreadable),
    }
}

/// Reads the reply of `patch.lua`.
pub(super) fn patched(
    answer: Value,
    change: Change<'_>,
    computed: &Computed<'_>,
) -> Result<Answered<Result<Applied, Refusal>>, Unreadable> {
    let parts = array(answer)?;
    let (kind, parts) = parts.split_first().ok_or(Unreadable)?;
    Ok(match (text(kind)?, parts) {
        (Some("refused"), [why, Value::Int(op)]) => {
            Answered::Done(Err(refusal(text(why)?, *op, change.patch)?))
        }
        (Some("applied"), parts) => Answered::Done(Ok(applied(parts, change, computed)?)),
        (Some("index"), parts) => Answered::Index(index(parts)?),
        (Some("moved"), [Value::Array(merges), held]) => {
            Answered::Moved(Moved { merges: merges.clone(), held: held.clone() })
        }
        _ => return Err(Unreadable),
    })
}

fn refusal(why: Option<&str>, op: i64, patch: &Patch) -> Result<Refusal, Unreadable> {
    let key = || {
        let op = usize::try_from(op).ok().and_then(|op| patch.ops.get(op));
        op.and_then(Op::key).cloned().ok_or(Unreadable)
    };
    Ok(match why {
        Some("gone") => Refusal::Gone,
        Some("ended") => Refusal::Ended,
        Some("rotated") => Refusal::Rotated,
        Some("other principal") => Refusal::OtherPrincipal,
        Some("version moved") => Refusal::VersionMoved,
        Some("value moved") => Refusal::ValueMoved,
        Some("value exists") => Refusal::ValueExists,
        Some("no such value") => Refusal::NoSuchValue,
        Some("not an integer") => Refusal::NotAnInteger(key()?),
        Some("out of range") => Refusal::OutOfRange(key()?),
        Some("not an array") => Refusal::NotAnArray(key()?),
        Some("too many values") => Refusal::TooManyValues,
        Some("too large") => Refusal::TooLarge,
        _ => return Err(Unreadable),
    })
}

fn applied(
    parts: &[Value],
    change: Change<'_>,
    computed: &Computed<'_>,
) -> Result<Applied, Unreadable> {
    let [rotation, stands, expiry_changed, Value::Array(fields), Value::Array(wanted), before] =
        parts
    else {
        return Err(Unreadable);
    };
    let Some(Entry::Live(mut record)) = entry_of(fields)? else {
        return Err(Unreadable);
    };
    for pair in wanted.chunks(2) {
        let [name, value] = pair else {
            return Err(Unreadable);
        };
        let key = text(name)?.and_then(Key::new).ok_or(Unreadable)?;
        let json = Json::trusted(text(value)?.ok_or(Unreadable)?);
        record.values.insert(key, json);
    }
    // Whether the cookie ends with the browser may depend on the held ones.
    let ends_differ = computed.held.as_ref().is_some_and(|held| {
        let held = held.before().cloned().map(Arc::new);
        let before = Meta { held, ..record.meta.clone() };
        change.policy.expires_at_browser_close(&before)
            != change.policy.expires_at_browser_close(&record.meta)
    });
    Ok(Applied {
        entry: match text(stands)? {
            Some("live") => Some(Entry::Live(record.clone())),
            Some("ended") => {
                Some(Entry::Ended { until: change.now + change.policy.rotation_grace })
            }
            Some("nothing") => None,
            _ => return Err(Unreadable),
        },
        record,
        rotation: match text(rotation)? {
            Some("none") => Rotation::None,
            Some("rotated") => Rotation::Rotated,
            Some("joined") => Rotation::Joined,
            _ => return Err(Unreadable),
        },
        expiry_changed: text(expiry_changed)? == Some("changed") || ends_differ,
        before: text(before)?.map(Json::trusted),
        replicated: Replicated::NotAsked,
    })
}
