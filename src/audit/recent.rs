//! The latest entries, in memory.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::entry::Entry;
use crate::session::record::Principal;
use crate::time::Timestamp;

/// The latest entries of each event, at most [`Recent::KEPT`].
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_event: BTreeMap<&'static str, VecDeque<Numbered>>,
    count: u64,
}

/// An entry and its number, which grows by time. Numbers begin with 1.
#[derive(Clone, Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) entry: Arc<Entry>,
}

/// The entries to select: those that have all that is set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter<'a> {
    pub(crate) principal: Option<&'a str>,
    /// The beginning of the session's id.
    pub(crate) session: Option<&'a str>,
    pub(crate) event: Option<&'a str>,
    pub(crate) since: Option<Timestamp>,
    /// Inclusive.
    pub(crate) until: Option<Timestamp>,
    /// Only entries with lower numbers, for the next page.
    pub(crate) before: Option<u64>,
}

/// The number of the entries that a filter selects, and of the principals and client addresses in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) events: usize,
    /// Different ones.
    pub(crate) principals: usize,
    /// Different ones; 0 if they are not recorded.
    pub(crate) addresses: usize,
}

impl Recent {
    /// Most entries of one event.
    pub(super) const KEPT: usize = 1000;

    pub(super) fn push(&self, entry: Entry) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.count += 1;
        let number = kept.count;
        let entries = kept.by_event.entry(entry.event.as_str()).or_default();
        if entries.len() == Self::KEPT {
            entries.pop_front();
        }
        entries.push_back(Numbered { number, entry: Arc::new(entry) });
    }

    /// Returns the entries of a filter, the newest first.
    pub(super) fn select(&self, filter: &Filter<'_>, limit: usize) -> Vec<Numbered> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut selected: Vec<Numbered> = kept
            .of_events(filter)
            .flat_map(|entries| {
                entries.iter().rev().filter(|one| filter.selects(one)).take(limit).cloned()
            })
            .collect();
        drop(kept);
        selected.sort_unstable_by_key(|one| std::cmp::Reverse(one.number));
        selected.truncate(limit);
        selected
    }

    /// Counts the entries of a filter, on all pages.
    pub(super) fn count(&self, filter: &Filter<'_>) -> Counts {
        let filter = Filter { before: None, ..*filter };
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut principals, mut addresses) = (HashSet::new(), HashSet::new());
        let mut events = 0;
        for Numbered { entry, .. } in
            kept.of_events(&filter).flatten().filter(|one| filter.selects(one))
        {
            events += 1;
            principals.extend(entry.principal.as_ref().map(Principal::as_str));
            addresses.extend(entry.source.client);
        }
        Counts { events, principals: principals.len(), addresses: addresses.len() }
    }
}

impl Kept {
    /// Returns the entries of the events that a filter selects.
    fn of_events(&self, filter: &Filter<'_>) -> impl Iterator<Item = &VecDeque<Numbered>> {
        let selected =
            self.by_event.iter().filter(|(event, _)| filter.event.is_none_or(|one| one == **event));
        selected.map(|(_, entries)| entries)
    }
}

impl Filter<'_> {
    fn selects(&self, Numbered { number, entry }: &Numbered) -> bool {
        let has_principal =
            |wanted| entry.principal.as_ref().is_some_and(|name| name.as_str() == wanted);
        let has_session =
            |start: &str| entry.session.is_some_and(|id| id.to_string().starts_with(start));
        self.before.is_none_or(|before| *number < before)
            && self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
            && self.principal.is_none_or(has_principal)
            && self.session.is_none_or(has_session)
    }
}

#[cfg(test)]
mod tests {
    use super::super::By;
    use super::*;
    use crate::metrics::Event;

    fn numbers(recent: &Recent, filter: &Filter<'_>, limit: usize) -> Vec<u64> {
        recent.select(filter, limit).into_iter().map(|one| one.number).collect()
    }

    #[test]
    fn flood_displaces_only_its_own_event() {
        let recent = Recent::default();
        recent.push(Entry::new(Event::LoggedIn, By::Request));
        for _ in 0..2 * Recent::KEPT {
            recent.push(Entry::new(Event::Created, By::Request));
        }
        let all = numbers(&recent, &Filter::default(), 10 * Recent::KEPT);
        assert_eq!(all.len(), Recent::KEPT + 1);
        assert_eq!(all.last(), Some(&1));
        let log_ins = Filter { event: Some("logged_in"), ..Filter::default() };
        assert_eq!(numbers(&recent, &log_ins, 10), [1]);
    }

    #[test]
    fn pages_go_back_in_time() {
        let recent = Recent::default();
        for event in [Event::Created, Event::LoggedIn, Event::Created, Event::Rotated] {
            recent.push(Entry::new(event, By::Request));
        }
        assert_eq!(numbers(&recent, &Filter::default(), 3), [4, 3, 2]);
        let next = Filter { before: Some(2), ..Filter::default() };
        assert_eq!(numbers(&recent, &next, 3), [1]);
    }
}
