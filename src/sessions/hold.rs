//! Held cookies of a request: those that the site is given, and those that its response sets.
//!
//! A token opens what the browser's jar would have held when that token was given out. So a token that a rotation has
//! replaced a moment ago opens the replaced values, and what the site sets through it is dropped. Only if the answer to
//! a log-in seems lost does such a request start a session of its own.

use std::time::Duration;

use super::failure::Failure;
use super::request::{Binding, CookieOutcome, State, TokenOrigin, draw_id};
use super::request_session::RequestSession;
use super::snapshot::{ChangeRequest, Snapshot};
use crate::log::limited;
use crate::metrics::Event;
use crate::random;
use crate::secret::Secret;
use crate::session::held::{CookieRequest, HeldChange, HeldKeys, HeldOp, ReplacedFor, SetCookie};
use crate::session::id::Id;
use crate::session::navigation::Navigation;
use crate::session::patch::{Patch, Refusal, Rotate};
use crate::session::record::Meta;
use crate::store::Want;

/// Time after a rotation until a page that is opened with the replaced token starts a session of its own: the answer
/// with the new one was lost.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);

/// What a response does to the held cookies of its session.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldResponse {
    pub(crate) cookies: Vec<SetHeld>,
    /// It deletes all cookies (`Clear-Site-Data`), before it sets those.
    pub(crate) clears: bool,
    pub(crate) log_in: LogIn,
    /// The route names the requests that rotate the token.
    pub(crate) has_rotate_on: bool,
    /// Cookies were taken out of the response, even if none of them can be kept.
    pub(crate) is_taken_from: bool,
}

/// Whether a request may be a log-in, apart from what [`Navigation`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogIn {
    #[default]
    No,
    /// It may be a form, by a browser that does not say so.
    Form,
    /// The route names it: it rotates the token, whatever it changes.
    Named,
}

/// A held cookie that a response sets or deletes.
#[derive(Clone, Debug)]
pub(crate) struct SetHeld {
    pub(crate) cookie: SetCookie,
    /// Whether a changed value rotates the token.
    pub(crate) rotates: bool,
}

impl HeldResponse {
    /// Returns whether it changes no cookie.
    pub(crate) fn is_empty(&self) -> bool {
        self.cookies.is_empty() && !self.clears
    }

    fn rotates(&self) -> bool {
        self.log_in == LogIn::Named
    }

    /// Returns the number of changes, for the count of dropped ones.
    fn len(&self) -> u64 {
        self.cookies.len() as u64 + u64::from(self.clears)
    }

    fn ops(&self) -> Vec<HeldOp> {
        let set = |SetHeld { cookie, rotates }: &SetHeld| HeldOp::Set {
            cookie: cookie.clone(),
            nonce: random::bytes(),
            rotates: *rotates,
        };
        let clear = self.clears.then_some(HeldOp::Clear);
        clear.into_iter().chain(self.cookies.iter().map(set)).collect()
    }
}

