//! Calls on many sessions: those of a principal, or all.

use std::fmt::Write;
use std::sync::Arc;

use http::Response;

use super::answer;
use super::input::{Preference, Query};
use super::problem::{self, Answered};
use super::routes::Call;
use crate::body::Body;
use crate::session::id::Id;
use crate::session::json::Json;
use crate::session::record::{Meta, Principal};
use crate::sessions::{Destroyed, Exchange, Sessions};
use crate::store::Want;
use crate::wire::{self, View};

/// "Your devices": the sessions of the principal of a request's session.
#[derive(Debug)]
pub(super) struct OfPrincipal {
    pub(super) sessions: Sessions,
    pub(super) exchange: Arc<Exchange>,
    pub(super) id: Option<Id>,
    pub(super) prefer: Preference,
}

impl OfPrincipal {
    pub(super) async fn answer(self, call: Call) -> Answered<Response<Body>> {
        // What remains of a token after its request is authority over values alone.
        if self.exchange.over_since().is_some() {
            return Err(problem::request_gone());
        }
        let read = self.sessions.read(&self.exchange, Want::Meta).await?;
        let own = read.session.and_then(|(id, record)| Some((id, record.meta.principal?)));
        match (call, own) {
            (Call::ListOwn, own) => self.list(own).await,
            (Call::DestroyOthers, None) => Ok(destroyed(Destroyed::default())),
            (Call::DestroyOthers, Some((own, principal))) => {
                Ok(destroyed(self.sessions.destroy_all_of(&principal, Some(own)).await?))
            }
            (_, Some((own, principal))) => self.destroy_one(own, &principal).await,
            (_, None) => Err(problem::no_such_session()),
        }
    }

    async fn list(&self, own: Option<(Id, Principal)>) -> Answered<Response<Body>> {
        let Some((own, principal)) = own else {
            return Ok(answer::json("{\"sessions\":[]}".to_owned()));
        };
        let sessions = self.sessions.sessions_of(&principal).await?;
        let list = list(&self.sessions, &sessions, |id| Some(id == own));
        Ok(answer::json(format!("{{\"sessions\":[{list}]}}")))
    }

    async fn destroy_one(&self, own: Id, principal: &Principal) -> Answered<Response<Body>> {
        let id = self.id.ok_or_else(problem::no_such_session)?;
        if id == own {
            let destroyed = self.sessions.destroy_own(&self.exchange).await?;
            return Ok(answer::destroyed(destroyed, self.prefer));
        }
        let found = self.sessions.find(id, Want::Meta).await?;
        let theirs = found
            .session
            .is_some_and(|(_, record)| record.meta.principal.as_ref() == Some(principal));
        if !theirs {
            return Err(problem::no_such_session());
        }
        match self.sessions.destroy(id).await? {
            Destroyed { count: 0, .. } => Err(problem::no_such_session()),
            destroyed => Ok(answer::destroyed(destroyed, self.prefer)),
        }
    }
}

/// All sessions, by the service token.
#[derive(Debug)]
pub(super) struct OfAll {
    pub(super) sessions: Sessions,
    pub(super) query: Query,
}

/// Which query parameters a call takes.
pub(super) fn parameters(call: Call) -> &'static [&'static str] {
    match call {
        Call::List => &["principal", "limit", "cursor"],
        Call::DestroyAll => &["principal"],
        _ => &[],
    }
}

impl OfAll {
    pub(super) async fn answer(self, call: Call) -> Answered<Response<Body>> {
        let principal = self.query.principal()?;
        match (call, principal) {
            (Call::List, principal) => self.list(principal.as_ref()).await,
            (Call::DestroyAll, Some(principal)) => {
                Ok(destroyed(self.sessions.destroy_all_of(&principal, None).await?))
            }
            (Call::DestroyAll, None) => Err(problem::invalid_principal()),
            _ => {
                let removed = self.sessions.sweep().await?;
                Ok(answer::json(format!("{{\"removed\":{removed}}}")))
            }
        }
    }

    async fn list(&self, principal: Option<&Principal>) -> Answered<Response<Body>> {
        let page =
            self.sessions.list(principal, self.query.text("cursor"), self.query.limit()?).await?;
        let next = page.next.map_or_else(Json::null, |cursor| Json::string(&cursor));
        let list = list(&self.sessions, &page.sessions, |_| None);
        Ok(answer::json(format!("{{\"sessions\":[{list}],\"next\":{next}}}")))
    }
}

fn list(
    sessions: &Sessions,
    listed: &[(Id, Meta)],
    current: impl Fn(Id) -> Option<bool>,
) -> String {
    let shared = sessions.shared();
    let now = shared.clock.now();
    let mut out = String::new();
    for (index, (id, meta)) in listed.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let view = View { session: Some((*id, meta)), policy: &shared.policy, now };
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}{}", view.listed(current(*id)));
    }
    out
}

fn destroyed(destroyed: Destroyed) -> Response<Body> {
    answer::json(wire::destroyed(destroyed.count, destroyed.replicated))
}
