//! Changes of held cookies: computed here and written by `patch.lua` if the cookies are still those that were changed,
//! as merges are.

use super::arguments::Value;
use crate::session::held::{Held, Holding};
use crate::session::patch::{Change, value_tag};
use crate::store::encode::parse_held;

/// The held cookies that a change expects, and what it makes of them.
pub(super) struct HeldChange<'a> {
    change: Change<'a>,
    before: Option<Held>,
    after: Holding,
}

impl<'a> HeldChange<'a> {
    /// Computes the change from what its caller knows; `None` if it changes none.
    pub(super) fn of(change: Change<'a>) -> Option<Self> {
        let before = change.known.and_then(|meta| meta.held.as_deref());
        Some(Self { change, before: before.cloned(), after: change.holding(before)? })
    }

    /// Computes the change again from the text that the session has, which is empty if it holds none.
    pub(super) fn learn(&mut self, text: &str) {
        self.before = parse_held(text).map(|held| (*held).clone());
        if let Some(after) = self.change.holding(self.before.as_ref()) {
            self.after = after;
        }
    }

    /// Returns the tag of the expected text.
    pub(super) fn tag(&self) -> String {
        value_tag(self.before.as_ref().map_or("", Held::as_str))
    }

    /// Returns the text to write; nothing if no cookie is left.
    pub(super) fn text(&self) -> Value<'_> {
        self.after.held.as_ref().map(|held| held.as_str()).into()
    }

    pub(super) fn after(&self) -> &Holding {
        &self.after
    }

    pub(super) fn before(&self) -> Option<&Held> {
        self.before.as_ref()
    }
}