impl RequestSession {
    /// Returns the names and values of the held cookies that the site is given with this request.
    pub(crate) fn held_cookies(&self, request: CookieRequest<'_>) -> Vec<(&str, Secret)> {
        match &self.request.outcome {
            CookieOutcome::Session { id, meta, .. } => {
                let held = meta.held.as_ref();
                held.map_or_else(Vec::new, |held| held.given_to(request, self.held_keys(*id)))
            }
            CookieOutcome::Stale { id, generation, meta } => {
                let held = meta.held.as_ref().filter(|_| self.is_within_grace(meta));
                held.map_or_else(Vec::new, |held| {
                    let since = meta.generation_since;
                    held.replaced_for(*generation, since, request, self.held_keys(*id))
                })
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether a response may do something to held cookies: one that changes none still rotates the token on
    /// some routes, and may start a session in place of one whose answer was lost.
    pub(crate) fn is_affected_by(&self, response: &HeldResponse) -> bool {
        let may_be_lost =
            matches!(&self.request.outcome, CookieOutcome::Stale { meta, .. } if meta.unpresented);
        response.is_taken_from || !response.is_empty() || response.rotates() || may_be_lost
    }

    /// Applies what the response does to held cookies, and returns whether that changed the session. What cannot be
    /// kept because of another request is dropped and counted.
    pub(super) async fn hold(
        &self,
        state: &mut State,
        response: &HeldResponse,
    ) -> Result<bool, Failure> {
        let patch = match state.binding {
            Binding::Session { id, .. } => match self.held_patch(state, id, response) {
                Some(patch) => Some(patch),
                None => return Ok(false),
            },
            Binding::None(_) => self.first_patch(response),
            Binding::Stale(..) => self.recovery(response).await,
            Binding::Ended => self.recovery_of_ended(response),
            Binding::Ambiguous | Binding::Unavailable => None,
        };
        let Some(patch) = patch else {
            self.drop_held(response);
            return Ok(false);
        };
        if matches!(state.binding, Binding::Stale(..) | Binding::Ended) {
            state.binding = Binding::None(draw_id());
        }
        match Box::pin(self.apply_locked(state, ChangeRequest::new(&patch))).await {
            Ok(changed) => {
                log_excess(response, &changed);
                Ok(true)
            }
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended | Refusal::Rotated)) => {
                self.hold_late(state, response).await
            }
            Err(failure) => Err(failure),
        }
    }

    /// Drops what a response sets whose token was rotated away meanwhile, unless it seems a log-in whose answer the
    /// browser will see instead of the other one's, as after a double click.
    async fn hold_late(&self, state: &mut State, response: &HeldResponse) -> Result<bool, Failure> {
        let Some(patch) = self.recovery(response).await else {
            self.drop_held(response);
            return Ok(false);
        };
        state.binding = Binding::None(draw_id());
        self.apply_locked(state, ChangeRequest::new(&patch)).await.map(|_| true)
    }

    /// Counts what a response sets and is not kept. To delete cookies of a visitor without a session is nothing.
    pub(crate) fn drop_held(&self, response: &HeldResponse) {
        let now = self.shared.clock.now();
        let is_nothing = self.request.outcome == CookieOutcome::None
            && response.cookies.iter().all(|set| set.cookie.deletes(now));
        if !is_nothing {
            self.shared.metrics.events(Event::HeldCookieDropped, response.len());
        }
    }

    /// Returns the change of the session that the request is bound to; `None` if there is none, as with a site that sets
    /// the same value in each response.
    fn held_patch(&self, state: &State, id: Id, response: &HeldResponse) -> Option<Patch> {
        let known = self.known(state, id);
        let may_rotate = state.token == TokenOrigin::Presented;
        // A session that this request has made for a patch, without a cookie of its own, gets one.
        let is_withheld =
            known.is_some_and(|meta| meta.withheld) && self.first_patch(response).is_some();
        let rotate = ((response.rotates() && may_rotate) || is_withheld).then_some(Rotate::Token);
        let replaced_for = self.replaced_for(id, known);
        let change = HeldChange { ops: response.ops(), may_rotate, replaced_for };
        let held = (!response.is_empty() && !self.is_known(&change, id, known)).then_some(change);
        let changes_any = held.is_some() || rotate.is_some();
        changes_any.then(|| Patch { rotate, held, ..Patch::default() })
    }

    /// Returns the tokens that may be given what a change of the session replaces.
    fn replaced_for(&self, id: Id, known: Option<&Meta>) -> Option<ReplacedFor> {
        let (from, opened) = match &self.request.outcome {
            // A session in a cookie is never rotated away.
            _ if self.is_in_cookie() => return None,
            CookieOutcome::Session { id: opened, meta, .. } if *opened == id => (meta.floor, meta),
            // It has joined the log-in of another request.
            CookieOutcome::Stale { id: opened, generation, meta } if *opened == id => {
                (*generation, meta)
            }
            _ => return None,
        };
        Some(ReplacedFor { from, since: known.unwrap_or(opened).generation_since })
    }

    /// Returns whether a change leaves everything as the request knows it. Only if a change by another request would
    /// have rotated the token, so that this one would be refused: the last one wins otherwise.
    fn is_known(&self, change: &HeldChange, id: Id, known: Option<&Meta>) -> bool {
        let (grace, now) = (self.shared.policy.rotation_grace, self.shared.clock.now());
        let held = known.and_then(|meta| meta.held.as_deref());
        change.ops.iter().all(|op| op.rotates_and_sets(now))
            && held.is_some()
            && change.apply(held, self.held_keys(id), grace, now).held.as_deref() == held
    }

    /// Returns the patch that creates a session for what the response sets; `None` if it sets nothing, or its cookie
    /// would be of no use.
    fn first_patch(&self, response: &HeldResponse) -> Option<Patch> {
        // A request whose cookie the browser has withheld may have a session. With `rotate_on`, only a log-in by POST
        // from another site replaces it.
        let is_kept = !self.request.is_withheld() || !response.has_rotate_on || response.rotates();
        self.creation(response.ops()).filter(|_| is_kept)
    }

    /// Returns the patch that starts a session in place of one whose token was replaced, if the answer with the new
    /// one seems lost: it has the replaced values, and what this response sets.
    async fn recovery(&self, response: &HeldResponse) -> Option<Patch> {
        let (id, generation) = match &self.request.outcome {
            CookieOutcome::Session { id, generation, .. }
            | CookieOutcome::Stale { id, generation, .. } => (*id, *generation),
            _ => return None,
        };
        // As it is now: since the request arrived, the new token may have been presented, or the session ended.
        match self.calls().ok()?.load_live(id, Want::Meta).await.ok()? {
            Some(record) => self.recovery_from(id, generation, &record.meta, response),
            None if self.may_log_in(response) => self.creation(response.ops()),
            None => None,
        }
    }

    fn recovery_from(
        &self,
        id: Id,
        generation: u32,
        meta: &Meta,
        response: &HeldResponse,
    ) -> Option<Patch> {
        let now = self.shared.clock.now();
        let held = meta.held.as_ref().filter(|_| self.is_within_grace(meta));
        let replaced = held.map_or_else(Vec::new, |held| {
            held.to_replaced(generation, meta.generation_since, self.held_keys(id), random::bytes)
        });
        let changes_one = response.cookies.iter().any(|set| {
            !set.cookie.deletes(now) && !replaced.iter().any(|old| old.sets_same(&set.cookie))
        });
        let logs_in = self.may_log_in(response) && changes_one;
        let is_lost = self.request.context.origin.navigation != Navigation::None
            && meta.unpresented
            && self.request.token.forwarded_at >= meta.generation_since + LOST_AFTER;
        if !logs_in && !is_lost {
            return None;
        }
        self.creation(replaced.into_iter().chain(response.ops()).collect())
    }

    /// Returns whether the request may be a log-in: a form, or one of those that the route names.
    fn may_log_in(&self, response: &HeldResponse) -> bool {
        self.request.context.origin.navigation == Navigation::Form || response.log_in != LogIn::No
    }

    /// Returns the patch that starts a session after the end of another one, by the same rules.
    fn recovery_of_ended(&self, response: &HeldResponse) -> Option<Patch> {
        let CookieOutcome::Ended { until } = self.request.outcome else { return None };
        let logs_in = self.may_log_in(response);
        let arrived_at = self.request.token.forwarded_at;
        let is_lost = self.request.context.origin.navigation != Navigation::None
            && arrived_at + self.shared.policy.rotation_grace >= until + LOST_AFTER;
        if !logs_in && !is_lost {
            return None;
        }
        self.creation(response.ops())
    }

    /// Returns the patch that creates a session which holds these cookies; `None` if there are none.
    fn creation(&self, ops: Vec<HeldOp>) -> Option<Patch> {
        let change = HeldChange { ops, may_rotate: false, replaced_for: None };
        let sets_any = !change.only_removes(self.shared.clock.now());
        sets_any.then(|| Patch { held: Some(change), ..Patch::default() })
    }

    fn is_within_grace(&self, meta: &Meta) -> bool {
        self.shared.clock.now() <= meta.generation_since + self.shared.policy.rotation_grace
    }

    fn held_keys(&self, id: Id) -> HeldKeys<'_> {
        HeldKeys { ring: &self.shared.ring, id }
    }
}

/// Logs the cookies that a session does not keep because it has too many.
fn log_excess(response: &HeldResponse, changed: &Snapshot) {
    let Some((id, record)) = &changed.session else { return };
    let Some(held) = &record.meta.held else { return };
    let now = record.meta.last_seen_at;
    for SetHeld { cookie, .. } in &response.cookies {
        let name = &cookie.identity.name;
        if !cookie.deletes(now) && !held.names().any(|kept| kept == name) {
            limited!(warn, "held_excess", session = %id, cookie = name, "session holds too many cookies; this one is not kept");
        }
    }
}
