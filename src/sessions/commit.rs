//! Commits a request's session: the last change, the record of the use, and the one Set-Cookie.

use std::pin::pin;

use http::HeaderValue;
use tracing::debug;

use super::create::AddressLimit;
use super::failure::Failure;
use super::hold::HeldResponse;
use super::request::{Binding, CookieOutcome, Phase, State, TouchPolicy};
use super::request_session::{RequestSession, Storage};
use super::snapshot::ChangeRequest;
use crate::metrics::Event;
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::navigation::Navigation;
use crate::session::patch::{Patch, Proof, Refusal, Use};
use crate::session::policy::Create;
use crate::session::record::{Entry, Meta};
use crate::session::rotation::Verdict;
use crate::session::token::CookieToken;
use crate::store::Want;
use crate::time::Timestamp;

/// The kinds of responses that the decision on the cookie distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseKind {
    /// 304: it does not renew the cookie, because caches would combine it with a stored response
    /// (RFC 9111, section 4.3.4).
    NotModified,
    /// 5xx, from the upstream or from the proxy: no session is created for it.
    Failed,
    /// Any other status: a page, a redirect, a 4xx.
    Normal,
}

/// The result of a commit.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The line of the Set-Cookie.
    pub(crate) cookie: Option<HeaderValue>,
    /// The result of the patch.
    pub(crate) patched: Result<(), Failure>,
    /// The result of the changes of held cookies.
    pub(crate) held: Result<(), Failure>,
}

impl RequestSession {
    /// Waits for running calls, applies the upstream's patch and its changes of held cookies, records the use and
    /// returns the Set-Cookie. Afterwards this request cannot set a cookie.
    ///
    /// The cookie is returned even if a change failed, because it is owed for earlier ones.
    pub(crate) async fn commit(
        &self,
        kind: ResponseKind,
        patch: Option<&Patch>,
        held: Option<&HeldResponse>,
    ) -> Committed {
        let mut state = self.request.state.write().await;
        let patched = match patch {
            Some(patch) => {
                let applied = self.apply_locked(&mut state, ChangeRequest::new(patch));
                Box::pin(applied).await.map(drop)
            }
            None => Ok(()),
        };
        let holding = match held {
            Some(held) => Box::pin(self.hold_after(&mut state, held, patch, &patched)).await,
            None => Ok(false),
        };
        if let Some(id) = self.due_creation(&state, kind) {
            Box::pin(self.create_on_navigation(&mut state, id)).await;
        }
        state.phase = Phase::Committed;
        let decision = CookieDecision { session: self, state: &state, kind };
        let is_changed = (patch.is_some() && patched.is_ok()) || matches!(holding, Ok(true));
        let pending = pin!(decision.pending_cookie(is_changed)).await;
        Committed { cookie: self.render_cookie(pending), patched, held: holding.map(drop) }
    }

    /// Applies the changes of held cookies after those of the patch, unless the patch has failed the response.
    async fn hold_after(
        &self,
        state: &mut State,
        held: &HeldResponse,
        patch: Option<&Patch>,
        patched: &Result<(), Failure>,
    ) -> Result<bool, Failure> {
        match (patch, patched) {
            (Some(patch), Err(failure)) if !self.should_drop_patch(patch, failure) => {
                self.drop_held(held);
                Ok(false)
            }
            _ => self.hold(state, held).await,
        }
    }

    /// Returns whether to drop a refused patch instead of failing the response: the patch says so, or a page was
    /// loaded.
    ///
    /// The session was rotated or has ended while the page was loaded, e.g. by a log-in in another tab
    /// whose response is still in transit. The visitor sees the page, and the next one is right.
    pub(crate) fn should_drop_patch(&self, patch: &Patch, failure: &Failure) -> bool {
        let Failure::Refused(refusal) = failure else { return false };
        match refusal {
            Refusal::Gone | Refusal::Ended | Refusal::Rotated => {
                let is_page = self.request.context.origin.navigation == Navigation::Safe
                    && patch.principal.is_none()
                    && !patch.destroy;
                patch.drops_if_lost || is_page
            }
            Refusal::VersionMoved | Refusal::NotAnArray(_) | Refusal::NotAnObject(_) => {
                patch.drops_if_lost
            }
            _ => false,
        }
    }

