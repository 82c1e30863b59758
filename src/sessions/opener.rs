//! Opening the session of a request: by its cookies, or later by its request token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;
use tracing::debug;

use super::calls::Calls;
use super::cookie_backed::CookieBacked;
use super::found::{Found, SessionTurn};
use super::guard::RequestGuard;
use super::in_flight::{Lookup, SLACK};
use super::in_turn::{LookUp, OpenError};
use super::look_up::{look_up, look_up_cached, verify};
use super::remote::{BoundSession, RemoteSession};
use super::request::{CookieOutcome, EndedRequest, InFlightRequest, RequestContext, TouchPolicy};
use super::request_session::{RequestSession, Storage};
use super::shared::Shared;
use super::unseal::unseal;
use crate::audit::{By, Entry, Source};
use crate::metrics::Event;
use crate::session::cookie;
use crate::session::navigation::Origin;
use crate::session::peer::Instance;
use crate::session::policy::HeaderExchange;
use crate::session::record::{Client, Meta, Principal, Values};
use crate::session::token::{Bound, RequestToken};
use crate::store::config::OnError;
use crate::store::{Store, Want};
use crate::time::Timestamp;

/// Opens the sessions of requests, for one worker.
#[derive(Clone, Debug)]
pub(crate) struct Opener {
    /// `None` if sessions live in their clients' cookies.
    store: Option<Arc<dyn Store>>,
    shared: Arc<Shared>,
}

/// The parts of a request and its route that opening depends on.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) origin: Origin,
    /// The values of our cookie in the request's Cookie headers.
    pub(crate) cookies: cookie::Values,
    /// Header exchange of the route: the upstream is sent the session's values.
    pub(crate) header_exchange: Option<HeaderExchange>,
    pub(crate) touch: TouchPolicy,
    pub(crate) on_error: OnError,
    /// The longest wait for the request's turn on its session; `None` if it does not wait for others.
    pub(crate) turn_within: Option<Duration>,
    /// The address of the client, unless that is unknown or a trusted proxy's.
    pub(crate) address: Option<IpAddr>,
    /// The client, if the policy records it.
    pub(crate) client: Option<Client>,
    /// What the audit trail says of the request.
    pub(crate) source: Source,
}

/// A request after its session was looked up.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The request, in the table of requests in flight.
    pub(crate) guard: RequestGuard,
    /// The values of its session, if they were wanted.
    pub(crate) values: Values,
    /// Its turn on its session. Held until the session is committed, by a task of its own if that has a patch.
    pub(crate) turn: Option<Arc<SessionTurn>>,
}

impl Opened {
    /// Returns the session as it was when the request arrived; `None` if it has none.
    pub(crate) fn meta(&self) -> Option<&Meta> {
        self.guard.session().presented_meta()
    }

    /// Returns the principal of the session.
    pub(crate) fn principal(&self) -> Option<&Principal> {
        self.meta()?.principal.as_ref()
    }
}

/// The request that a request token leads to.
#[derive(Clone, Debug)]
pub(crate) enum TokenLookup {
    /// A request that this process forwarded: in flight, or ended within `request_token_linger`.
    Here(RequestSession),
    /// A request of another instance, or of an earlier process of this one.
    Elsewhere(RemoteSession),
}

