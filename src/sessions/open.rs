//! Opening: from the cookies of a request to its session.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::header::HeaderMap;
use tracing::debug;

use super::carried::Carried;
use super::exchange::{CookieOutcome, Exchange, TouchPolicy};
use super::in_flight::Tracked;
use super::{Home, Sessions, draw_id};
use crate::log::limited;
use crate::metrics::{Event, StoreOperation};
use crate::secret::Secret;
use crate::session::cookie;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::navigation::Origin;
use crate::session::policy::OnReplay;
use crate::session::record::{Client, Entry, Meta, Principal, Record, Values};
use crate::session::rotation::Verdict;
use crate::session::token::CookieToken;
use crate::store::config::OnError;
use crate::store::{Backend, Error as StoreError, Want};

/// What opening needs to know of a request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// How it came about.
    pub origin: Origin,
    /// The values that its Cookie lines had for us.
    pub cookies: Vec<Secret>,
    /// Which values its upstream is to be told.
    pub wants_values: bool,
    /// Whether use prolongs the session on its route.
    pub touch: TouchPolicy,
    /// What becomes of it where the store does not answer.
    pub on_error: OnError,
    /// The address of its client, if it is known and is not a trusted proxy's.
    pub address: Option<IpAddr>,
    /// Who sent it.
    pub client: Option<Client>,
}

/// A request whose session was looked for.
#[derive(Debug)]
pub struct Opened {
    /// The request, in the table of requests in flight.
    pub tracked: Tracked,
    /// Its session as it is now, with the values if they were wanted.
    pub record: Option<Record>,
}

impl Opened {
    /// Whom the session is logged in as.
    pub fn principal(&self) -> Option<&Principal> {
        self.record.as_ref()?.meta.principal.as_ref()
    }
}

/// What a request's cookies were worth, and what came with them.
pub(super) struct Found {
    pub(super) presented: CookieOutcome,
    pub(super) values: Values,
    pub(super) carried: Option<Carried>,
}

impl Found {
    /// Nothing came with them.
    pub(super) fn of(presented: CookieOutcome) -> Self {
        Self { presented, values: Values::new(), carried: None }
    }
}

/// At most this many sessions are looked up for one request. A request whose well-signed tokens
/// name more is ambiguous without that.
const MAX_SESSIONS: usize = 4;

/// What one session's tokens are worth together.
struct Candidate {
    generation: u32,
    signed_by: SignedBy,
    verdict: Verdict,
    record: Record,
}

impl Sessions {
    /// Takes our cookies out of the request's Cookie lines.
    pub fn take_cookies(&self, headers: &mut HeaderMap) -> Vec<Secret> {
        cookie::take(headers, &self.shared.attributes.name)
    }

    /// Opens the session that the request's cookies name, and puts the request into the table.
    ///
    /// # Errors
    /// A well-signed cookie was presented, the store did not answer, and the route says
    /// [`OnError::Fail`].
    pub async fn open(&self, arrival: Arrival) -> Result<Opened, StoreError> {
        let found = match &self.home {
            Home::Store(store) => self.look_up(&**store, &arrival).await,
            Home::Cookies => Ok(self.unseal(&arrival.cookies)),
        };
        let Found { presented, values, carried } = match found {
            Ok(found) => found,
            Err(error) if arrival.on_error == OnError::Fail => return Err(error),
            Err(error) => {
                debug!(%error, "a request goes on without its session");
                Found::of(CookieOutcome::Unavailable)
            }
        };
        let record = match &presented {
            CookieOutcome::Session { meta, signed_by, .. } => {
                self.shared.session_tokens.count(signed_by.position());
                Some(Record { meta: (**meta).clone(), values })
            }
            _ => None,
        };
        let number = self.shared.in_flight.number();
        let drawn = (self.shared.clock.now(), draw_id());
        let Arrival { origin, touch, address, client, .. } = arrival;
        let client = client.filter(|_| self.shared.policy.record_client);
        let exchange = Exchange::new(number, presented, origin, touch, client, drawn);
        let exchange = exchange.at_address(address).carrying(carried);
        if exchange.is_withheld() {
            self.shared.metrics.event(Event::CookieWithheld);
        }
        Ok(Opened { tracked: self.track(exchange), record })
    }

