//! Changing the session of a request: one patch, whatever other requests have done to the session
//! since.

use std::error::Error as _;

use super::create::AddressLimit;
use super::failure::Failure;
use super::request::{Binding, CookieOutcome, State, TokenOrigin, TouchPolicy, draw_id};
use super::request_session::{RequestSession, Storage};
use super::snapshot::{ChangeRequest, Snapshot};
use crate::log::limited;
use crate::metrics::Event;
use crate::session::id::{Id, PublicId};
use crate::session::patch::{
    Applied, Authority, Change, Patch, PrincipalChange, Refusal, Replicated, Rotation, Tombstone,
};
use crate::session::record::{Entry, Meta, Principal, Record};

impl RequestSession {
    /// Changes the session. A change that returned `Ok` is in the store.
    pub(crate) async fn apply(&self, request: ChangeRequest<'_>) -> Result<Snapshot, Failure> {
        if !self.needs_cookie(request.patch) && !request.patch.destroy {
            // A change that keeps the binding may run in parallel with others of the same request.
            let state = self.request.state.read().await;
            if let Binding::Session { id, generation, .. } = state.binding {
                let authority = Authority::Request(generation);
                let applied = self.patch(&state, id, authority, request).await?;
                return Ok(Snapshot { is_new: state.is_new(), ..Snapshot::after(id, applied) });
            }
        }
        let mut state = self.request.state.write().await;
        self.apply_locked(&mut state, request).await
    }

    /// Changes the session under the lock of the request's state.
    pub(super) async fn apply_locked(
        &self,
        state: &mut State,
        request: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        if !self.request.takes_cookies(state) && self.needs_cookie(request.patch) {
            return Err(Failure::ResponseCommitted);
        }
        let Some(principal) = request.patch.log_in() else {
            return Update { session: self, state, request }.run().await;
        };
        let own = match state.binding {
            Binding::Session { id, .. } | Binding::Stale(id, _) => Some(id),
            Binding::None(_) | Binding::Ended | Binding::Ambiguous | Binding::Unavailable => None,
        };
        self.admit_log_in(principal, own).await?;
        let changed = Update { session: self, state, request }.run().await?;
        self.evict_oldest(principal, changed.session.as_ref().map(|(id, _)| *id)).await;
        Ok(changed)
    }

    /// Returns whether the browser needs another cookie after the patch: after each one, if the
    /// cookie carries the session itself.
    fn needs_cookie(&self, patch: &Patch) -> bool {
        patch.needs_cookie() || self.is_in_cookie()
    }

    /// Records the rotation that a patch has caused: a log-in, a log-out, or no more than that. Each counts as a rotation.
    fn record_rotation(
        &self,
        patch: &Patch,
        id: PublicId,
        meta: &Meta,
        former: Option<&Principal>,
    ) {
        let (event, principal) = match &patch.principal {
            Some(PrincipalChange::LogIn(_)) => (Event::LoggedIn, meta.principal.as_ref()),
            Some(PrincipalChange::LogOut) => (Event::LoggedOut, former),
            None => (Event::Rotated, meta.principal.as_ref()),
        };
        if event != Event::Rotated {
            self.shared.metrics.event(Event::Rotated);
        }
        self.record(event, id, principal);
    }

    pub(super) fn is_in_cookie(&self) -> bool {
        matches!(self.storage, Storage::Cookie(_))
    }

    /// Returns what the request has last read of the session that it is bound to.
    pub(super) fn known<'a>(&'a self, state: &'a State, id: Id) -> Option<&'a Meta> {
        let opened = match &self.request.outcome {
            CookieOutcome::Session { id, meta, .. } => Some((*id, &**meta)),
            _ => None,
        };
        let changed = state.session().zip(state.meta.as_ref());
        changed.or(opened).filter(|(of, _)| *of == id).map(|(_, meta)| meta)
    }

