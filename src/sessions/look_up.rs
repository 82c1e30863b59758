//! Looking up the sessions that cookie tokens name.

use std::error::Error as _;
use std::pin::pin;

use smallvec::SmallVec;

use super::calls::Calls;
use super::found::{Found, MAX_SESSIONS, log_ambiguous};
use super::request::CookieOutcome;
use super::shared::Shared;
use crate::audit::{self, By, Source};
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

/// The well-signed tokens of a request.
pub(super) type Tokens = SmallVec<[SignedToken; 1]>;

/// A well-signed token.
#[derive(Clone, Copy)]
pub(super) struct SignedToken {
    token: CookieToken,
    signed_by: SignedBy,
}

/// The best token of one session.
struct Candidate {
    token: SignedToken,
    verdict: Verdict,
    record: Record,
}

/// Looks up the tokens of a request if that takes no call to the store: there are none, or all name one session, whose
/// cached record shows that the newest of them is valid. Otherwise `None`.
pub(super) fn look_up_cached(
    tokens: &[SignedToken],
    want: Want<'_>,
    calls: Calls<'_>,
    shared: &Shared,
) -> Option<Found> {
    let [first, others @ ..] = tokens else { return Some(CookieOutcome::None.into()) };
    let id = first.token.id;
    if others.iter().any(|other| other.token.id != id) {
        return None;
    }
    let record = calls.cached(id, want, is_newest_valid(tokens.iter(), shared))?;
    let (verdict, token) = best(tokens.iter(), &record.meta, shared)?;
    Some(Candidate { token, verdict, record }.into_found(shared))
}

/// Looks up the tokens of a request.
///
/// Tokens with an invalid signature, and tokens of missing sessions, are ignored. Of several tokens of one
/// session the [best] counts. Tokens of two live sessions make the request ambiguous.
pub(super) async fn look_up(
    tokens: Tokens,
    want: Want<'_>,
    calls: Calls<'_>,
    shared: &Shared,
    source: &Source,
) -> Result<Found, StoreError> {
    let mut ids: SmallVec<[Id; MAX_SESSIONS]> = tokens.iter().map(|one| one.token.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(CookieOutcome::None.into());
    }
    if ids.len() > MAX_SESSIONS {
        log_ambiguous(ids.iter());
        return Ok(CookieOutcome::Ambiguous.into());
    }
    let mut found: Option<Candidate> = None;
    let mut named: SmallVec<[Id; MAX_SESSIONS]> = SmallVec::new();
    let mut ended = None;
    for id in ids {
        let tokens = || tokens.iter().filter(|one| one.token.id == id);
        let is_valid = is_newest_valid(tokens(), shared);
        match pin!(calls.load_cached(id, want, is_valid)).await? {
            Some(Entry::Live(record)) => match best(tokens(), &record.meta, shared) {
                Some((Verdict::Replayed, _)) => {
                    Box::pin(on_replay(id, &record.meta, calls, shared, source)).await;
                }
                Some((Verdict::Unknown, _)) | None => {}
                Some((verdict, token)) => {
                    named.push(id);
                    found = Some(Candidate { token, verdict, record });
                }
            },
            Some(Entry::Ended { until }) => ended = Some(until),
            None => {}
        }
    }
    if named.len() > 1 {
        log_ambiguous(named.iter());
        return Ok(CookieOutcome::Ambiguous.into());
    }
    Ok(match found {
        Some(candidate) => candidate.into_found(shared),
        None => match ended {
            Some(until) => CookieOutcome::Ended { until }.into(),
            None => CookieOutcome::Unknown.into(),
        },
    })
}

impl Candidate {
    fn into_found(self, shared: &Shared) -> Found {
        let Self { token: SignedToken { token, signed_by }, verdict, record } = self;
        let CookieToken { id, generation } = token;
        if !verdict.is_valid() {
            shared.metrics.event(Event::Stale);
            let meta = Box::new(record.meta);
            return CookieOutcome::Stale { id, generation, meta }.into();
        }
        let Record { meta, values } = record;
        let meta = Box::new(meta);
        let outcome = CookieOutcome::Session { id, generation, verdict, signed_by, meta };
        Found { values, ..outcome.into() }
    }
}

/// Returns the check of a cached record: it may be old, so it can show that the newest token is valid, and anything else
/// is loaded from the store (invariant 10 of the crate).
fn is_newest_valid<'a>(
    tokens: impl Iterator<Item = &'a SignedToken>,
    shared: &Shared,
) -> impl Fn(&Meta) -> bool {
    let newest = tokens.map(|one| one.token.generation).max().unwrap_or_default();
    let now = shared.clock.now();
    move |meta| Verdict::of(newest, meta, &shared.policy, now).is_valid()
}

/// Returns the session that the tokens name; `None` if they name none, or several.
pub(super) fn named_session(tokens: &[SignedToken]) -> Option<Id> {
    let (first, others) = tokens.split_first()?;
    let id = first.token.id;
    others.iter().all(|other| other.token.id == id).then_some(id)
}

/// Returns the well-signed tokens.
pub(super) fn verify(cookies: &[Secret], shared: &Shared) -> Tokens {
    let name = &shared.attributes.name;
    let verified = cookies.iter().filter_map(|text| {
        let verified = CookieToken::verify(&shared.ring, name, text.reveal().as_bytes());
        if verified.is_none() {
            shared.metrics.event(Event::InvalidCookie);
        }
        verified.map(|(token, signed_by)| SignedToken { token, signed_by })
    });
    verified.collect()
}

/// Returns the best of one session's tokens: the highest valid generation, else a stale one, else one that
/// was replaced long ago.
fn best<'a>(
    tokens: impl Iterator<Item = &'a SignedToken>,
    meta: &Meta,
    shared: &Shared,
) -> Option<(Verdict, SignedToken)> {
    let now = shared.clock.now();
    let verdict = |one: &SignedToken| Verdict::of(one.token.generation, meta, &shared.policy, now);
    tokens
        .map(|one| (verdict(one), *one))
        .max_by_key(|(verdict, one)| (*verdict, one.token.generation))
}

async fn on_replay(id: Id, meta: &Meta, calls: Calls<'_>, shared: &Shared, source: &Source) {
    let record = |event, by| {
        let entry = audit::Entry::new(event, by).of(meta.public_id(id), meta.principal.as_ref());
        shared.audit.record(entry.from(source.clone()));
    };
    record(Event::Replayed, By::Request);
    limited!(warn, "replayed", session = %id, "token of a generation replaced long ago was presented");
    if shared.policy.on_replay == OnReplay::Revoke {
        match calls.remove(id).await {
            Ok(Some(_)) => record(Event::Destroyed, By::Replay),
            // Another request was faster.
            Ok(None) => {}
            Err(error) => {
                let cause = error.source().map(ToString::to_string);
                limited!(warn, "replayed_kept", session = %id, %error, cause, "failed to end a replayed session");
            }
        }
    }
}
