//! The backend of a session that lives in its client's cookie.
//!
//! A request opens the session that its cookie carries, its calls change it, and its response takes it
//! back. So a change that was acknowledged reaches the next request only through the browser: parallel
//! requests do not see it, and of two that write at the same time the browser keeps one's session.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::limited;
use crate::random;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::key_ring::KeyRing;
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Record};
use crate::session::sealed::Sealed;
use crate::store::{Answer, Backend, Created, Unproven, Want};

/// The session that a request's cookie carries, as the request's calls have changed it. It lasts as
/// long as the request.
#[derive(Debug)]
pub(super) struct CookieBacked {
    cookie_name: Arc<str>,
    /// The session, and the one that is about to replace it.
    entries: Mutex<BTreeMap<Id, Entry>>,
}

impl CookieBacked {
    pub(super) fn new(cookie_name: &str, session: Option<(Id, Entry)>) -> Self {
        let entries = Mutex::new(session.into_iter().collect());
        Self { cookie_name: cookie_name.into(), entries }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Id, Entry>> {
        // No method panics while it holds the lock, so a poisoned lock guards a consistent state.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a session that is too large for a cookie.
    pub(super) fn check_size(&self, id: Id, record: &Record) -> Result<(), Refusal> {
        let sealed = Sealed { id, record: record.clone() };
        if sealed.fits(&self.cookie_name) { Ok(()) } else { Err(Refusal::TooLarge) }
    }

    /// Returns the cookie's value for the current state of a live session.
    pub(super) fn seal(&self, id: Id, ring: &KeyRing) -> Option<Secret> {
        let Some(Entry::Live(record)) = self.entries().get(&id).cloned() else { return None };
        let sealed = Sealed { id, record };
        if !sealed.fits(&self.cookie_name) {
            limited!(warn, "outgrown", session = %id, "session has outgrown its cookie, which stays as it was");
            return None;
        }
        Some(sealed.seal(ring, &self.cookie_name, &random::bytes()))
    }

    fn apply(&self, id: Id, change: Change<'_>, want: Want<'_>) -> Result<Applied, Refusal> {
        let mut entries = self.entries();
        let mut applied = change.apply(entries.get(&id).cloned(), want.before())?;
        match applied.entry.clone() {
            Some(entry) => {
                if let Entry::Live(record) = &entry {
                    self.check_size(id, record)?;
                }
                entries.insert(id, entry);
            }
            None => drop(entries.remove(&id)),
        }
        want.narrow(&mut applied);
        Ok(applied)
    }
}

impl Backend for CookieBacked {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let entry = self.entries().get(&id).map(|entry| want.of(entry));
        Box::pin(ready(Ok(entry)))
    }

    /// Puts a record whose size [`check_size`](Self::check_size) has passed.
    fn create<'a>(&'a self, id: Id, record: &'a Record, _: &'a Policy) -> Answer<'a, Created> {
        let mut entries = self.entries();
        let created = match entries.entry(id) {
            Slot::Occupied(_) => Created::Exists,
            Slot::Vacant(slot) => {
                slot.insert(Entry::Live(record.clone()));
                Created::Done
            }
        };
        Box::pin(ready(Ok(created)))
    }

    fn patch<'a>(
        &'a self,
        id: Id,
        change: Change<'a>,
        want: Want<'a>,
    ) -> Answer<'a, Result<Applied, Refusal>> {
        Box::pin(ready(Ok(self.apply(id, change, want))))
    }

    fn record_use<'a>(
        &'a self,
        id: Id,
        used: Use,
        policy: &'a Policy,
    ) -> Answer<'a, Option<Entry>> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&id).map(|entry| {
            used.apply_to(entry, policy);
            Want::Meta.of(entry)
        });
        Box::pin(ready(Ok(entry)))
    }

    fn remove(&self, id: Id) -> Answer<'_, Option<Replicated>> {
        let mut entries = self.entries();
        let live = matches!(entries.get(&id), Some(Entry::Live(_)));
        if live {
            entries.remove(&id);
        }
        Box::pin(ready(Ok(live.then_some(Replicated::NotAsked))))
    }

    fn unproven(&self) -> Unproven {
        Unproven::None
    }
}
