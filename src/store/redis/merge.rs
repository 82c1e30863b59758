//! Merges into values: computed here and written by `patch.lua` if the value is still the one that was merged into, so
//! that no script reads JSON.
//!
//! The script gets the tag of that value and the result. If the value is another one, nothing has changed, and the
//! reply has it for the next attempt. Changes with a merge of one session take turns within this process, so that only
//! other instances can be in the way.

use redis::Value;

use super::fields::{Unreadable, text, unreadable};
use crate::session::json::Json;
use crate::session::patch::{Op, Patch, Refusal, merged, value_tag};
use crate::session::record::Key;

/// Most attempts of a change with a merge, of which the first learns the values.
pub(super) const MERGE_ATTEMPTS: usize = 32;

/// Most changes with a merge that wait for their turn on one session.
pub(super) const MAX_WAITING: usize = 1024;

/// The merges of a patch, by the number of their operation.
pub(super) struct Merges<'a> {
    ops: &'a [Op],
    /// The argument of each operation that is a merge, as far as its value is known.
    arguments: Vec<Option<String>>,
}

impl<'a> Merges<'a> {
    pub(super) fn of(patch: &'a Patch) -> Self {
        Self { ops: &patch.ops, arguments: vec![None; patch.ops.len()] }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.ops.iter().any(|op| matches!(op, Op::Merge(..)))
    }

    /// Returns the argument of a merge: the tag of the value, and the result. Nothing if the value is unknown.
    pub(super) fn argument(&self, op: usize) -> &str {
        self.arguments.get(op).and_then(Option::as_deref).unwrap_or_default()
    }

    /// Reads the script's list of values that were not as expected: the number of the merge, and the value, which is
    /// empty if there is none.
    ///
    /// # Errors
    /// The first of the values cannot be merged into. If that is a later one, an operation before it may still be
    /// refused, which the next attempt finds out.
    pub(super) fn learn(&mut self, moved: &[Value]) -> Result<Result<(), Refusal>, Unreadable> {
        for (at, pair) in moved.iter().enumerate() {
            let Value::Array(pair) = pair else { return Err(Unreadable) };
            let [Value::Int(op), value] = &**pair else { return Err(Unreadable) };
            let op = usize::try_from(*op).map_err(unreadable)?;
            let value = text(value)?.filter(|text| !text.is_empty()).map(Json::trusted);
            match self.learn_value(op, value) {
                Err(refusal) if at == 0 => return Ok(Err(refusal)),
                _ => {}
            }
        }
        Ok(Ok(()))
    }

    /// Computes a merge, and the later ones of the same key, from the value that the first of them meets.
    fn learn_value(&mut self, first: usize, mut value: Option<Json>) -> Result<(), Refusal> {
        let Some(Op::Merge(key, _)) = self.ops.get(first) else { return Ok(()) };
        let later = self.ops.iter().zip(&mut self.arguments).enumerate().skip(first);
        for (at, (op, argument)) in later {
            match op {
                Op::Merge(of, object) if of == key => {
                    let result = match merged(value.as_ref(), key, object) {
                        // An operation in between may be refused before, which the script finds out.
                        Err(_) if at > first => return Ok(()),
                        result => result?,
                    };
                    let tag = value_tag(value.as_ref().map_or("", Json::as_str));
                    *argument = Some(format!("{tag}{result}"));
                    value = Some(result);
                }
                op => value = after(op, key, value),
            }
        }
        Ok(())
    }
}

/// Returns the value of `key` after an operation. Where that is not known or the operation is refused, the script
/// finds out.
fn after(op: &Op, key: &Key, value: Option<Json>) -> Option<Json> {
    match op {
        Op::Clear => None,
        Op::Set(of, text) if of == key => Some(text.clone()),
        Op::Default(of, text) if of == key => value.or_else(|| Some(text.clone())),
        Op::Remove(of) if of == key => None,
        _ => value,
    }
}
