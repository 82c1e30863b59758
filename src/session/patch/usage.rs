//! Uses of a session.

use std::time::Duration;

use crate::session::policy::Policy;
use crate::session::record::{Entry, Meta, Record};
use crate::time::Timestamp;

/// A use of a session by a request. It does not change the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The generation that the request was opened at. If it is the next one, the record moves to it.
    pub(crate) generation: u32,
    /// The use touches the session.
    pub(crate) touches: bool,
    /// The cookie is set again, if the generation is still current.
    pub(crate) sets_cookie: bool,
    /// What the token of the request proves.
    pub(crate) proves: Proof,
    /// The time of the use.
    pub(crate) now: Timestamp,
}

/// What the token of a request proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Nothing that is not known.
    None,
    /// The client keeps cookies: it presented a token of the session.
    Session,
    /// The client has the token of this generation.
    Token,
}

impl Use {
    /// Records the use if the entry is a live session, and returns its metadata then.
    pub(crate) fn apply_to<'a>(&self, entry: &'a mut Entry, policy: &Policy) -> Option<&'a Meta> {
        match entry {
            Entry::Live(Record { meta, .. }) if policy.is_alive(meta, self.now) => {
                self.apply(meta, policy.rotation_grace);
                Some(meta)
            }
            Entry::Live(_) | Entry::Ended { .. } => None,
        }
    }

    /// Records the use. A generation below the floor touches and proves nothing: its token may be in
    /// other hands than the cookie of the log-in or rotation that set the floor.
    pub(crate) fn apply(&self, meta: &mut Meta, grace: Duration) {
        meta.promote(self.generation, grace, self.now);
        let proves_anything = !meta.rotated_away(self.generation);
        if proves_anything {
            meta.unproven &= self.proves == Proof::None;
            meta.unpresented &= self.proves != Proof::Token;
        }
        if self.touches && proves_anything {
            meta.last_seen_at = meta.last_seen_at.max(self.now);
        }
        if self.sets_cookie && meta.generation == self.generation {
            meta.cookie_set_at = self.now;
        }
    }
}
