//! Changing the session of a request: one patch, whatever became of the request's session since.

use tracing::debug;

use super::exchange::{Binding, Exchange, State, TouchPolicy};
use super::{Failure, Sessions, draw_id};
use crate::log::limited;
use crate::metrics::{Event, StoreOperation};
use crate::random;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{
    Applied, Authority, Change, Condition, Patch, Refusal, Replicated, Rotation, Tombstone,
};
use crate::session::record::{Entry, Key, Meta, Record, Values};
use crate::store::{Backend, Created, Error as StoreError, Unproven, Want};

/// A change that a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct ChangeRequest<'a> {
    /// What to change.
    pub patch: &'a Patch,
    /// Under what condition on a value.
    pub condition: Option<&'a Condition>,
    /// Which values the answer is to carry.
    pub want: Want<'a>,
}

/// A session after a change; or none, where there is none.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The session.
    pub session: Option<(Id, Record)>,
    /// The value before, of the key that was asked for.
    pub before: Option<Json>,
    /// Whether this request has made the session.
    pub made: bool,
    /// Whether a replica has what was ended, where something was.
    pub replicated: Replicated,
}

/// Whether a new session counts against `new_sessions_per_address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    Yes,
    No,
}

impl Sessions {
    /// The session of a request, as it is now. Reading creates nothing and prolongs nothing.
    pub async fn read(&self, exchange: &Exchange, want: Want<'_>) -> Result<Snapshot, Failure> {
        let state = exchange.state.read().await;
        let (store, made) = (self.store_of(exchange)?, state.made);
        match state.binding {
            Binding::Session { id, generation, .. } => {
                match self.load_cached(store, id, want, |meta| meta.serves(generation)).await? {
                    Some(Entry::Live(record)) if record.meta.rotated_away(generation) => {
                        Err(Refusal::Rotated.into())
                    }
                    Some(Entry::Live(record)) => {
                        Ok(Snapshot { session: Some((id, record)), made, ..Snapshot::default() })
                    }
                    Some(Entry::Ended { .. }) | None => Err(Refusal::Gone.into()),
                }
            }
            Binding::Unavailable => Err(Failure::NotLoaded),
            Binding::None(_) | Binding::Stale(_) | Binding::Ended | Binding::Ambiguous => {
                Ok(Snapshot::default())
            }
        }
    }

    /// Whether a request has a session, or had one that is stale or over.
    pub async fn has_session(&self, exchange: &Exchange) -> bool {
        !matches!(exchange.state.read().await.binding, Binding::None(_))
    }

    /// Changes the session of a request. What was answered `Ok` is in the store.
    pub async fn apply(
        &self,
        exchange: &Exchange,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let patch = requested.patch;
        if !self.needs_cookie(patch) && !patch.destroy {
            // What binds nothing anew may run beside others of the same request.
            let state = exchange.state.read().await;
            if let Binding::Session { id, generation, .. } = state.binding {
                let applied = self
                    .patch(exchange, &state, id, Authority::Request(generation), requested)
                    .await?;
                return Ok(changed(id, applied, state.made));
            }
        }
        let mut state = exchange.state.write().await;
        self.apply_to(exchange, &mut state, requested).await
    }

    /// Whether the browser needs another cookie for this: every one, where that is the session.
    fn needs_cookie(&self, patch: &Patch) -> bool {
        patch.needs_cookie() || self.in_cookies()
    }

    pub(super) async fn apply_to(
        &self,
        exchange: &Exchange,
        state: &mut State,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        if !exchange.takes_cookies(state) && self.needs_cookie(requested.patch) {
            return Err(Failure::ResponseCommitted);
        }
        let Some(principal) = &requested.patch.principal else {
            return self.apply_once(exchange, state, requested).await;
        };
        self.admit(principal, state).await?;
        let changed = self.apply_once(exchange, state, requested).await?;
        self.evict_beyond(principal, &changed).await;
        Ok(changed)
    }

    async fn apply_once(
        &self,
        exchange: &Exchange,
        state: &mut State,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let patch = requested.patch;
        let logs_in = patch.principal.is_some();
        match state.binding {
            Binding::None(_) if patch.only_removes() => self.remove_nothing(requested),
            Binding::None(id) => self.make(exchange, state, id, requested).await,
            Binding::Session { id, generation, .. } => {
                self.apply_bound(exchange, state, (id, generation), requested).await
            }
            Binding::Stale(id) if logs_in && !patch.destroy => {
                match self.patch_bound(exchange, state, id, Authority::LogIn, requested).await {
                    Err(Failure::Refused(
                        Refusal::Gone | Refusal::Ended | Refusal::OtherPrincipal,
                    )) => self.make(exchange, state, draw_id(), requested).await,
                    answer => answer,
                }
            }
            Binding::Ended if patch.only_destroys() => {
                state.unbind();
                Ok(Snapshot::default())
            }
            Binding::Stale(_) | Binding::Ended if logs_in => {
                self.make(exchange, state, draw_id(), requested).await
            }
            Binding::Ended if patch.destroy => {
                self.make(exchange, state, draw_id(), requested).await
            }
            Binding::Stale(_) => Err(Refusal::Rotated.into()),
            Binding::Ended => Err(Refusal::Gone.into()),
            Binding::Ambiguous => Err(Failure::AmbiguousCookie),
            Binding::Unavailable => Err(Failure::NotLoaded),
        }
    }

