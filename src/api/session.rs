//! Calls on one session: that of a request, or any by its id.

use bytes::Bytes;
use http::Response;
use serde::Serialize;

use super::problem::{self, ApiResult};
use super::request::{IfMatch, Preference, Query, QueryParameter};
use super::response;
use crate::audit::By;
use crate::body::Body;
use crate::session::id::PublicId;
use crate::session::json::Json;
use crate::session::patch::{Condition, Op, Patch, Rotate};
use crate::session::record::Key;
use crate::session::token::Bound;
use crate::sessions::{
    ChangeRequest, Destroyed, Failure, NO_SUCH_VALUE, RemoteSession, RequestSession, Sessions,
    Snapshot,
};
use crate::store::Want;
use crate::wire::{self, PolicyObject, ValuesObject, View};

/// A session, and the way to it.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Request(RequestSession),
    /// The session of a request of another instance. What only that one can do fails as `request_gone`.
    Remote(RemoteSession),
    Id(PublicId),
}

/// A call on one session, parsed except for its body.
#[derive(Debug)]
pub(super) struct SessionCall {
    pub(super) sessions: Sessions,
    pub(super) target: Target,
    pub(super) key: Option<Key>,
    pub(super) query: Query,
    pub(super) if_match: Option<IfMatch>,
    /// If-None-Match was `*`.
    pub(super) if_missing: bool,
    pub(super) prefer: Preference,
    pub(super) body: Bytes,
}

/// The key of the test cookie's value; Django's name for it.
const TEST_COOKIE: &str = "testcookie";

/// The result of the test cookie: the client returned it, or not.
#[derive(Serialize)]
struct TestCookie {
    worked: bool,
}

impl SessionCall {
    pub(super) async fn read(self) -> ApiResult<Response<Body>> {
        let read = self.load(Want::Values).await?;
        let values = read.values();
        let session = self.view(&read).session(&values, read.is_new).with_next_id(read.next_id);
        Ok(response::tagged_by_version(response::serialize(&session)?, version(&read)))
    }

    pub(super) async fn patch(self) -> ApiResult<Response<Body>> {
        let patch = wire::patch(&self.body)?;
        if !patch.destroy || self.is_minimal() {
            return self.change(self.under_version(patch)?, None).await;
        }
        let changed = self.apply(&self.under_version(patch)?, None, Want::Values).await?;
        let values = changed.values();
        let session = self.view(&changed).session(&values, changed.is_new);
        let response = response::serialize(&session.with_replicated(changed.replicated))?;
        Ok(response::tagged_by_version(response, version(&changed)))
    }

    pub(super) async fn destroy(self) -> ApiResult<Response<Body>> {
        let destroyed = if self.query.flag(QueryParameter::Everywhere)? {
            self.destroy_everywhere().await?
        } else {
            let patch = self.under_version(Patch { destroy: true, ..Patch::default() })?;
            Destroyed::by(&self.apply(&patch, None, Want::Meta).await?)
        };
        response::destroyed(destroyed, self.prefer)
    }

    pub(super) async fn rotate(self) -> ApiResult<Response<Body>> {
        if let Target::Request(session) = &self.target
            && !session.is_bound().await
        {
            return Err(problem::no_such_session());
        }
        let patch =
            self.under_version(Patch { rotate: Some(Rotate::Token), ..Patch::default() })?;
        self.change(patch, None).await
    }

    pub(super) async fn read_values(self) -> ApiResult<Response<Body>> {
        let read = self.load(Want::Values).await?;
        let response = response::serialize(&ValuesObject(&read.values()))?;
        Ok(response::tagged_by_version(response, version(&read)))
    }

    pub(super) async fn replace_values(self) -> ApiResult<Response<Body>> {
        let ops = wire::values(&self.body)?;
        let patch = self.under_version(Patch { ops, ..Patch::default() })?;
        self.change(patch, None).await
    }

    pub(super) async fn read_value(self) -> ApiResult<Response<Body>> {
        let key = self.key()?;
        let read = self.load(Want::Value(key)).await?;
        self.value_or_default(read.value(key))
    }

    pub(super) async fn set_value(self) -> ApiResult<Response<Body>> {
        let value = self.body_or_text(wire::value)?;
        let patch = Patch::of(Op::Set(self.key()?.clone(), value));
        self.change(patch, self.value_condition()?).await
    }

    pub(super) async fn remove_value(self) -> ApiResult<Response<Body>> {
        let key = self.key()?;
        // A malformed default is an error before anything is removed.
        if let (Some(default), false) = (self.default(), self.is_text()?) {
            wire::value(default.as_bytes())?;
        }
        let condition = self.value_condition()?.unwrap_or_else(|| Condition::Present(key.clone()));
        let patch = Patch::of(Op::Remove(key.clone()));
        match self.apply(&patch, Some(&condition), Want::Before(key)).await {
            Ok(changed) => self.value_or_default(changed.before),
            Err(refusal) if refusal.code == NO_SUCH_VALUE => self.value_or_default(None),
            Err(refusal) => Err(refusal),
        }
    }

