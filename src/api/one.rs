//! Calls on one session: a request's own, or any by its id.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use super::answer;
use super::input::{Match, Preference, Query};
use super::problem::{self, Answered};
use super::routes::Call;
use crate::body::Body;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::patch::{Condition, Op, Patch};
use crate::session::record::Key;
use crate::session::token::Bound;
use crate::sessions::{ChangeRequest, Destroyed, Exchange, Failure, Remote, Sessions, Snapshot};
use crate::store::Want;
use crate::wire::{self, View};

/// One session, and the way to it.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Request(Arc<Exchange>),
    /// A request's of another instance. What only that one can do is answered `request_gone`.
    Remote(Remote),
    Id(Id),
}

/// A call on one session, read but for its path.
#[derive(Debug)]
pub(super) struct OnSession {
    pub(super) sessions: Sessions,
    pub(super) target: Target,
    pub(super) key: Option<Key>,
    pub(super) query: Query,
    pub(super) if_match: Option<Match>,
    pub(super) if_missing: bool,
    pub(super) prefer: Preference,
    pub(super) body: Bytes,
}

/// The value that says that a test cookie was set; Django's name for it.
const TEST_COOKIE: &str = "testcookie";

/// Which query parameters a call takes.
pub(super) fn parameters(call: Call) -> &'static [&'static str] {
    match call {
        Call::Destroy => &["everywhere"],
        Call::ReadValue | Call::RemoveValue => &["default", "text"],
        Call::SetValue | Call::Append => &["text"],
        _ => &[],
    }
}

impl OnSession {
    pub(super) async fn answer(self, call: Call) -> Answered<Response<Body>> {
        match call {
            Call::Read => self.read().await,
            Call::Patch => self.patch().await,
            Call::Destroy => self.destroy().await,
            Call::Rotate => self.rotate().await,
            Call::ReadValues => self.read_values().await,
            Call::ReplaceValues => {
                let ops = wire::values(&self.body)?;
                self.write(Patch { ops, ..Patch::default() }, None).await
            }
            Call::ReadValue => self.read_value().await,
            Call::SetValue => self.set_value().await,
            Call::RemoveValue => self.remove_value().await,
            Call::Increment => self.increment().await,
            Call::Append => {
                let element = self.text_or(wire::element)?;
                let patch = Patch::of(Op::Append(self.key()?.clone(), element));
                let condition = self.value_condition()?;
                self.write_value(patch, condition).await
            }
            Call::ReadExpiry => self.read_expiry().await,
            Call::SetExpiry => self.set_expiry().await,
            Call::ReadTestCookie | Call::SetTestCookie | Call::RemoveTestCookie => {
                self.test_cookie(call).await
            }
            _ => Err(problem::not_found()),
        }
    }

    async fn load(&self, want: Want<'_>) -> Answered<Snapshot> {
        Ok(match &self.target {
            Target::Request(exchange) => self.sessions.read(exchange, want).await?,
            Target::Remote(remote) => self.sessions.read_remote(*remote, want).await?,
            Target::Id(id) => self.sessions.find(*id, want).await?,
        })
    }

    async fn apply(
        &self,
        patch: &Patch,
        condition: Option<&Condition>,
        want: Want<'_>,
    ) -> Answered<Snapshot> {
        let requested = ChangeRequest { patch, condition, want };
        Ok(match &self.target {
            Target::Request(exchange) => self.sessions.apply(exchange, requested).await?,
            Target::Remote(remote) => self.sessions.apply_remote(*remote, requested).await?,
            Target::Id(id) if patch.principal.is_some() || patch.rotate => {
                let detail = format!("the browser of {id} could not be given its new token");
                return Err(problem::invalid_patch(&detail));
            }
            Target::Id(_) if patch.destroy && !patch.only_destroys() => {
                let detail = "a session that is made needs a request that takes its cookie along";
                return Err(problem::invalid_patch(detail));
            }
            Target::Id(id) => self.sessions.apply_by_id(*id, requested).await?,
        })
    }

    fn is_minimal(&self) -> bool {
        self.prefer == Preference::Minimal
    }

    fn view<'a>(&'a self, changed: &'a Snapshot) -> View<'a> {
        let shared = self.sessions.shared();
        let session = changed.session.as_ref().map(|(id, record)| (*id, &record.meta));
        View { session, policy: &shared.policy, now: shared.clock.now() }
    }

    fn show(&self, changed: &Snapshot) -> Response<Body> {
        let response = if self.is_minimal() {
            answer::applied(answer::empty(), "return=minimal")
        } else {
            answer::json(self.view(changed).session(&changed.values(), changed.made))
        };
        match &changed.session {
            Some((_, record)) => answer::tagged_by_version(response, record.meta.version),
            None => response,
        }
    }

