//! The response's head: the last change, the use written down, and the one Set-Cookie.

use http::HeaderValue;
use tracing::debug;

use super::change::{ChangeRequest, Counts};
use super::exchange::{Binding, CookieOutcome, Exchange, Phase, State, TouchPolicy};
use super::{Failure, Sessions, Shared};
use crate::metrics::{Event, StoreOperation};
use crate::session::id::Id;
use crate::session::key_ring::SignedBy;
use crate::session::navigation::Navigation;
use crate::session::patch::{Patch, Refusal, Use};
use crate::session::policy::Create;
use crate::session::record::{Entry, Meta};
use crate::session::rotation::Verdict;
use crate::session::token::CookieToken;
use crate::store::Want;

/// What a commit needs to know of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseKind {
    /// A page, a redirect, a refusal: what a browser takes as an answer.
    Normal,
    /// 304: it carries no renewal.
    NotModified,
    /// 5xx, the upstream's or ours: it makes no session by itself.
    Failed,
}

/// What the response tells the browser of its cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CookieLine {
    /// Nothing.
    None,
    /// This Set-Cookie.
    Line(HeaderValue),
}

/// The cookie that a response owes, before it is written out.
enum Owed {
    Nothing,
    Set(Id, u32, Box<Meta>),
    Delete,
}

impl Sessions {
    /// Applies what the upstream asked for by header, waits for calls that are running, and takes
    /// the response's head: from here on nothing can set a cookie for this request.
    ///
    /// The cookie line goes out whatever became of the patch: it speaks for what was done before.
    pub async fn commit(
        &self,
        exchange: &Exchange,
        head: ResponseKind,
        patch: Option<&Patch>,
    ) -> (CookieLine, Result<(), Failure>) {
        let mut state = exchange.state.write().await;
        let applied = match patch {
            Some(patch) => {
                let requested = ChangeRequest { patch, condition: None, want: Want::Meta };
                self.apply_to(exchange, &mut state, requested).await.map(drop)
            }
            None => Ok(()),
        };
        self.create_at_navigation(exchange, &mut state, head).await;
        state.phase = Phase::Committed;
        let fresh = patch.is_some() && applied.is_ok();
        let owed = self.owed(exchange, &state, head, fresh).await;
        (self.line(exchange, owed), applied)
    }

    /// Whether a patch that was refused for `failure` is to be dropped rather than to break a page:
    /// the visitor's own log-in is on its way, or its answer was lost.
    pub fn drops(&self, exchange: &Exchange, patch: &Patch, failure: &Failure) -> bool {
        exchange.origin.navigation == Navigation::Safe
            && patch.principal.is_none()
            && !patch.destroy
            && matches!(
                failure,
                Failure::Refused(Refusal::Gone | Refusal::Ended | Refusal::Rotated)
            )
    }

    async fn create_at_navigation(
        &self,
        exchange: &Exchange,
        state: &mut State,
        head: ResponseKind,
    ) {
        let at_navigation = self.shared.policy.create == Create::Navigation
            && exchange.origin.navigation != Navigation::None
            && matches!(exchange.presented, CookieOutcome::None | CookieOutcome::Unknown)
            && !exchange.is_withheld()
            && head == ResponseKind::Normal;
        let Binding::None(id) = state.binding else {
            return;
        };
        if !at_navigation || state.ended_own {
            return;
        }
        let requested =
            ChangeRequest { patch: &Patch::default(), condition: None, want: Want::Meta };
        match self.create(exchange, id, requested, Counts::Yes).await {
            Ok((id, record)) => state.bind_made(id, &record),
            Err(failure) => debug!(%failure, "a page goes out without a session of its own"),
        }
    }

    async fn owed(
        &self,
        exchange: &Exchange,
        state: &State,
        head: ResponseKind,
        fresh: bool,
    ) -> Owed {
        match state.binding {
            Binding::Session { id, generation, .. } if state.owes_cookie => {
                self.prove_changed(exchange, (id, generation), state).await;
                self.owed_for_change(exchange, (id, generation), state, fresh).await
            }
            Binding::Session { id, generation, .. } => {
                self.renewal(exchange, id, generation, head).await
            }
            Binding::None(_) if state.ended_own => Owed::Delete,
            Binding::None(_)
                if exchange.presented == CookieOutcome::Unknown
                    && exchange.origin.navigation != Navigation::None =>
            {
                Owed::Delete
            }
            _ => Owed::Nothing,
        }
    }