    async fn patch(
        &self,
        state: &State,
        id: Id,
        authority: Authority,
        request: ChangeRequest<'_>,
    ) -> Result<Applied, Failure> {
        let calls = self.calls()?;
        let change = Change {
            touches: self.request.context.touch == TouchPolicy::OnUse,
            tombstone: if self.request.takes_cookies(state) {
                Tombstone::Leave
            } else {
                Tombstone::None
            },
            known: self.known(state, id),
            ..request.to_change(id, authority, &self.shared)
        };
        calls.patch(id, change, request.want).await
    }
}

/// A change of a request's session, under the lock of the request's state.
struct Update<'a> {
    session: &'a RequestSession,
    state: &'a mut State,
    request: ChangeRequest<'a>,
}

impl Update<'_> {
    async fn run(mut self) -> Result<Snapshot, Failure> {
        let patch = self.request.patch;
        let logs_in = patch.log_in().is_some();
        match self.state.binding {
            Binding::None(id) if patch.only_removes() => self.remove_nothing(id),
            Binding::None(id) => self.create(id).await,
            Binding::Session { id, generation, .. } if patch.destroy && !patch.only_destroys() => {
                self.replace(id, Authority::Request(generation)).await
            }
            Binding::Session { id, generation, .. } => {
                self.patch_bound(id, Authority::Request(generation)).await
            }
            Binding::Stale(..) if patch.principal.is_none() && !patch.destroy => {
                Err(Refusal::Rotated.into())
            }
            Binding::Stale(id, generation) if patch.destroy && !patch.only_destroys() => {
                self.replace(id, Authority::Stale(generation)).await
            }
            Binding::Stale(id, generation) => {
                self.patch_bound(id, Authority::Stale(generation)).await
            }
            Binding::Ended if logs_in => self.create(draw_id()).await,
            Binding::Ended if patch.destroy || patch.logs_out() => self.start_again().await,
            Binding::Ended => Err(Refusal::Gone.into()),
            Binding::Ambiguous => Err(Failure::AmbiguousCookie),
            Binding::Unavailable => Err(Failure::NotLoaded),
        }
    }

    /// Changes the session that the request was opened with or has created. A log-in, a log-out and a destroy
    /// succeed even if other requests have ended it, and a log-in even if they have rotated it.
    async fn patch_bound(&mut self, id: Id, authority: Authority) -> Result<Snapshot, Failure> {
        let patch = self.request.patch;
        match self.patch(id, authority, self.request).await {
            Err(Failure::Refused(
                Refusal::Gone | Refusal::Ended | Refusal::Rotated | Refusal::OtherPrincipal,
            )) if patch.log_in().is_some() => self.create(draw_id()).await,
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended))
                if patch.only_destroys() || patch.logs_out() =>
            {
                self.start_again().await
            }
            result => result,
        }
    }

    /// Makes the change after the end of the session: it creates another, unless it only removes.
    async fn start_again(&mut self) -> Result<Snapshot, Failure> {
        if self.request.patch.only_removes() {
            self.state.unbind();
            return Ok(Snapshot::default());
        }
        self.create(draw_id()).await
    }

    /// Checks the conditions of a removal without a session, which changes nothing.
    fn remove_nothing(&self, id: Id) -> Result<Snapshot, Failure> {
        self.request.check_unversioned()?;
        let change = self.request.to_change(id, Authority::Service(0), &self.session.shared);
        change.begin(Meta::new(0, change.now))?;
        Ok(Snapshot::default())
    }

    /// Applies a patch to a session, and updates the request's binding.
    async fn patch(
        &mut self,
        id: Id,
        authority: Authority,
        request: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let Self { session, state, .. } = self;
        let former = session.known(state, id).and_then(|meta| meta.principal.clone());
        let applied = session.patch(state, id, authority, request).await?;
        let meta = &applied.record.meta;
        let generation = meta.generation;
        let is_live = matches!(applied.entry, Some(Entry::Live(_)));
        if is_live && applied.rotation == Rotation::None && authority.is_away(meta) {
            // A token that was rotated away has logged out: it opens the session no more than before.
            return Ok(Snapshot::default());
        }
        let own = matches!(state.binding, Binding::Session { own: true, .. } | Binding::Stale(..));
        match applied.rotation {
            Rotation::None => {}
            Rotation::Rotated => {
                session.record_rotation(request.patch, meta.public_id(id), meta, former.as_ref());
                state.binding = Binding::Session { id, generation, own };
                state.token = state.token.max(TokenOrigin::Rotated);
                state.owes_cookie = true;
            }
            Rotation::Joined => {
                session.record(Event::Joined, meta.public_id(id), meta.principal.as_ref());
                state.binding = Binding::Session { id, generation, own: true };
                state.token = state.token.max(TokenOrigin::Rotated);
                state.owes_cookie = true;
            }
        }
        let changes_cookie = applied.expiry_changed || session.is_in_cookie();
        state.owes_cookie |= changes_cookie && !meta.withheld;
        state.meta = Some(meta.clone());
        if !is_live {
            session.record(Event::Destroyed, meta.public_id(id), former.as_ref());
            state.ended_own |= own;
            state.unbind();
        }
        Ok(Snapshot { is_new: state.is_new(), ..Snapshot::after(id, applied) })
    }

    /// Creates a session from this patch alone, and binds the request to it.
    async fn create(&mut self, id: Id) -> Result<Snapshot, Failure> {
        if !self.session.request.takes_cookies(self.state) {
            return Err(Failure::ResponseCommitted);
        }
        self.request.check_unversioned()?;
        let limit = if self.state.ended_own { AddressLimit::Exempt } else { AddressLimit::Counts };
        let (id, record) = self.session.create(id, self.request, limit).await?;
        Ok(self.bind_created(id, record))
    }

    /// Destroys a session and creates another: the one change that is two store commands.
    async fn replace(&mut self, old: Id, authority: Authority) -> Result<Snapshot, Failure> {
        let patch = self.request.patch;
        let (id, record) =
            self.session.create(draw_id(), self.request, AddressLimit::Exempt).await?;
        let destroy = Patch { if_version: patch.if_version, destroy: true, ..Patch::default() };
        let destroyed = self.patch(old, authority, ChangeRequest::new(&destroy)).await;
        let replicated = match destroyed {
            Ok(destroyed) => Ok(destroyed.replicated),
            // There is nothing left to destroy. But a patch with a version is for one session only.
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended)) => {
                self.request.check_unversioned().map(|()| Replicated::NotAsked)
            }
            Err(Failure::Refused(Refusal::Rotated)) if patch.log_in().is_some() => {
                self.request.check_unversioned().map(|()| Replicated::NotAsked)
            }
            Err(failure) => Err(failure),
        };
        match replicated {
            Ok(replicated) => Ok(Snapshot { replicated, ..self.bind_created(id, record) }),
            Err(failure) => {
                self.undo_create(id).await?;
                Err(failure)
            }
        }
    }

    fn bind_created(&mut self, id: Id, record: Record) -> Snapshot {
        self.state.bind_created(id, &record);
        let values = self.request.want.select(record.values);
        let record = Record { meta: record.meta, values };
        Snapshot { is_new: true, ..Snapshot::of(id, record) }
    }

    /// Removes a session that was created a moment ago and whose id no client has.
    async fn undo_create(&self, id: Id) -> Result<(), Failure> {
        let removed = self.session.calls()?.remove(id).await;
        self.session.record(Event::Destroyed, PublicId::first(id), None);
        if let Err(error) = removed {
            let cause = error.source().map(ToString::to_string);
            limited!(warn, "orphaned", session = %id, %error, cause, "failed to delete an orphaned session; it will expire");
        }
        Ok(())
    }
}
