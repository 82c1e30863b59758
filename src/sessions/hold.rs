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
use crate::session::held::{CookieRequest, HeldChange, HeldKeys, HeldOp, SetCookie};
use crate::session::id::Id;
use crate::session::navigation::Navigation;
use crate::session::patch::{Patch, Refusal, Rotate};
use crate::session::record::Meta;

/// Time after a rotation until a page that is opened with the replaced token starts a session of its own: the answer
/// with the new one was lost.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// What a response does to the held cookies of its session.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldResponse {
    pub(crate) cookies: Vec<SetHeld>,
    /// It deletes all cookies (`Clear-Site-Data`), before it sets those.
    pub(crate) clears: bool,
    /// The route rotates the token at this request, whatever it changes.
    pub(crate) rotates: bool,
    /// The route names the requests that rotate the token.
    pub(crate) has_rotate_on: bool,
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
        !response.is_empty() || response.rotates || may_be_lost
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
            Binding::Stale(..) => self.recovery(response),
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
                self.drop_held(response);
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
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
        let may_rotate = state.token == TokenOrigin::Presented;
        let rotate = (response.rotates && may_rotate).then_some(Rotate::Token);
        let replaced_from = self.presented_meta_of(id).map(|meta| meta.floor);
        let change = HeldChange { ops: response.ops(), may_rotate, replaced_from };
        let known = self.known(state, id).map(|meta| meta.held.as_ref());
        let is_same = known.is_some_and(|known| {
            let held = known.map(|held| &**held);
            let after = change.apply(held, self.held_keys(id), self.shared.clock.now());
            after.held.as_ref() == known
        });
        let held = (!response.is_empty() && !is_same).then_some(change);
        let changes_any = held.is_some() || rotate.is_some();
        changes_any.then(|| Patch { rotate, held, ..Patch::default() })
    }

    /// Returns the patch that creates a session for what the response sets; `None` if it sets nothing, or its cookie
    /// would be of no use.
    fn first_patch(&self, response: &HeldResponse) -> Option<Patch> {
        // A request whose cookie the browser has withheld may have a session. With `rotate_on`, only a log-in by POST
        // from another site replaces it.
        let is_kept = !self.request.is_withheld() || !response.has_rotate_on || response.rotates;
        self.creation(response.ops()).filter(|_| is_kept)
    }

    /// Returns the patch that starts a session in place of one whose token was replaced, if the answer with the new
    /// one seems lost: it has the replaced values, and what this response sets.
    fn recovery(&self, response: &HeldResponse) -> Option<Patch> {
        let CookieOutcome::Stale { id, generation, meta } = &self.request.outcome else {
            return None;
        };
        let now = self.shared.clock.now();
        let held = meta.held.as_ref().filter(|_| self.is_within_grace(meta));
        let replaced = held.map_or_else(Vec::new, |held| {
            let keys = self.held_keys(*id);
            held.to_replaced(*generation, meta.generation_since, keys, random::bytes)
        });
        let navigation = self.request.context.origin.navigation;
        let changes_one = response.cookies.iter().any(|set| {
            !set.cookie.deletes(now) && !replaced.iter().any(|old| old.sets_same(&set.cookie))
        });
        let logs_in = (navigation == Navigation::Form || response.rotates) && changes_one;
        let is_lost = navigation != Navigation::None
            && meta.unpresented
            && now >= meta.generation_since + LOST_AFTER;
        if !logs_in && !is_lost {
            return None;
        }
        self.creation(replaced.into_iter().chain(response.ops()).collect())
    }

    /// Returns the patch that starts a session after the end of another one, by the same rules.
    fn recovery_of_ended(&self, response: &HeldResponse) -> Option<Patch> {
        let CookieOutcome::Ended { until } = self.request.outcome else { return None };
        let now = self.shared.clock.now();
        let navigation = self.request.context.origin.navigation;
        let logs_in = navigation == Navigation::Form || response.rotates;
        let is_lost = navigation != Navigation::None
            && now + self.shared.policy.rotation_grace >= until + LOST_AFTER;
        if !logs_in && !is_lost {
            return None;
        }
        self.creation(response.ops())
    }

    /// Returns the patch that creates a session which holds these cookies; `None` if there are none.
    fn creation(&self, ops: Vec<HeldOp>) -> Option<Patch> {
        let change = HeldChange { ops, may_rotate: false, replaced_from: None };
        let sets_any = !change.only_removes(self.shared.clock.now());
        sets_any.then(|| Patch { held: Some(change), ..Patch::default() })
    }

    fn is_within_grace(&self, meta: &Meta) -> bool {
        self.shared.clock.now() <= meta.generation_since + self.shared.policy.rotation_grace
    }

    /// Returns the session `id` as it was when the request arrived, if its cookie opened it.
    fn presented_meta_of(&self, id: Id) -> Option<&Meta> {
        match &self.request.outcome {
            CookieOutcome::Session { id: presented, meta, .. } if *presented == id => Some(meta),
            _ => None,
        }
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
