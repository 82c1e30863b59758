//! Opening the sessions that cookies carry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cookie_backed::CookieBacked;
use super::found::{Found, log_ambiguous};
use super::request::CookieOutcome;
use super::shared::Shared;
use crate::metrics::Event;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::record::{Entry, Record};
use crate::session::rotation::Verdict;
use crate::session::sealed::Sealed;
use crate::time::Timestamp;

/// The maximum by which the clock of the instance that sealed a cookie may be ahead of ours.
const SKEW: Duration = Duration::from_mins(1);

/// Opens a request's cookies. Those that we have not sealed are ignored, the latest one of a session
/// counts, and two different sessions make the request ambiguous.
pub(super) fn unseal(cookies: &[Secret], shared: &Shared) -> Found {
    let name = &shared.attributes.name;
    let mut outcome = CookieOutcome::None;
    let mut latest: BTreeMap<Id, (Sealed, SignedBy)> = BTreeMap::new();
    for text in cookies {
        let Some((sealed, by)) = Sealed::open(&shared.ring, name, text.reveal().as_bytes()) else {
            shared.metrics.event(Event::InvalidCookie);
            continue;
        };
        outcome = CookieOutcome::Unknown;
        let is_latest = |other: &Sealed| age(&sealed) >= age(other);
        if is_current(&sealed, shared)
            && latest.get(&sealed.id).is_none_or(|(other, _)| is_latest(other))
        {
            latest.insert(sealed.id, (sealed, by));
        }
    }
    if latest.len() > 1 {
        log_ambiguous(latest.keys());
        outcome = CookieOutcome::Ambiguous;
        latest.clear();
    }
    let Some((id, (sealed, signed_by))) = latest.pop_first() else {
        let sealed = Some(Arc::new(CookieBacked::new(name, None)));
        return Found { sealed, ..outcome.into() };
    };
    let Record { meta, values } = sealed.record.clone();
    let backed = CookieBacked::new(name, Some((id, Entry::Live(sealed.record))));
    let (generation, verdict, meta) = (meta.generation, Verdict::Current, Box::new(meta));
    let outcome = CookieOutcome::Session { id, generation, verdict, signed_by, meta };
    Found { outcome, values, sealed: Some(Arc::new(backed)), turn: None }
}

/// Returns whether a session is alive, and not from the future: a wrong clock may have sealed it.
fn is_current(sealed: &Sealed, shared: &Shared) -> bool {
    let (meta, now) = (&sealed.record.meta, shared.clock.now());
    shared.policy.is_alive(meta, now) && meta.last_seen_at <= now + SKEW
}

/// Returns an order of the states of one session: these fields grow with its changes and uses.
fn age(sealed: &Sealed) -> (u32, Timestamp, u64) {
    let meta = &sealed.record.meta;
    (meta.generation, meta.last_seen_at, meta.version)
}