    pub(super) async fn increment(self) -> ApiResult<Response<Body>> {
        let key = self.key()?;
        let patch = Patch::of(Op::Increment(key.clone(), wire::increment(&self.body)?));
        let condition = self.value_condition()?;
        let changed = self.apply(&patch, condition.as_ref(), Want::Value(key)).await?;
        self.value_or_default(changed.value(key))
    }

    pub(super) async fn append(self) -> ApiResult<Response<Body>> {
        let element = self.body_or_text(wire::element)?;
        let patch = Patch::of(Op::Append(self.key()?.clone(), element.in_brackets()));
        self.change(patch, self.value_condition()?).await
    }

    pub(super) async fn read_expiry(self) -> ApiResult<Response<Body>> {
        let read = self.load(Want::Meta).await?;
        self.expiry(&read)
    }

    pub(super) async fn set_expiry(self) -> ApiResult<Response<Body>> {
        let expiry = Some(wire::expiry(&self.body)?);
        let patch = self.under_version(Patch { expiry, ..Patch::default() })?;
        let changed = self.apply(&patch, None, Want::Meta).await?;
        if self.is_minimal() { Ok(minimal(&changed)) } else { self.expiry(&changed) }
    }

    pub(super) fn read_policy(self) -> ApiResult<Response<Body>> {
        let shared = self.sessions.shared();
        let policy = PolicyObject::new(&shared.policy, &shared.attributes);
        let policy = match &self.target {
            // Its route is forgotten with the request.
            Target::Request(session) if session.ended_at().is_some() => policy,
            Target::Request(session) => policy.with_header_exchange(session.header_exchange()),
            // Only that instance knows its route.
            Target::Remote(_) => return Err(Failure::OtherInstance.into()),
            Target::Id(_) => return Err(problem::not_found()),
        };
        response::serialize(&policy)
    }

    pub(super) async fn read_test_cookie(self) -> ApiResult<Response<Body>> {
        let came_back = match &self.target {
            Target::Request(session) => matches!(session.token().bound, Bound::Session(..)),
            // Its token says that the request came with a session.
            Target::Remote(_) => true,
            Target::Id(_) => return Err(problem::not_found()),
        };
        let key = test_cookie()?;
        let read = self.load(Want::Value(&key)).await?;
        response::serialize(&TestCookie { worked: came_back && read.value(&key).is_some() })
    }

    pub(super) async fn set_test_cookie(self) -> ApiResult<Response<Body>> {
        let patch = Patch::of(Op::Set(test_cookie()?, Json::string("worked")));
        self.apply(&patch, None, Want::Meta).await?;
        Ok(response::empty())
    }

    pub(super) async fn remove_test_cookie(self) -> ApiResult<Response<Body>> {
        self.apply(&Patch::of(Op::Remove(test_cookie()?)), None, Want::Meta).await?;
        Ok(response::empty())
    }

    async fn load(&self, want: Want<'_>) -> ApiResult<Snapshot> {
        Ok(match &self.target {
            Target::Request(session) => session.read(want).await?,
            Target::Remote(session) => session.read(want).await?,
            Target::Id(id) => self.sessions.directory(By::Service)?.find(*id, want).await?,
        })
    }

    async fn apply(
        &self,
        patch: &Patch,
        condition: Option<&Condition>,
        want: Want<'_>,
    ) -> ApiResult<Snapshot> {
        let request = ChangeRequest { patch, condition, want };
        Ok(match &self.target {
            Target::Request(session) => session.apply(request).await?,
            Target::Remote(session) => session.apply(request).await?,
            Target::Id(id) if patch.principal.is_some() || patch.rotate.is_some() => {
                let detail = format!("the browser of {id} could not be given its new token");
                return Err(problem::invalid_patch(&detail));
            }
            Target::Id(_) if patch.destroy && !patch.only_destroys() => {
                let detail = "a new session needs a request whose response sets its cookie";
                return Err(problem::invalid_patch(detail));
            }
            Target::Id(id) => self.sessions.directory(By::Service)?.apply(*id, request).await?,
        })
    }

    /// Applies a patch, and returns the session as it is then.
    async fn change(
        &self,
        patch: Patch,
        condition: Option<Condition>,
    ) -> ApiResult<Response<Body>> {
        let want = if self.is_minimal() { Want::Meta } else { Want::Values };
        let changed = self.apply(&patch, condition.as_ref(), want).await?;
        if self.is_minimal() { Ok(minimal(&changed)) } else { self.session(&changed) }
    }

