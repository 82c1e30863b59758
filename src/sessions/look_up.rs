//! Looking up the sessions that cookie tokens name.

use std::collections::BTreeMap;

use super::calls::Calls;
use super::found::{Found, MAX_SESSIONS, log_ambiguous};
use super::request::CookieOutcome;
use super::shared::Shared;
use crate::log::limited;
use crate::metrics::Event;
use crate::secret::Secret;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::policy::OnReplay;
use crate::session::record::{Entry, Meta, Record};
use crate::session::rotation::Verdict;
use crate::session::token::CookieToken;
use crate::store::{Error as StoreError, Want};

/// The best token of one session.
struct Candidate {
    generation: u32,
    signed_by: SignedBy,
    verdict: Verdict,
    record: Record,
}

/// Looks up a request's tokens. Badly signed ones and those of no session are ignored, the best one
/// of a session counts, and two different live sessions make the request ambiguous.
pub(super) async fn look_up(
    cookies: &[Secret],
    want: Want<'_>,
    calls: Calls<'_>,
    shared: &Shared,
) -> Result<Found, StoreError> {
    let tokens = verify(cookies, shared);
    if tokens.is_empty() {
        return Ok(CookieOutcome::None.into());
    }
    if tokens.len() > MAX_SESSIONS {
        log_ambiguous(shared, tokens.keys());
        return Ok(CookieOutcome::Ambiguous.into());
    }
    let mut named = Vec::new();
    let mut ended = false;
    for (id, tokens) in tokens {
        let (policy, now) = (&shared.policy, shared.clock.now());
        let newest = tokens.iter().map(|(generation, _)| *generation).max().unwrap_or_default();
        let is_valid = |meta: &Meta| Verdict::of(newest, meta, policy, now).is_valid();
        match calls.load_cached(id, want, is_valid).await? {
            Some(Entry::Live(record)) => {
                let best = best(id, &tokens, record, calls, shared).await;
                named.extend(best.map(|candidate| (id, candidate)));
            }
            Some(Entry::Ended { .. }) => ended = true,
            None => {}
        }
    }
    if named.len() > 1 {
        log_ambiguous(shared, named.iter().map(|(id, _)| id));
        return Ok(CookieOutcome::Ambiguous.into());
    }
    Ok(match named.pop() {
        Some((id, candidate)) if candidate.verdict.is_valid() => {
            let Candidate { generation, signed_by, verdict, record } = candidate;
            let Record { meta, values } = record;
            let meta = Box::new(meta);
            let outcome = CookieOutcome::Session { id, generation, verdict, signed_by, meta };
            Found { values, ..outcome.into() }
        }
        Some((id, _)) => {
            shared.metrics.event(Event::Stale);
            CookieOutcome::Stale(id).into()
        }
        None if ended => CookieOutcome::Ended.into(),
        None => CookieOutcome::Unknown.into(),
    })
}

/// Returns the well-signed tokens, by session.
fn verify(cookies: &[Secret], shared: &Shared) -> BTreeMap<Id, Vec<(u32, SignedBy)>> {
    let mut tokens: BTreeMap<Id, Vec<_>> = BTreeMap::new();
    for text in cookies {
        let name = &shared.attributes.name;
        match CookieToken::verify(&shared.ring, name, text.reveal().as_bytes()) {
            Some((token, signed_by)) => {
                tokens.entry(token.id).or_default().push((token.generation, signed_by));
            }
            None => shared.metrics.event(Event::InvalidCookie),
        }
    }
    tokens
}

/// Returns the best of one session's tokens, if any of them still names it: the highest valid
/// generation, else a stale one. If there is none, a replaced token is a replay.
async fn best(
    id: Id,
    tokens: &[(u32, SignedBy)],
    record: Record,
    calls: Calls<'_>,
    shared: &Shared,
) -> Option<Candidate> {
    let now = shared.clock.now();
    let verdicts = tokens.iter().map(|(generation, signed_by)| {
        let verdict = Verdict::of(*generation, &record.meta, &shared.policy, now);
        (verdict, *generation, *signed_by)
    });
    let (verdict, generation, signed_by) =
        verdicts.max_by_key(|(verdict, generation, _)| (*verdict, *generation))?;
    match verdict {
        Verdict::Unknown => None,
        Verdict::Replayed => {
            on_replay(id, calls, shared).await;
            None
        }
        Verdict::Stale | Verdict::Previous | Verdict::Current | Verdict::Next => {
            Some(Candidate { generation, signed_by, verdict, record })
        }
    }
}

async fn on_replay(id: Id, calls: Calls<'_>, shared: &Shared) {
    shared.metrics.event(Event::Replayed);
    limited!(warn, "replayed", session = %id, "token of a generation replaced long ago was presented");
    if shared.policy.on_replay == OnReplay::Revoke {
        match calls.remove(id).await {
            Ok(_) => shared.metrics.event(Event::Destroyed),
            Err(error) => {
                limited!(warn, "replayed_kept", session = %id, %error, "failed to end a replayed session");
            }
        }
    }
}