    /// Changes the session that a request was opened with or has made; a log-in, and a destroy, do
    /// what they are for whatever others have done to it meanwhile.
    async fn apply_bound(
        &self,
        exchange: &Exchange,
        state: &mut State,
        (id, generation): (Id, u32),
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let patch = requested.patch;
        if patch.destroy && !patch.only_destroys() {
            return self.replace(exchange, state, (id, generation), requested).await;
        }
        let authority = Authority::Request(generation);
        match self.patch_bound(exchange, state, id, authority, requested).await {
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended)) if patch.only_destroys() => {
                state.unbind();
                Ok(Snapshot::default())
            }
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended | Refusal::Rotated))
                if patch.principal.is_some() =>
            {
                self.make(exchange, state, draw_id(), requested).await
            }
            answer => answer,
        }
    }

    /// Where there is no session, taking something away changes nothing; its conditions count.
    fn remove_nothing(&self, requested: ChangeRequest<'_>) -> Result<Snapshot, Failure> {
        let ChangeRequest { patch, condition, .. } = requested;
        requested.check_unversioned()?;
        let change = self.change(patch, condition, Authority::Service, false, Tombstone::None);
        change.begin(Meta::new(0, change.now))?;
        Ok(Snapshot::default())
    }

    /// Applies a patch to a session, and notes what that means for the request.
    async fn patch_bound(
        &self,
        exchange: &Exchange,
        state: &mut State,
        id: Id,
        authority: Authority,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let applied = self.patch(exchange, state, id, authority, requested).await?;
        let metrics = &self.shared.metrics;
        let generation = applied.record.meta.generation;
        let own = matches!(state.binding, Binding::Session { own: true, .. });
        match applied.rotation {
            Rotation::None => {}
            Rotation::Rotated => {
                metrics.event(Event::Rotated);
                state.binding =
                    Binding::Session { id, generation, own: own || authority == Authority::LogIn };
                state.owes_cookie = true;
            }
            Rotation::Joined => {
                metrics.event(Event::Joined);
                state.binding = Binding::Session { id, generation, own: true };
                state.owes_cookie = true;
            }
        }
        let changes_cookie = applied.expiry_changed || self.in_cookies();
        state.owes_cookie |= changes_cookie && !applied.record.meta.withheld;
        state.meta = Some(applied.record.meta.clone());
        if !matches!(applied.entry, Some(Entry::Live(_))) {
            metrics.event(Event::Destroyed);
            state.ended_own |= matches!(state.binding, Binding::Session { own: true, .. });
            state.unbind();
        }
        Ok(changed(id, applied, state.made))
    }

    async fn patch(
        &self,
        exchange: &Exchange,
        state: &State,
        id: Id,
        authority: Authority,
        requested: ChangeRequest<'_>,
    ) -> Result<Applied, Failure> {
        let ChangeRequest { patch, condition, want } = requested;
        let store = self.store_of(exchange)?;
        let tombstone =
            if exchange.takes_cookies(state) { Tombstone::Leave } else { Tombstone::None };
        let touches = exchange.touch == TouchPolicy::OnUse;
        let change = self.change(patch, condition, authority, touches, tombstone);
        self.patched(store, id, change, want).await
    }

    /// What a change of a session has become; one that cannot be read is gone.
    pub(super) async fn patched(
        &self,
        store: &dyn Backend,
        id: Id,
        change: Change<'_>,
        want: Want<'_>,
    ) -> Result<Applied, Failure> {
        let answer = self.timed(StoreOperation::Patch, store.patch(id, change, want)).await;
        Ok(self.readable(id, answer)?.unwrap_or(Err(Refusal::Gone))?)
    }

    /// Makes a session of this patch alone.
    async fn make(
        &self,
        exchange: &Exchange,
        state: &mut State,
        id: Id,
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        if !exchange.takes_cookies(state) {
            return Err(Failure::ResponseCommitted);
        }
        requested.check_unversioned()?;
        // One that takes the place of the session that the request has ended is no further one.
        let counts = if state.ended_own { Counts::No } else { Counts::Yes };
        let (id, record) = self.create(exchange, id, requested, counts).await?;
        state.bind_made(id, &record);
        let values = requested.want.select(record.values);
        let record = Record { meta: record.meta, values };
        Ok(Snapshot { session: Some((id, record)), made: true, ..Snapshot::default() })
    }

    /// A new record in the store, under `id` or, where that is taken, another.
    pub(super) async fn create(
        &self,
        exchange: &Exchange,
        mut id: Id,
        requested: ChangeRequest<'_>,
        counts: Counts,
    ) -> Result<(Id, Record), Failure> {
        let ChangeRequest { patch, condition, .. } = requested;
        let change = self.change(patch, condition, Authority::Service, true, Tombstone::None);
        let mut meta = Meta::new(first_version(), change.now);
        meta.client.clone_from(&exchange.client);
        meta.withheld = exchange.is_withheld();
        let store = self.store_of(exchange)?;
        meta.unproven = match store.unproven() {
            Unproven::Kept => change.policy.unproven_timeout.is_some(),
            Unproven::Evicted => true,
            Unproven::None => false,
        };
        let record = change.begin(meta)?;
        if let Some(carried) = &exchange.carried {
            carried.check(id, &record)?;
        }
        // Strangers have no credentials, so log-ins are exempt.
        if counts == Counts::Yes && patch.principal.is_none() {
            self.count_new(exchange)?;
        }
        let policy = &self.shared.policy;
        // Two ids of 128 random bits are never the same; a third draw is for what cannot happen.
        for _ in 0..3 {
            match self.timed(StoreOperation::Create, store.create(id, &record, policy)).await? {
                Created::Done => {
                    self.shared.metrics.event(Event::Created);
                    debug!(session = %id, "a session was made");
                    return Ok((id, record));
                }
                Created::Exists => id = draw_id(),
            }
        }
        Err(StoreError::Corrupt("three random ids were taken".into()).into())
    }

    /// Ends a session and makes another: the one change that is two store commands.
    async fn replace(
        &self,
        exchange: &Exchange,
        state: &mut State,
        (old, generation): (Id, u32),
        requested: ChangeRequest<'_>,
    ) -> Result<Snapshot, Failure> {
        let patch = requested.patch;
        let (id, record) = self.create(exchange, draw_id(), requested, Counts::No).await?;
        let end = Patch { if_version: patch.if_version, destroy: true, ..Patch::default() };
        let ended = ChangeRequest { patch: &end, condition: None, want: Want::Meta };
        let ended =
            self.patch_bound(exchange, state, old, Authority::Request(generation), ended).await;
        let mut replicated = Replicated::NotAsked;
        let goes_on = match ended {
            Ok(ended) => {
                replicated = ended.replicated;
                Ok(())
            }
            // There is nothing left to end; but whoever named a version meant a session.
            Err(Failure::Refused(Refusal::Gone | Refusal::Ended)) => requested.check_unversioned(),
            Err(Failure::Refused(Refusal::Rotated)) if patch.principal.is_some() => {
                requested.check_unversioned()
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = goes_on {
            self.undo(self.store_of(exchange)?, id).await;
            return Err(failure);
        }
        state.bind_made(id, &record);
        let values = requested.want.select(record.values);
        let record = Record { meta: record.meta, values };
        Ok(Snapshot { session: Some((id, record)), before: None, made: true, replicated })
    }

    /// Removes a record that was made a moment ago and that nobody knows.
    async fn undo(&self, store: &dyn Backend, id: Id) {
        if let Err(error) = self.timed(StoreOperation::Remove, store.remove(id)).await {
            limited!(warn, "orphaned", session = %id, %error, "failed to delete an orphaned session; it will expire");
        }
    }
}

impl ChangeRequest<'_> {
    /// Where there is no session, there is no version that one could be at.
    fn check_unversioned(&self) -> Result<(), Failure> {
        match self.patch.if_version {
            Some(_) => Err(Refusal::VersionMoved.into()),
            None => Ok(()),
        }
    }
}