    /// The cookie of a session that this request made, joined, rotated or gave another lifetime;
    /// unless another request's rotation has gone over it meanwhile, or it is gone.
    ///
    /// A request that came with the generation before sets the one that stands: its own would
    /// overwrite a newer one in the browser. Of a session that the request made, and of one that
    /// it has changed at this very moment (`fresh`), all is known; another is read once more.
    async fn owed_for_change(
        &self,
        exchange: &Exchange,
        (id, generation): (Id, u32),
        state: &State,
        fresh: bool,
    ) -> Owed {
        let known = state.meta.clone();
        let meta = if fresh || state.made {
            known
        } else {
            let Ok(store) = self.store_of(exchange) else { return Owed::Nothing };
            match self.load_live(store, id, Want::Meta).await {
                Ok(record) => record.map(|record| record.meta),
                Err(error) => {
                    // The change was acknowledged, and its cookie is the only way back to it.
                    debug!(session = %id, %error, "a cookie goes out unchecked");
                    known
                }
            }
        };
        match meta {
            Some(meta) if !meta.rotated_away(generation) => {
                Owed::Set(id, generation.max(meta.generation), Box::new(meta))
            }
            _ => Owed::Nothing,
        }
    }

    /// Records that a session has come back through a request that has changed its cookie since; a
    /// log-in has said so itself. A failure here is no failure of the request.
    async fn prove_changed(&self, exchange: &Exchange, (id, generation): (Id, u32), state: &State) {
        let is_marked =
            exchange.id() == Some(id) && state.meta.as_ref().is_some_and(|meta| meta.unproven);
        let Ok(store) = self.store_of(exchange) else { return };
        if !is_marked {
            return;
        }
        let (policy, now) = (&self.shared.policy, self.shared.clock.now());
        let used = Use { generation, touches: false, sets_cookie: false, proves: true, now };
        if let Err(error) =
            self.timed(StoreOperation::RecordUse, store.record_use(id, used, policy)).await
        {
            debug!(session = %id, %error, "failed to record that a session came back");
        }
    }

    /// Writes the use down where that is due, and renews the cookie where that is due and its
    /// generation still stands. A failure here is no failure of the request.
    async fn renewal(
        &self,
        exchange: &Exchange,
        id: Id,
        generation: u32,
        head: ResponseKind,
    ) -> Owed {
        let CookieOutcome::Session { id: presented, verdict, signed_by, meta, .. } =
            &exchange.presented
        else {
            return Owed::Nothing;
        };
        if *presented != id {
            return Owed::Nothing;
        }
        let Ok(store) = self.store_of(exchange) else { return Owed::Nothing };
        let (policy, now) = (&self.shared.policy, self.shared.clock.now());
        let renews = *verdict != Verdict::Previous && head != ResponseKind::NotModified;
        let touches = exchange.touch == TouchPolicy::OnUse && policy.touch_is_due(meta, now);
        // What a cookie carries cannot be rotated away, and is touched by setting it.
        let rotates = renews
            && *verdict == Verdict::Current
            && !self.in_cookies()
            && policy.rotation_is_due(meta, now);
        let slides = renews
            && touches
            && (self.in_cookies()
                || *signed_by != SignedBy::First
                || policy.cookie_is_due(meta, now));
        // Whatever prolongs sessions here: this prolongs nothing.
        let proves = meta.unproven;
        let sets_cookie = slides && !rotates;
        let used = Use { generation, touches, sets_cookie, proves, now };
        let entry = if touches || proves || *verdict == Verdict::Next {
            self.timed(StoreOperation::RecordUse, store.record_use(id, used, policy)).await
        } else if rotates {
            self.load(store, id, Want::Meta).await
        } else {
            return Owed::Nothing;
        };
        let meta = match entry {
            Ok(Some(Entry::Live(record))) if self.stands(&record.meta, generation) => record.meta,
            Ok(_) => return Owed::Nothing,
            Err(error) => {
                debug!(session = %id, %error, "a use was not written down");
                return Owed::Nothing;
            }
        };
        match (rotates, slides) {
            // Another response has set the old generation's cookie since this request came.
            (true, _) if !policy.rotation_is_due(&meta, now) => Owed::Nothing,
            (true, _) => {
                self.shared.metrics.event(Event::RenewalIssued);
                Owed::Set(id, generation.saturating_add(1), Box::new(meta))
            }
            (false, true) => Owed::Set(id, generation, Box::new(meta)),
            (false, false) => Owed::Nothing,
        }
    }

    /// Whether a session is alive at this generation.
    fn stands(&self, meta: &Meta, generation: u32) -> bool {
        let Shared { policy, clock, .. } = &*self.shared;
        meta.generation == generation && policy.is_alive(meta, clock.now())
    }

    fn line(&self, exchange: &Exchange, owed: Owed) -> CookieLine {
        let shared = &self.shared;
        match owed {
            Owed::Nothing => CookieLine::None,
            Owed::Delete => CookieLine::Line(shared.attributes.delete()),
            Owed::Set(id, generation, meta) => {
                let value = match &exchange.carried {
                    None => {
                        let token = CookieToken { id, generation };
                        Some(token.sign(&shared.ring, &shared.attributes.name))
                    }
                    Some(carried) => carried.seal(id, &shared.ring),
                };
                let max_age = shared.policy.cookie_age(&meta, shared.clock.now());
                value.map_or(CookieLine::None, |value| {
                    CookieLine::Line(shared.attributes.set(&value, max_age))
                })
            }
        }
    }
}
