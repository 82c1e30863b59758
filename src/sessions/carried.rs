//! Sessions that live in their clients' cookies: here only while a request lasts.
//!
//! A request opens what its cookie carries, its calls change that, and its response takes it along.
//! So what was answered is the browser's to bring back: requests beside it do not see it, and of two
//! that write at the same time the browser keeps one's session.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Sessions;
use super::exchange::CookieOutcome;
use super::open::Found;
use crate::log::limited;
use crate::metrics::Event;
use crate::random;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::key_ring::{KeyRing, SignedBy};
use crate::session::patch::{Applied, Change, Refusal, Replicated, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Record};
use crate::session::rotation::Verdict;
use crate::session::sealed::Sealed;
use crate::store::{Answer, Backend, Created, Unproven, Want};
use crate::time::Timestamp;

/// How far the clock of the instance that sealed a cookie may be ahead of ours.
const SKEW: Duration = Duration::from_mins(1);

/// The session that a request's cookie carries, and what its calls have made of it: a store of as
/// long as the request lasts.
#[derive(Debug)]
pub(super) struct Carried {
    cookie_name: Arc<str>,
    /// The session, and the one that is about to take its place.
    entries: Mutex<BTreeMap<Id, Entry>>,
}

impl Carried {
    pub(super) fn new(cookie_name: &str, session: Option<(Id, Entry)>) -> Self {
        let entries = Mutex::new(session.into_iter().collect());
        Self { cookie_name: cookie_name.into(), entries }
    }

    /// No method panics while it holds the lock, so a poisoned lock guards a consistent state.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Id, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a session that no browser would keep.
    pub(super) fn check(&self, id: Id, record: &Record) -> Result<(), Refusal> {
        let sealed = Sealed { id, record: record.clone() };
        if sealed.fits(&self.cookie_name) { Ok(()) } else { Err(Refusal::TooLarge) }
    }

    /// The cookie's value for a session that is alive, as it stands.
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
                    self.check(id, record)?;
                }
                entries.insert(id, entry);
            }
            None => drop(entries.remove(&id)),
        }
        want.narrow(&mut applied);
        Ok(applied)
    }
}

impl Backend for Carried {
    fn load<'a>(&'a self, id: Id, want: Want<'a>) -> Answer<'a, Option<Entry>> {
        let entry = self.entries().get(&id).map(|entry| want.of(entry));
        Box::pin(ready(Ok(entry)))
    }

    /// Whoever makes a record has checked that its cookie will hold it.
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

impl Sessions {
    /// What a request's cookies carry: those that we have not sealed are passed over, of one session
    /// the latest counts, and two different ones make the request ambiguous.
    pub(super) fn unseal(&self, cookies: &[Secret]) -> Found {
        let (shared, mut presented) = (&self.shared, CookieOutcome::None);
        let name = &shared.attributes.name;
        let mut found: BTreeMap<Id, (Sealed, SignedBy)> = BTreeMap::new();
        for text in cookies {
            let Some((sealed, by)) = Sealed::open(&shared.ring, name, text.reveal().as_bytes())
            else {
                shared.metrics.event(Event::InvalidCookie);
                continue;
            };
            presented = CookieOutcome::Unknown;
            let is_latest = |other: &Sealed| age(&sealed) >= age(other);
            if self.is_current(&sealed)
                && found.get(&sealed.id).is_none_or(|(other, _)| is_latest(other))
            {
                found.insert(sealed.id, (sealed, by));
            }
        }
        if found.len() > 1 {
            self.ambiguous(found.keys());
            presented = CookieOutcome::Ambiguous;
            found.clear();
        }
        let Some((id, (sealed, signed_by))) = found.pop_first() else {
            let carried = Some(Carried::new(name, None));
            return Found { carried, ..Found::of(presented) };
        };
        let Record { meta, values } = sealed.record.clone();
        let carried = Some(Carried::new(name, Some((id, Entry::Live(sealed.record)))));
        let (generation, verdict, meta) = (meta.generation, Verdict::Current, Box::new(meta));
        let presented = CookieOutcome::Session { id, generation, verdict, signed_by, meta };
        Found { presented, values, carried }
    }

    /// Whether a session that a cookie carries is alive, and not of the future, which a clock that
    /// was wrong once has made.
    fn is_current(&self, sealed: &Sealed) -> bool {
        let (meta, now) = (&sealed.record.meta, self.shared.clock.now());
        self.shared.policy.is_alive(meta, now) && meta.last_seen_at <= now + SKEW
    }
}

/// What grows as a session is changed and used.
fn age(sealed: &Sealed) -> (u32, Timestamp, u64) {
    let meta = &sealed.record.meta;
    (meta.generation, meta.last_seen_at, meta.version)
}