    /// Returns the id of the session to create because the visitor opens a page.
    fn due_creation(&self, state: &State, kind: ResponseKind) -> Option<Id> {
        let is_due = self.shared.policy.create == Create::Navigation
            && self.request.context.origin.navigation != Navigation::None
            && matches!(self.request.outcome, CookieOutcome::None | CookieOutcome::Unknown)
            && !self.request.is_withheld()
            && kind == ResponseKind::Normal
            && !state.ended_own;
        match state.binding {
            Binding::None(id) if is_due => Some(id),
            _ => None,
        }
    }

    async fn create_on_navigation(&self, state: &mut State, id: Id) {
        let patch = Patch::default();
        match self.create(id, ChangeRequest::new(&patch), AddressLimit::Counts).await {
            Ok((id, record)) => state.bind_created(id, &record),
            Err(failure) => debug!(%failure, "could not create a session on navigation"),
        }
    }

    fn render_cookie(&self, pending: PendingCookie) -> Option<HeaderValue> {
        let shared = &self.shared;
        match pending {
            PendingCookie::None => None,
            PendingCookie::Delete => Some(shared.attributes.delete()),
            PendingCookie::Set { id, generation, meta } => {
                let value = match &self.storage {
                    Storage::Store(_) => {
                        let token = CookieToken { id, generation };
                        token.sign(&shared.ring, &shared.attributes.name)
                    }
                    Storage::Cookie(cookie) => cookie.seal(id, &shared.ring)?,
                };
                let max_age = shared.policy.cookie_age(&meta, shared.clock.now());
                Some(shared.attributes.set(&value, max_age))
            }
        }
    }
}

/// The cookie that a response has to set.
enum PendingCookie {
    None,
    Set { id: Id, generation: u32, meta: Box<Meta> },
    Delete,
}

/// The decision on the response's one Set-Cookie.
struct CookieDecision<'a> {
    session: &'a RequestSession,
    state: &'a State,
    kind: ResponseKind,
}