    async fn read(&self) -> Answered<Response<Body>> {
        let read = self.load(Want::Values).await?;
        let response = answer::json(self.view(&read).session(&read.values(), read.made));
        Ok(match &read.session {
            Some((_, record)) => answer::tagged_by_version(response, record.meta.version),
            None => response,
        })
    }

    /// Applies a patch under the call's If-Match, which names a version here, and shows the session.
    async fn write(&self, patch: Patch, condition: Option<Condition>) -> Answered<Response<Body>> {
        let patch = self.under_version(patch)?;
        let want = if self.is_minimal() { Want::Meta } else { Want::Values };
        let changed = self.apply(&patch, condition.as_ref(), want).await?;
        Ok(self.show(&changed))
    }

    /// The same where If-Match names the value.
    async fn write_value(
        &self,
        patch: Patch,
        condition: Option<Condition>,
    ) -> Answered<Response<Body>> {
        let want = if self.is_minimal() { Want::Meta } else { Want::Values };
        let changed = self.apply(&patch, condition.as_ref(), want).await?;
        Ok(self.show(&changed))
    }

    fn under_version(&self, patch: Patch) -> Answered<Patch> {
        let Some(wanted) = &self.if_match else { return Ok(patch) };
        let Match::Tag(tag) = wanted else {
            return Err(problem::malformed_request(
                "If-Match names the session's ETag here".to_owned(),
            ));
        };
        // What is no version of ours is one that no session has.
        let version = tag.parse().unwrap_or(u64::MAX);
        let if_version =
            if patch.if_version.is_none_or(|other| other == version) { version } else { u64::MAX };
        Ok(Patch { if_version: Some(if_version), ..patch })
    }

    fn key(&self) -> Answered<&Key> {
        self.key.as_ref().ok_or_else(problem::invalid_key)
    }

    /// The body as a JSON string where `?text` says so, else as `read` takes it.
    fn text_or(&self, read: fn(&[u8]) -> Result<Json, wire::Malformed>) -> Answered<Json> {
        if !self.query.flag("text")? {
            return Ok(read(&self.body)?);
        }
        let text = std::str::from_utf8(&self.body);
        let text = text.map_err(|error| {
            problem::malformed_request(format!("the text is not UTF-8: {error}"))
        })?;
        Ok(Json::string(text))
    }

    fn value_condition(&self) -> Answered<Option<Condition>> {
        let key = self.key()?.clone();
        Ok(match (&self.if_match, self.if_missing) {
            (Some(_), true) => {
                let detail = "If-Match and If-None-Match contradict each other".to_owned();
                return Err(problem::malformed_request(detail));
            }
            (None, true) => Some(Condition::Missing(key)),
            (Some(Match::Any), false) => Some(Condition::Present(key)),
            (Some(Match::Tag(tag)), false) => Some(Condition::Tagged(key, tag.clone())),
            (None, false) => None,
        })
    }

    async fn patch(&self) -> Answered<Response<Body>> {
        let patch = wire::patch(&self.body)?;
        if !patch.destroy || self.is_minimal() {
            return self.write(patch, None).await;
        }
        let changed = self.apply(&self.under_version(patch)?, None, Want::Values).await?;
        let session = self.view(&changed).session(&changed.values(), changed.made);
        let response = answer::json(wire::with_replicated(session, changed.replicated));
        Ok(match &changed.session {
            Some((_, record)) => answer::tagged_by_version(response, record.meta.version),
            None => response,
        })
    }

    async fn destroy(&self) -> Answered<Response<Body>> {
        let destroyed = if self.query.flag("everywhere")? {
            self.destroy_everywhere().await?
        } else {
            let patch = self.under_version(Patch { destroy: true, ..Patch::default() })?;
            Destroyed::by(&self.apply(&patch, None, Want::Meta).await?)
        };
        Ok(answer::destroyed(destroyed, self.prefer))
    }

    async fn destroy_everywhere(&self) -> Answered<Destroyed> {
        let id = match &self.target {
            Target::Request(exchange) => {
                return Ok(self.sessions.destroy_everywhere(exchange).await?);
            }
            Target::Remote(_) => return Err(Failure::OtherInstance.into()),
            Target::Id(id) => *id,
        };
        let found = self.sessions.find(id, Want::Meta).await?;
        let mut others = Destroyed::default();
        if let Some((_, record)) = found.session
            && let Some(principal) = record.meta.principal
        {
            others = self.sessions.destroy_all_of(&principal, Some(id)).await?;
        }
        Ok(others.and(self.sessions.destroy(id).await?))
    }

