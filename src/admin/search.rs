//! Search in all sessions, newest first.
//!
//! Stores list sessions in no particular order. So a page is found by a scan that keeps the newest ones after the cursor:
//! its memory depends on the length of the page alone, and its duration is bounded.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::problem::{self, PageResult};
use super::summary::Summary;
use crate::html::Form;
use crate::session::id::{Id, PublicId};
use crate::session::record::{Meta, Principal};
use crate::sessions::{Directory, Failure};
use crate::store::Want;
use crate::time::Timestamp;

/// What is searched for; all conditions apply.
#[derive(Clone, Debug)]
pub(super) struct Search {
    pub(super) principal: Option<Principal>,
    /// An id, or the beginning of one.
    pub(super) id: Option<String>,
    pub(super) address: Option<IpAddr>,
    cursor: Option<Place>,
    limit: usize,
    /// The maximum number of sessions that are scanned.
    max_scanned: usize,
}

/// A page of sessions.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) sessions: Vec<Summary>,
    /// The cursor of the next page.
    pub(super) next: Option<Place>,
    /// Sessions that match, on all pages, among those that were scanned.
    pub(super) matched: usize,
    pub(super) scanned: usize,
    /// Records that cannot be read.
    pub(super) unreadable: usize,
    /// Whether the scan has seen all sessions.
    pub(super) is_complete: bool,
}

/// The place of a session in the order: by creation, and then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(Reverse<Timestamp>, Id);

/// The maximum number of sessions that are scanned for a page.
const MAX_SCANNED: usize = 100_000;

/// The maximum duration of a scan, and then of loading what it has found.
const DEADLINE: Duration = Duration::from_secs(5);

/// Sessions that the store lists at a time.
const BATCH: usize = 500;

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 500;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Reverse(created_at), id) = self;
        write!(f, "{}.{id}", created_at.as_millis())
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (millis, id) = text.split_once('.')?;
        Some(Self(Reverse(Timestamp::from_millis(millis.parse().ok()?)), Id::parse(id)?))
    }
}

impl Search {
    /// Parses a query. Empty fields, which browsers send, are no conditions.
    pub(super) fn parse(query: &Form) -> PageResult<Self> {
        let known = ["principal", "id", "address", "cursor", "limit"];
        if let Some(unknown) = query.names().find(|name| !known.contains(name)) {
            return Err(problem::malformed_request(format!("unknown parameter {unknown:?}")));
        }
        let text = |name: &str| query.get(name).filter(|text| !text.trim().is_empty());
        let malformed = |right: &str| problem::malformed_request(right.to_owned());
        let limit = text("limit").map(|text| {
            let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| malformed("limit must be a number from 1 to 500"))
        });
        let address = text("address").map(|text| {
            text.trim().parse().map_err(|_malformed| malformed("address must be an IP address"))
        });
        let cursor = text("cursor").map(|text| {
            Place::parse(text).ok_or_else(|| malformed("cursor must be one of a previous page"))
        });
        Ok(Self {
            principal: text("principal").map(principal).transpose()?,
            id: text("id").map(|id| id.trim().to_owned()),
            address: address.transpose()?,
            cursor: cursor.transpose()?,
            limit: limit.transpose()?.unwrap_or(DEFAULT_LIMIT),
            max_scanned: MAX_SCANNED,
        })
    }

    /// Finds a page.
    pub(super) async fn run(&self, directory: &Directory) -> Result<Found, Failure> {
        let Some(id) = self.id.as_deref().and_then(PublicId::parse) else {
            return self.scan(directory).await;
        };
        let found = self.find_one(directory, id).await?;
        // The id of a session whose id has changed since begins its present one.
        let may_begin_another = found.sessions.is_empty() && id.counter == 0;
        if may_begin_another { self.scan(directory).await } else { Ok(found) }
    }

    async fn find_one(&self, directory: &Directory, id: PublicId) -> Result<Found, Failure> {
        let mut found = Found { scanned: 1, is_complete: true, ..Found::default() };
        match directory.find(id, Want::Values).await {
            Ok(snapshot) => {
                let summary = snapshot.session.map(|(id, record)| Summary::of(id, record));
                found.sessions.extend(summary.filter(|one| self.matches(one.id, &one.meta)));
            }
            Err(Failure::NoSuchSession) => {}
            Err(failure) => return Err(failure),
        }
        found.matched = found.sessions.len();
        Ok(found)
    }

    async fn scan(&self, directory: &Directory) -> Result<Found, Failure> {
        let deadline = Instant::now() + DEADLINE;
        let mut found = Found::default();
        let mut newest = BTreeMap::new();
        let mut cursor = None;
        loop {
            let page = directory.list(self.principal.as_ref(), cursor.as_deref(), BATCH).await?;
            found.scanned += page.sessions.len();
            found.unreadable += page.unreadable.len();
            for (id, meta) in page.sessions {
                if self.matches(id, &meta) {
                    found.matched += 1;
                    self.keep(&mut newest, id, meta);
                }
            }
            cursor = page.next;
            found.is_complete = cursor.is_none();
            let is_over = found.scanned >= self.max_scanned || Instant::now() >= deadline;
            if found.is_complete || is_over {
                break;
            }
            // An embedded store may never wait, and requests are served on this thread too.
            tokio::task::yield_now().await;
        }
        if newest.len() > self.limit {
            newest.pop_last();
            found.next = newest.last_key_value().map(|(place, _)| *place);
        }
        // A store that has failed in the meantime lets each load wait for its timeout.
        let deadline = Instant::now() + DEADLINE;
        for (Place(_, id), meta) in newest {
            found.sessions.extend(if Instant::now() < deadline {
                Summary::load(directory, id, meta).await
            } else {
                Some(Summary::without_contents(id, meta))
            });
        }
        Ok(found)
    }

    /// Keeps a session if it is one of the page, or the first of the next one.
    fn keep(&self, newest: &mut BTreeMap<Place, Meta>, id: Id, meta: Meta) {
        let place = Place(Reverse(meta.created_at), id);
        if self.cursor.is_some_and(|cursor| place <= cursor) {
            return;
        }
        newest.insert(place, meta);
        if newest.len() > self.limit + 1 {
            newest.pop_last();
        }
    }

    fn matches(&self, id: Id, meta: &Meta) -> bool {
        let has_id =
            self.id.as_ref().is_none_or(|start| meta.public_id(id).to_string().starts_with(start));
        let of_client = |meta: &Meta| meta.client.as_ref().and_then(|client| client.address);
        let principal = |wanted: &Principal| meta.principal.as_ref() == Some(wanted);
        has_id
            && self.principal.as_ref().is_none_or(principal)
            && self.address.is_none_or(|address| of_client(meta) == Some(address))
    }
}