impl CookieDecision<'_> {
    /// Returns the cookie to set. `just_changed`: the session was changed by this commit.
    async fn pending_cookie(&self, just_changed: bool) -> PendingCookie {
        let request = &self.session.request;
        match self.state.binding {
            Binding::Session { id, generation, .. } if self.state.owes_cookie => {
                Box::pin(self.record_proof(id, generation)).await;
                Box::pin(self.owed_cookie(id, generation, just_changed)).await
            }
            Binding::Session { id, generation, .. } => {
                pin!(self.record_use_and_renew(id, generation)).await
            }
            Binding::None(_) if self.state.ended_own => PendingCookie::Delete,
            Binding::None(_)
                if request.outcome == CookieOutcome::Unknown
                    && request.context.origin.navigation != Navigation::None =>
            {
                PendingCookie::Delete
            }
            _ => PendingCookie::None,
        }
    }

    /// Returns the cookie of a session that this request created, joined, rotated or gave another
    /// lifetime, unless another request has rotated or ended the session since.
    ///
    /// A request that came with the previous generation sets the current one: its own would
    /// overwrite a newer cookie in the browser. A session that the request created or has just
    /// changed is known; any other is loaded again.
    async fn owed_cookie(&self, id: Id, generation: u32, just_changed: bool) -> PendingCookie {
        let known = self.state.meta.clone();
        let meta = if just_changed || self.state.is_new() {
            known
        } else {
            let Ok(calls) = self.session.calls() else { return PendingCookie::None };
            match calls.load_live(id, Want::Meta).await {
                Ok(record) => record.map(|record| record.meta),
                Err(error) => {
                    // The change was acknowledged, and its cookie is the only way back to it.
                    debug!(session = %id, %error, "setting the cookie without re-validating the session");
                    known
                }
            }
        };
        match meta {
            Some(meta) if !meta.rotated_away(generation) => {
                let generation = generation.max(meta.generation);
                PendingCookie::Set { id, generation, meta: Box::new(meta) }
            }
            _ => PendingCookie::None,
        }
    }

    /// Clears `unproven` of a session that the browser has presented, if this request has changed its
    /// cookie; otherwise the record of the use does that. A log-in has cleared it itself. A failure does
    /// not fail the request.
    async fn record_proof(&self, id: Id, generation: u32) {
        let is_unproven =
            self.session.presented_id().is_some_and(|presented| presented.place == id)
                && self.state.meta.as_ref().is_some_and(|meta| meta.unproven);
        let Ok(calls) = self.session.calls() else { return };
        if !is_unproven {
            return;
        }
        let now = self.session.shared.clock.now();
        let used =
            Use { generation, touches: false, sets_cookie: false, proves: Proof::Session, now };
        if let Err(error) = calls.record_use(id, used).await {
            debug!(session = %id, %error, "failed to record that a session came back");
        }
    }

    /// Records the use if that is due, and renews the cookie if that is due and its generation is
    /// still current. A failure does not fail the request.
    async fn record_use_and_renew(&self, id: Id, generation: u32) -> PendingCookie {
        let CookieOutcome::Session { id: presented, verdict, signed_by, meta, .. } =
            &self.session.request.outcome
        else {
            return PendingCookie::None;
        };
        if *presented != id {
            return PendingCookie::None;
        }
        let Ok(calls) = self.session.calls() else { return PendingCookie::None };
        let (policy, now) = (&self.session.shared.policy, self.session.shared.clock.now());
        let touches = self.touch() == TouchPolicy::OnUse && policy.touch_is_due(meta, now);
        let renewal = self.due_renewal(*verdict, *signed_by, meta, now);
        let proves = if meta.unproven || meta.unpresented { Proof::Token } else { Proof::None };
        let sets_cookie = renewal == Renewal::Slide;
        let used = Use { generation, touches, sets_cookie, proves, now };
        // A token of the next generation proves that the new cookie arrived: recording its use completes the
        // rotation.
        let entry = if touches || proves != Proof::None || *verdict == Verdict::Next {
            calls.record_use(id, used).await
        } else if renewal == Renewal::Rotate {
            calls.load(id, Want::Meta).await
        } else {
            return PendingCookie::None;
        };
        let meta = match entry {
            Ok(Some(Entry::Live(record)))
                if record.meta.generation == generation
                    && policy.is_alive(&record.meta, self.session.shared.clock.now()) =>
            {
                Box::new(record.meta)
            }
            Ok(_) => return PendingCookie::None,
            Err(error) => {
                debug!(session = %id, %error, "failed to record session use");
                return PendingCookie::None;
            }
        };
        match renewal {
            Renewal::None => PendingCookie::None,
            Renewal::Slide => PendingCookie::Set { id, generation, meta },
            // Another response has set the cookie of this generation since the request arrived.
            Renewal::Rotate if !policy.rotation_is_due(&meta, now) => PendingCookie::None,
            Renewal::Rotate => {
                self.session.shared.metrics.event(Event::RenewalIssued);
                PendingCookie::Set { id, generation: generation.saturating_add(1), meta }
            }
        }
    }

    /// Returns the renewal that is due for a token, by the session that was loaded with it.
    fn due_renewal(
        &self,
        verdict: Verdict,
        signed_by: SignedBy,
        meta: &Meta,
        now: Timestamp,
    ) -> Renewal {
        let policy = &self.session.shared.policy;
        // The browser has a newer cookie than the previous generation's.
        if verdict == Verdict::Previous || self.kind == ResponseKind::NotModified {
            return Renewal::None;
        }
        // A cookie that carries its session cannot be rotated, and is touched by setting it.
        let is_in_cookie = self.session.is_in_cookie();
        if verdict == Verdict::Current && !is_in_cookie && policy.rotation_is_due(meta, now) {
            return Renewal::Rotate;
        }
        let is_touched = self.touch() == TouchPolicy::OnUse && policy.touch_is_due(meta, now);
        let is_due =
            is_in_cookie || signed_by != SignedBy::First || policy.cookie_is_due(meta, now);
        if is_touched && is_due { Renewal::Slide } else { Renewal::None }
    }

    fn touch(&self) -> TouchPolicy {
        self.session.request.context.touch
    }
}

/// A renewal of a session's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewal {
    None,
    /// The same generation, set again with a later expiry.
    Slide,
    /// The token of the next generation.
    Rotate,
}