impl State {
    /// The request has no session any more; its next write makes one.
    fn unbind(&mut self) {
        self.binding = Binding::None(draw_id());
        self.owes_cookie = false;
        self.made = false;
        self.meta = None;
    }

    /// The request has made this session.
    pub(super) fn bind_made(&mut self, id: Id, record: &Record) {
        self.binding = Binding::Session { id, generation: record.meta.generation, own: false };
        self.made = true;
        self.owes_cookie = !record.meta.withheld;
        self.meta = Some(record.meta.clone());
    }
}

/// A version to begin with: below 2^32, so that it stays exact whatever reads it as a number.
fn first_version() -> u64 {
    u64::from(u32::from_be_bytes(random::bytes()))
}

pub(super) fn changed(id: Id, applied: Applied, made: bool) -> Snapshot {
    let Applied { record, before, replicated, .. } = applied;
    Snapshot { session: Some((id, record)), before, made, replicated }
}

impl Snapshot {
    /// The values that the answer carries.
    pub fn values(&self) -> Values {
        self.session.as_ref().map(|(_, record)| record.values.clone()).unwrap_or_default()
    }

    /// One of them.
    pub fn value(&self, key: &Key) -> Option<Json> {
        self.session.as_ref().and_then(|(_, record)| record.values.get(key).cloned())
    }
}
