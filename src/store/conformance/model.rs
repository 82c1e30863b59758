//! The reference model: a map and the pure functions of [`session`](crate::session).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Record};
use crate::store::Want;
use crate::time::Timestamp;

/// The entries that a store must have.
pub(super) struct Model {
    pub(super) entries: BTreeMap<Id, Entry>,
    /// Expired sessions and markers: a store may have removed them or not.
    pub(super) expired: BTreeSet<Id>,
    pub(super) policy: Policy,
    pub(super) now: Timestamp,
}

impl Model {
    pub(super) fn new(policy: Policy, now: Timestamp) -> Self {
        Self { entries: BTreeMap::new(), expired: BTreeSet::new(), policy, now }
    }

    /// Advances the clock to `then`; never sets it back.
    pub(super) fn wait_until(&mut self, then: Timestamp) {
        self.now = self.now.max(then);
        self.forget_expired();
    }

    pub(super) fn wait(&mut self, step: Duration) {
        self.wait_until(self.now + step);
    }

    pub(super) fn is_expired(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Live(record) => !self.policy.is_alive(&record.meta, self.now),
            Entry::Ended { until } => self.now > *until,
        }
    }

    fn forget_expired(&mut self) {
        let expired: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| self.is_expired(entry))
            .map(|(id, _)| *id)
            .collect();
        for id in expired {
            self.entries.remove(&id);
            self.expired.insert(id);
        }
    }

    /// Drops an expired entry from the answer of a load: it does not matter if the store still has it.
    pub(super) fn unexpired(&self, answer: Option<Entry>) -> Option<Entry> {
        answer.filter(|entry| !self.is_expired(entry))
    }

    pub(super) fn load(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        Some(wanted(self.entries.get(&id)?.clone(), want))
    }

    pub(super) fn insert(&mut self, id: Id, record: Record) {
        self.expired.remove(&id);
        self.entries.insert(id, Entry::Live(record));
        self.forget_expired();
    }

    pub(super) fn patch(
        &mut self,
        id: Id,
        change: Change<'_>,
        want: Want<'_>,
    ) -> Result<Applied, Refusal> {
        let mut applied = change.apply(self.entries.get(&id).cloned(), want.before())?;
        match applied.entry.clone() {
            Some(entry) => self.entries.insert(id, entry),
            None => self.entries.remove(&id),
        };
        applied.record.values = want.select(applied.record.values);
        applied.entry = applied.entry.map(|entry| wanted(entry, want));
        Ok(applied)
    }

    pub(super) fn record_use(&mut self, id: Id, used: Use) -> Option<Entry> {
        if let Some(Entry::Live(record)) = self.entries.get_mut(&id) {
            used.apply(&mut record.meta, self.policy.rotation_grace);
        }
        self.load(id, Want::Meta)
    }

    /// Returns true if a removal must find a session; `None` if either result is right.
    pub(super) fn remove(&mut self, id: Id) -> Option<bool> {
        let live = matches!(self.entries.get(&id), Some(Entry::Live(_)));
        if live {
            self.entries.remove(&id);
        }
        (live || !self.expired.contains(&id)).then_some(live)
    }
}

fn wanted(entry: Entry, want: Want<'_>) -> Entry {
    match entry {
        Entry::Live(Record { meta, values }) => {
            Entry::Live(Record { meta, values: want.select(values) })
        }
        ended @ Entry::Ended { .. } => ended,
    }
}