impl Opener {
    pub(super) fn new(store: Option<Arc<dyn Store>>, shared: Arc<Shared>) -> Self {
        Self { store, shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Takes our cookies out of the request's Cookie headers.
    pub(crate) fn take_cookies(&self, headers: &mut HeaderMap) -> cookie::Values {
        cookie::take(headers, &self.shared.attributes.name)
    }

    /// Opens the session that the request's cookies name, and puts the request into the table of
    /// requests in flight.
    ///
    /// # Errors
    /// The store did not answer for a well-signed cookie, and the route says [`OnError::Fail`]; or the request did not
    /// get its turn on its session.
    pub(crate) async fn open(&self, arrival: Arrival) -> Result<Opened, OpenError> {
        let Arrival {
            origin,
            cookies,
            header_exchange,
            touch,
            on_error,
            turn_within,
            address,
            client,
            source,
        } = arrival;
        let shared = &self.shared;
        let found = match &self.store {
            Some(store) => {
                let want = if header_exchange.is_some() { Want::Values } else { Want::Meta };
                let calls = Calls::new(&**store, shared);
                let tokens = verify(&cookies, shared);
                // Boxed, so that a request whose session is cached is small.
                if let Some(wait) = turn_within {
                    let look_up = LookUp { tokens: &tokens, want, calls, shared, source: &source };
                    Box::pin(look_up.in_turn(wait)).await
                } else if let Some(found) = look_up_cached(&tokens, want, calls, shared) {
                    Ok(found)
                } else {
                    let found = look_up(tokens, want, calls, shared, &source);
                    Box::pin(found).await.map_err(OpenError::Store)
                }
            }
            None => Ok(unseal(&cookies, shared)),
        };
        let Found { outcome, values, sealed, turn } = match found {
            Ok(found) => found,
            Err(error @ OpenError::Busy(_)) => return Err(error),
            Err(error) if on_error == OnError::Fail => return Err(error),
            Err(error) => {
                debug!(%error, "forwarding a request without its session");
                CookieOutcome::Unavailable.into()
            }
        };
        let (number, now) = (shared.in_flight.next_number(), shared.clock.now());
        self.count_use(&outcome, touch, now);
        let context = RequestContext { origin, touch, source, client, address, header_exchange };
        let request = InFlightRequest::new(number, outcome, context, sealed, now);
        self.record_without_session(&request);
        let guard = RequestGuard::new(self.session(Arc::new(request)));
        Ok(Opened { guard, values, turn })
    }

    fn count_use(&self, outcome: &CookieOutcome, touch: TouchPolicy, now: Timestamp) {
        if let CookieOutcome::Session { id, signed_by, .. } = outcome {
            self.shared.session_tokens.count(signed_by.position());
            if touch == TouchPolicy::OnUse {
                self.shared.metrics.session_used(id.part(), now);
            }
        }
    }

    /// Records why a request has no session although its browser may have one.
    fn record_without_session(&self, request: &InFlightRequest) {
        let event = match request.outcome {
            CookieOutcome::Ambiguous => Event::AmbiguousCookie,
            _ if request.is_withheld() => Event::CookieWithheld,
            _ => return,
        };
        let entry = Entry::new(event, By::Request);
        self.shared.audit.record(entry.from(request.context.source.clone()));
    }

    /// Finds the request that a token of `instance` leads to. `None` if this instance forwarded it,
    /// and it ended longer than `request_token_linger` ago, or was forgotten because too many had ended.
    pub(crate) fn find(&self, token: RequestToken, instance: &Instance) -> Option<TokenLookup> {
        let shared = &self.shared;
        let (now, linger) = (shared.clock.now(), shared.policy.request_token_linger);
        if instance.number != shared.instance.number {
            let bound = match (token.bound, &self.store) {
                (Bound::Session(id, generation), Some(store))
                    if token.lingers(now, linger, SLACK) =>
                {
                    Some(BoundSession { store: Arc::clone(store), id, generation })
                }
                _ => None,
            };
            let (shared, touches) = (Arc::clone(shared), token.touches);
            return Some(TokenLookup::Elsewhere(RemoteSession { shared, bound, touches }));
        }
        let request = match shared.in_flight.find(token) {
            Lookup::Found(request) => {
                let lingers = request.ended_at().is_none_or(|ended_at| now <= ended_at + linger);
                lingers.then_some(request)
            }
            // The request has ended, and lasted no longer than the slack.
            Lookup::NotKept => token
                .lingers(now, linger, SLACK)
                .then(|| Arc::new(InFlightRequest::ended(token, EndedRequest::unchanged(token)))),
            Lookup::Evicted => None,
        };
        request.map(|request| TokenLookup::Here(self.session(request)))
    }

    /// Returns the session of a request, over this worker's connections.
    fn session(&self, request: Arc<InFlightRequest>) -> RequestSession {
        let storage = match (&self.store, &request.sealed) {
            (Some(store), _) => Storage::Store(Arc::clone(store)),
            (None, Some(sealed)) => Storage::Cookie(Arc::clone(sealed)),
            // The request has ended, and its session left with the response.
            (None, None) => {
                let name = &self.shared.attributes.name;
                Storage::Cookie(Arc::new(CookieBacked::new(name, None)))
            }
        };
        RequestSession { request, storage, shared: Arc::clone(&self.shared) }
    }
}
