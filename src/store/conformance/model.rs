//! The model: a map and the pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::id::Id;
use crate::session::patch::{Applied, Change, Refusal, Use};
use crate::session::policy::Policy;
use crate::session::record::{Entry, Record, Values};
use crate::store::Want;
use crate::time::Timestamp;

/// What a store must hold.
pub(super) struct Model {
    pub(super) entries: BTreeMap<Id, Entry>,
    /// Sessions and markers that are over: a store may have removed them, or hold them still.
    pub(super) over: BTreeSet<Id>,
    pub(super) policy: Policy,
    pub(super) now: Timestamp,
}

impl Model {
    pub(super) fn new(policy: Policy, now: Timestamp) -> Self {
        Self { entries: BTreeMap::new(), over: BTreeSet::new(), policy, now }
    }

    /// Moves the clock, which never goes back.
    pub(super) fn wait_until(&mut self, then: Timestamp) {
        self.now = self.now.max(then);
        self.forget_what_is_over();
    }

    pub(super) fn wait(&mut self, step: Duration) {
        self.wait_until(self.now + step);
    }

    pub(super) fn is_over(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Live(record) => !self.policy.is_alive(&record.meta, self.now),
            Entry::Ended { until } => self.now > *until,
        }
    }

    fn forget_what_is_over(&mut self) {
        let over: Vec<Id> = self
            .entries
            .iter()
            .filter(|(_, entry)| self.is_over(entry))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.entries.remove(&id);
            self.over.insert(id);
        }
    }

    /// What a load may say: entries that are over do not count.
    pub(super) fn standing(&self, answer: Option<Entry>) -> Option<Entry> {
        answer.filter(|entry| !self.is_over(entry))
    }

    pub(super) fn load(&self, id: Id, want: Want<'_>) -> Option<Entry> {
        Some(wanted(self.entries.get(&id)?.clone(), want))
    }

    pub(super) fn insert(&mut self, id: Id, record: Record) {
        self.over.remove(&id);
        self.entries.insert(id, Entry::Live(record));
        self.forget_what_is_over();
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

    /// Whether a removal must have found a session; `None` where either is right.
    pub(super) fn remove(&mut self, id: Id) -> Option<bool> {
        let live = matches!(self.entries.get(&id), Some(Entry::Live(_)));
        if live {
            self.entries.remove(&id);
        }
        (live || !self.over.contains(&id)).then_some(live)
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

/// The values of these pairs.
pub(super) fn values(pairs: &[(&str, &str)]) -> Values {
    pairs.iter().map(|(key, text)| (super::named::key(key), super::named::json(text))).collect()
}