/// Parses a principal, as a store may hold it: older ones may begin or end with white space.
pub(super) fn principal(text: &str) -> PageResult<Principal> {
    Principal::new(text).ok_or_else(problem::invalid_principal)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::By;
    use crate::session::policy::Policy;
    use crate::session::record::{Record, Values};
    use crate::sessions::{Sessions, Shared};
    use crate::store::Backend as _;
    use crate::store::memory::Memory;
    use crate::time::Clock;

    fn search(query: &str) -> PageResult<Search> {
        Search::parse(&Form::parse(query))
    }

    #[test]
    fn empty_fields_are_no_conditions() {
        let all = search("principal=&id=+&address=&cursor=&limit=").expect("a search");
        assert!(all.principal.is_none() && all.id.is_none() && all.address.is_none());
        assert_eq!(all.limit, DEFAULT_LIMIT);
        for wrong in ["limit=0", "limit=501", "address=a", "cursor=1", "principal=%00", "name=x"] {
            assert!(search(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn scan_is_bounded_and_says_so() {
        let clock = Clock::manual(Timestamp::from_millis(1_000_000));
        let shared = Shared::for_tests(&clock, Policy::default());
        let memory = Memory::new(Memory::DEFAULT_MAX_BYTES, shared.audit.clone());
        for number in 0..1200_u16 {
            let mut id = [0; Id::BYTES];
            id[..2].copy_from_slice(&number.to_be_bytes());
            let record = Record { meta: Meta::new(1, clock.now()), values: Values::new() };
            let created = memory.create(Id::from_bytes(id), &record, &shared.policy).await;
            assert!(created.is_ok());
        }
        let renamed = Meta { id_counter: 1, ..Meta::new(1, clock.now()) };
        let record = Record { meta: renamed, values: Values::new() };
        let created = memory.create(Id::from_bytes([7; 16]), &record, &shared.policy).await;
        assert!(created.is_ok());
        let sessions = Sessions::new(Some(Arc::new(memory)), shared);
        let directory = sessions.directory(By::Operator).expect("a store");
        let all = search("limit=3").expect("a search");
        let found = all.run(&directory).await.expect("sessions");
        assert_eq!((found.scanned, found.matched, found.is_complete), (1201, 1201, true));
        assert!(found.sessions.len() == 3 && found.next.is_some());
        let of_id = |id: &str| search(&format!("id={id}")).expect("a search");
        let found = of_id("_____________________w").run(&directory).await.expect("sessions");
        assert!(found.sessions.is_empty() && found.is_complete);
        let former = Id::from_bytes([7; 16]).to_string();
        let found = of_id(&former).run(&directory).await.expect("sessions");
        let present: Vec<_> = found.sessions.iter().map(Summary::public_id).collect();
        assert!(present.len() == 1 && present[0].starts_with(&former) && present[0] != former);
        let part = Search { max_scanned: 600, ..all };
        let found = part.run(&directory).await.expect("sessions");
        assert_eq!((found.scanned, found.is_complete), (1000, false));
    }

    #[test]
    fn pages_follow_each_other() {
        let all: Vec<(Id, Meta)> = (0..7_u8)
            .map(|number| {
                let created_at = Timestamp::from_millis(i64::from(number / 2));
                (Id::from_bytes([number; 16]), Meta::new(1, created_at))
            })
            .collect();
        let mut seen = Vec::new();
        let mut page = search("limit=2").expect("a search");
        loop {
            let mut newest = BTreeMap::new();
            for (id, meta) in &all {
                page.keep(&mut newest, *id, meta.clone());
            }
            let more = newest.len() > 2;
            let places: Vec<Place> = newest.into_keys().take(2).collect();
            seen.extend(places.iter().map(|Place(_, id)| id.as_bytes()[0]));
            if !more {
                break;
            }
            let cursor = places.last().expect("a place").to_string();
            page.cursor = Place::parse(&cursor);
        }
        assert_eq!(seen, [6, 4, 5, 2, 3, 0, 1]);
    }
}