    async fn rotate(&self) -> Answered<Response<Body>> {
        if let Target::Request(exchange) = &self.target
            && !self.sessions.has_session(exchange).await
        {
            return Err(problem::no_such_session());
        }
        self.write(Patch { rotate: true, ..Patch::default() }, None).await
    }

    async fn read_values(&self) -> Answered<Response<Body>> {
        let read = self.load(Want::Values).await?;
        let response = answer::json(wire::values_object(&read.values()));
        Ok(match &read.session {
            Some((_, record)) => answer::tagged_by_version(response, record.meta.version),
            None => response,
        })
    }

    async fn read_value(&self) -> Answered<Response<Body>> {
        let key = self.key()?;
        let read = self.load(Want::Value(key)).await?;
        self.value_or_default(read.value(key))
    }

    fn value_or_default(&self, value: Option<Json>) -> Answered<Response<Body>> {
        let as_text = self.query.flag("text")?;
        match (value, self.query.text("default")) {
            (Some(value), _) => Ok(answer::tagged_by_value(answer::value(&value, as_text), &value)),
            (None, Some(default)) if as_text => Ok(answer::text(default.to_owned())),
            (None, Some(default)) => Ok(answer::value(&wire::value(default.as_bytes())?, false)),
            (None, None) => Err(problem::no_such_value()),
        }
    }

    async fn set_value(&self) -> Answered<Response<Body>> {
        let value = self.text_or(wire::value)?;
        let patch = Patch::of(Op::Set(self.key()?.clone(), value));
        self.write_value(patch, self.value_condition()?).await
    }

    async fn remove_value(&self) -> Answered<Response<Body>> {
        let key = self.key()?;
        // A default that cannot be read is found out before anything is removed.
        if let (Some(default), false) = (self.query.text("default"), self.query.flag("text")?) {
            wire::value(default.as_bytes())?;
        }
        let condition = self.value_condition()?.unwrap_or_else(|| Condition::Present(key.clone()));
        let patch = Patch::of(Op::Remove(key.clone()));
        match self.apply(&patch, Some(&condition), Want::Before(key)).await {
            Ok(changed) => self.value_or_default(changed.before),
            Err(refusal) if refusal.code == "no_such_value" => self.value_or_default(None),
            Err(refusal) => Err(refusal),
        }
    }

    async fn increment(&self) -> Answered<Response<Body>> {
        let key = self.key()?;
        let patch = Patch::of(Op::Increment(key.clone(), wire::increment(&self.body)?));
        let condition = self.value_condition()?;
        let changed = self.apply(&patch, condition.as_ref(), Want::Value(key)).await?;
        self.value_or_default(changed.value(key))
    }

    async fn read_expiry(&self) -> Answered<Response<Body>> {
        let read = self.load(Want::Meta).await?;
        Ok(self.show_expiry(&read))
    }

    async fn set_expiry(&self) -> Answered<Response<Body>> {
        let expiry = Some(wire::expiry(&self.body)?);
        let patch = self.under_version(Patch { expiry, ..Patch::default() })?;
        let changed = self.apply(&patch, None, Want::Meta).await?;
        Ok(if self.is_minimal() { self.show(&changed) } else { self.show_expiry(&changed) })
    }

    fn show_expiry(&self, changed: &Snapshot) -> Response<Body> {
        let response = answer::json(self.view(changed).expiry());
        match &changed.session {
            Some((_, record)) => answer::tagged_by_version(response, record.meta.version),
            None => response,
        }
    }

    async fn test_cookie(&self, call: Call) -> Answered<Response<Body>> {
        let came_back = match &self.target {
            Target::Request(exchange) => matches!(exchange.token.bound, Bound::Session(..)),
            Target::Remote(_) => true,
            Target::Id(_) => return Err(problem::not_found()),
        };
        let key = Key::new(TEST_COOKIE).ok_or_else(problem::invalid_key)?;
        match call {
            Call::SetTestCookie => {
                self.apply(&Patch::of(Op::Set(key, Json::string("worked"))), None, Want::Meta)
                    .await?;
                Ok(answer::empty())
            }
            Call::RemoveTestCookie => {
                self.apply(&Patch::of(Op::Remove(key)), None, Want::Meta).await?;
                Ok(answer::empty())
            }
            _ => {
                let read = self.load(Want::Value(&key)).await?;
                let worked = came_back && read.value(&key).is_some();
                Ok(answer::json(format!("{{\"worked\":{worked}}}")))
            }
        }
    }
}