    /// What the request's tokens are worth, as sessions.md has it: badly signed ones and those
    /// that name no session are passed over, of one session the best counts, and two different
    /// live sessions make the request ambiguous.
    async fn look_up(&self, store: &dyn Backend, arrival: &Arrival) -> Result<Found, StoreError> {
        let tokens = self.verify(&arrival.cookies);
        if tokens.is_empty() {
            return Ok(Found::of(CookieOutcome::None));
        }
        if tokens.len() > MAX_SESSIONS {
            self.ambiguous(tokens.keys());
            return Ok(Found::of(CookieOutcome::Ambiguous));
        }
        let want = if arrival.wants_values { Want::Values } else { Want::Meta };
        let mut named = Vec::new();
        let mut ended = false;
        for (id, tokens) in tokens {
            let (policy, now) = (&self.shared.policy, self.shared.clock.now());
            let newest = tokens.iter().map(|(generation, _)| *generation).max().unwrap_or_default();
            let is_valid = |meta: &Meta| Verdict::of(newest, meta, policy, now).is_valid();
            match self.load_cached(store, id, want, is_valid).await? {
                Some(Entry::Live(record)) => {
                    let best = self.best(store, id, &tokens, record).await;
                    named.extend(best.map(|candidate| (id, candidate)));
                }
                Some(Entry::Ended { .. }) => ended = true,
                None => {}
            }
        }
        if named.len() > 1 {
            self.ambiguous(named.iter().map(|(id, _)| id));
            return Ok(Found::of(CookieOutcome::Ambiguous));
        }
        Ok(match named.pop() {
            Some((id, candidate)) if candidate.verdict.is_valid() => {
                let Candidate { generation, signed_by, verdict, record } = candidate;
                let Record { meta, values } = record;
                let meta = Box::new(meta);
                let presented = CookieOutcome::Session { id, generation, verdict, signed_by, meta };
                Found { values, ..Found::of(presented) }
            }
            Some((id, _)) => {
                self.shared.metrics.event(Event::Stale);
                Found::of(CookieOutcome::Stale(id))
            }
            None if ended => Found::of(CookieOutcome::Ended),
            None => Found::of(CookieOutcome::Unknown),
        })
    }

    pub(super) fn ambiguous<'a>(&self, sessions: impl Iterator<Item = &'a Id>) {
        self.shared.metrics.event(Event::AmbiguousCookie);
        let sessions: Vec<_> = sessions.take(MAX_SESSIONS + 1).collect();
        limited!(
            warn,
            "ambiguous_cookie",
            ?sessions,
            "request brought the cookies of several sessions"
        );
    }

    /// The tokens that we have signed, by the session that they name.
    fn verify(&self, cookies: &[Secret]) -> BTreeMap<Id, Vec<(u32, SignedBy)>> {
        let mut tokens: BTreeMap<Id, Vec<_>> = BTreeMap::new();
        for text in cookies {
            let name = &self.shared.attributes.name;
            match CookieToken::verify(&self.shared.ring, name, text.reveal().as_bytes()) {
                Some((token, signed_by)) => {
                    tokens.entry(token.id).or_default().push((token.generation, signed_by));
                }
                None => self.shared.metrics.event(Event::InvalidCookie),
            }
        }
        tokens
    }

    /// The best of one session's tokens, if any of them names it still: the highest valid
    /// generation, else a stale one. If there is none, a replaced one is a replay.
    async fn best(
        &self,
        store: &dyn Backend,
        id: Id,
        tokens: &[(u32, SignedBy)],
        record: Record,
    ) -> Option<Candidate> {
        let (policy, now) = (&self.shared.policy, self.shared.clock.now());
        let judged = tokens.iter().map(|(generation, signed_by)| {
            (Verdict::of(*generation, &record.meta, policy, now), *generation, *signed_by)
        });
        let (verdict, generation, signed_by) =
            judged.max_by_key(|(verdict, generation, _)| (*verdict, *generation))?;
        match verdict {
            Verdict::Unknown => None,
            Verdict::Replayed => {
                self.replayed(store, id).await;
                None
            }
            _ => Some(Candidate { generation, signed_by, verdict, record }),
        }
    }

    async fn replayed(&self, store: &dyn Backend, id: Id) {
        self.shared.metrics.event(Event::Replayed);
        limited!(warn, "replayed", session = %id, "token of a generation replaced long ago was presented");
        if self.shared.policy.on_replay == OnReplay::Revoke {
            match self.timed(StoreOperation::Remove, store.remove(id)).await {
                Ok(_) => self.shared.metrics.event(Event::Destroyed),
                Err(error) => {
                    limited!(warn, "replayed_kept", session = %id, %error, "failed to end a replayed session");
                }
            }
        }
    }
}