    async fn destroy_everywhere(&self) -> ApiResult<Destroyed> {
        let id = match &self.target {
            Target::Request(session) => {
                return Ok(session.destroy_everywhere().await?);
            }
            Target::Remote(_) => return Err(Failure::OtherInstance.into()),
            Target::Id(id) => *id,
        };
        let directory = self.sessions.directory(By::Service)?;
        let found = directory.find(id, Want::Meta).await?;
        let mut others = Destroyed::default();
        if let Some((_, record)) = found.session
            && let Some(principal) = record.meta.principal
        {
            others = directory.destroy_all_of(&principal, Some(id.place)).await?;
        }
        Ok(others.and(directory.destroy(id).await?))
    }

    fn is_minimal(&self) -> bool {
        self.prefer == Preference::Minimal
    }

    /// Makes a patch conditional on If-Match, which has the version of the session as its tag.
    fn under_version(&self, patch: Patch) -> ApiResult<Patch> {
        let Some(wanted) = &self.if_match else { return Ok(patch) };
        let IfMatch::Tag(tag) = wanted else {
            return Err(problem::malformed_request(
                "If-Match must be the session's ETag here".to_owned(),
            ));
        };
        // A tag that is not a version of ours becomes one that no session has.
        let version = tag.parse().unwrap_or(u64::MAX);
        let if_version =
            if patch.if_version.is_none_or(|other| other == version) { version } else { u64::MAX };
        Ok(Patch { if_version: Some(if_version), ..patch })
    }

    /// Returns the condition of If-Match and If-None-Match, which are about the value of the key.
    fn value_condition(&self) -> ApiResult<Option<Condition>> {
        let key = self.key()?.clone();
        Ok(match (&self.if_match, self.if_missing) {
            (Some(_), true) => {
                let detail = "If-Match and If-None-Match contradict each other".to_owned();
                return Err(problem::malformed_request(detail));
            }
            (None, true) => Some(Condition::Missing(key)),
            (Some(IfMatch::Any), false) => Some(Condition::Present(key)),
            (Some(IfMatch::Tag(tag)), false) => Some(Condition::Tagged(key, tag.clone())),
            (None, false) => None,
        })
    }

    fn key(&self) -> ApiResult<&Key> {
        self.key.as_ref().ok_or_else(problem::invalid_key)
    }

    fn default(&self) -> Option<&str> {
        self.query.get(QueryParameter::Default)
    }

    fn is_text(&self) -> ApiResult<bool> {
        self.query.flag(QueryParameter::Text)
    }

    /// Returns the body as a JSON string with `?text`, else parsed by `parse`.
    fn body_or_text(&self, parse: fn(&[u8]) -> Result<Json, wire::Malformed>) -> ApiResult<Json> {
        if !self.is_text()? {
            return Ok(parse(&self.body)?);
        }
        let text = std::str::from_utf8(&self.body);
        let text = text.map_err(|error| {
            problem::malformed_request(format!("the text is not UTF-8: {error}"))
        })?;
        Ok(Json::string(text))
    }

    fn view<'a>(&'a self, snapshot: &'a Snapshot) -> View<'a> {
        let shared = self.sessions.shared();
        let session = snapshot.session.as_ref().map(|(id, record)| (*id, &record.meta));
        View { session, policy: &shared.policy, now: shared.clock.now() }
    }

    fn session(&self, snapshot: &Snapshot) -> ApiResult<Response<Body>> {
        let values = snapshot.values();
        let session = self.view(snapshot).session(&values, snapshot.is_new);
        Ok(response::tagged_by_version(response::serialize(&session)?, version(snapshot)))
    }

    fn expiry(&self, snapshot: &Snapshot) -> ApiResult<Response<Body>> {
        let expiry = response::serialize(&self.view(snapshot).expiry())?;
        Ok(response::tagged_by_version(expiry, version(snapshot)))
    }

    fn value_or_default(&self, value: Option<Json>) -> ApiResult<Response<Body>> {
        match (value, self.default(), self.is_text()?) {
            (Some(value), _, true) => Ok(response::value_as_text(&value)),
            (Some(value), _, false) => Ok(response::value(&value)),
            (None, Some(default), true) => Ok(response::text(default.to_owned())),
            (None, Some(default), false) => {
                Ok(response::json(wire::value(default.as_bytes())?.to_string()))
            }
            (None, None, _) => Err(problem::no_such_value()),
        }
    }
}

fn minimal(snapshot: &Snapshot) -> Response<Body> {
    let response = response::preference_applied(response::empty(), "return=minimal");
    response::tagged_by_version(response, version(snapshot))
}

fn version(snapshot: &Snapshot) -> Option<u64> {
    snapshot.session.as_ref().map(|(_, record)| record.meta.version)
}

fn test_cookie() -> ApiResult<Key> {
    Key::new(TEST_COOKIE).ok_or_else(problem::invalid_key)
}
