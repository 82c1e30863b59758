//! The session API: how an upstream reads and writes the session of the request that it handles,
//! and a back office any session.
//!
//! Served on its own listener. A call is found in the table of `routes`, authorised by its
//! token, read, and answered through [`Sessions`] alone, or by the instance that forwarded the
//! request. It does not know the proxy.

mod answer;
pub mod config;
mod input;
mod many;
mod one;
mod openapi;
mod peer;
mod problem;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tracing::{debug, error};

use crate::body::Body;
use crate::client::Tls;
use crate::net::host::OwnNames;
use crate::secret::Secret;
use crate::server::{Address, Handler, Peer, Tasks};
use crate::session::token::RequestToken;
use crate::sessions::{Exchange, Remote, Resumed, Sessions};
use crate::wire::Problem;

use many::{OfAll, OfPrincipal};
use one::{OnSession, Target};
use peer::{Caller, Errand};
use problem::Answered;
use routes::{Authority, Call, Matched};

/// The session API, as one worker serves it.
#[derive(Clone, Debug)]
pub struct Api {
    sessions: Sessions,
    tasks: Tasks,
    settings: Arc<Settings>,
}

/// What the workers share.
#[derive(Debug)]
struct Settings {
    prefix: String,
    service_token: Option<Secret>,
    openapi: Bytes,
    body_idle_timeout: Duration,
    peers: Option<Arc<Tls>>,
    own_names: Arc<OwnNames>,
}

/// How long a call's body may take, in all.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

impl Api {
    /// An API under `prefix`; without a service token, it serves requests' own sessions alone. With `peers`,
    /// other instances are called over TLS. Over TCP it answers to `own_names`.
    pub fn new(
        sessions: Sessions,
        tasks: Tasks,
        (prefix, own_names): (&str, Arc<OwnNames>),
        service_token: Option<Secret>,
        body_idle_timeout: Duration,
        peers: Option<Arc<Tls>>,
    ) -> Self {
        let openapi = openapi::document(prefix).into();
        let prefix = prefix.to_owned();
        let settings =
            Settings { prefix, service_token, openapi, body_idle_timeout, peers, own_names };
        Self { sessions, tasks, settings: Arc::new(settings) }
    }

    async fn answer(&self, parts: &Parts, body: Body) -> Response<Body> {
        let Some(matched) = routes::find(&self.settings.prefix, parts.uri.path()) else {
            return answer::problem(&problem::not_found());
        };
        if matches!(matched.authority, Authority::Service(_))
            && self.settings.service_token.is_none()
        {
            return answer::problem(&problem::not_found());
        }
        let Some(call) = matched.route.call(&parts.method) else {
            return answer::not_allowed(&problem::method_not_allowed(), &matched.route.allow());
        };
        let answered = self.call(parts, body, &matched, call).await;
        answered.unwrap_or_else(|refusal| refused(&refusal))
    }

    async fn call(
        &self,
        parts: &Parts,
        body: Body,
        matched: &Matched<'_>,
        call: Call,
    ) -> Answered<Response<Body>> {
        match &matched.authority {
            Authority::Public => Ok(self.contract()),
            Authority::Request => self.of_request(parts, body, (matched, call)).await,
            Authority::Service(Some(id)) => {
                self.check_service(parts)?;
                let body = self.body(parts, body, call).await?;
                let on_session = self.on_session(parts, body, Target::Id(*id), (matched, call))?;
                self.finish(call, on_session.answer(call)).await
            }
            Authority::Service(None) => {
                self.check_service(parts)?;
                let query = input::Query::read(parts, many::parameters(call))?;
                self.finish(call, OfAll { sessions: self.sessions.clone(), query }.answer(call))
                    .await
            }
        }
    }

    /// A call on the session of a request, which this instance forwarded or another.
    async fn of_request(
        &self,
        parts: &Parts,
        body: Body,
        (matched, call): (&Matched<'_>, Call),
    ) -> Answered<Response<Body>> {
        let shared = self.sessions.shared();
        let line = token_line(parts)?;
        let (token, instance) = RequestToken::verify(&shared.ring, line.as_bytes())
            .ok_or_else(problem::request_token_unknown)?;
        let body = self.body(parts, body, call).await?;
        let caller = peer::caller(parts, line, &body, shared)?;
        let answered = match (self.sessions.resume(token, &instance), caller) {
            (Some(Resumed::Here(exchange)), _) => {
                self.here(parts, body, exchange, (matched, call)).await
            }
            (Some(Resumed::Elsewhere(remote)), Caller::Upstream) => {
                let errand = Errand::new(
                    (self.sessions.clone(), self.tasks.clone()),
                    (instance, self.settings.peers.clone()),
                    call,
                    parts,
                    (line, body.clone()),
                    self.answer_limit(),
                );
                self.elsewhere(parts, body, (remote, errand), (matched, call)).await
            }
            (Some(Resumed::Elsewhere(_)) | None, _) => Err(problem::request_gone()),
        };
        match caller {
            Caller::Upstream => answered,
            Caller::Peer(voucher) => {
                let response = answered.unwrap_or_else(|refusal| refused(&refusal));
                Ok(peer::receipted(response, voucher, shared))
            }
        }
    }

    async fn here(
        &self,
        parts: &Parts,
        body: Bytes,
        exchange: Arc<Exchange>,
        (matched, call): (&Matched<'_>, Call),
    ) -> Answered<Response<Body>> {
        if !is_of_principal(matched) {
            let target = Target::Request(exchange);
            let on_session = self.on_session(parts, body, target, (matched, call))?;
            return self.finish(call, on_session.answer(call)).await;
        }
        Self::no_query(parts)?;
        let sessions = self.sessions.clone();
        let id = matched.parameter.map(|id| routes::id_of(id).ok_or_else(problem::no_such_session));
        let id = id.transpose()?;
        let prefer = input::preference(&parts.headers);
        self.finish(call, OfPrincipal { sessions, exchange, id, prefer }.answer(call)).await
    }

    /// Does here what can be done here for a request of another instance, and leaves the rest to
    /// that one. Whether a request still lasts it alone knows, and with it whose principal's
    /// sessions the token still opens.
    async fn elsewhere(
        &self,
        parts: &Parts,
        body: Bytes,
        (remote, errand): (Remote, Errand),
        (matched, call): (&Matched<'_>, Call),
    ) -> Answered<Response<Body>> {
        if is_of_principal(matched) {
            return self.finish(call, errand.run()).await;
        }
        let on_session = self.on_session(parts, body, Target::Remote(remote), (matched, call))?;
        let answered = async move {
            match on_session.answer(call).await {
                Err(refusal) if refusal.code == problem::REQUEST_GONE => errand.run().await,
                answered => answered,
            }
        };
        self.finish(call, answered).await
    }

    fn on_session(
        &self,
        parts: &Parts,
        body: Bytes,
        target: Target,
        (matched, call): (&Matched<'_>, Call),
    ) -> Answered<OnSession> {
        let headers = &parts.headers;
        Ok(OnSession {
            sessions: self.sessions.clone(),
            target,
            key: matched.parameter.map(input::key).transpose()?,
            query: input::Query::read(parts, one::parameters(call))?,
            if_match: input::if_match(headers)?,
            if_missing: call == Call::SetValue && input::if_none_match_any(headers)?,
            prefer: input::preference(headers),
            body,
        })
    }

    /// The body of a call that writes; others have none.
    async fn body(&self, parts: &Parts, body: Body, call: Call) -> Answered<Bytes> {
        if !call.writes() {
            return Ok(Bytes::new());
        }
        input::body(&parts.headers, body, self.body_limit(), BODY_TIMEOUT).await
    }

    /// A body may be a whole session, with white space and a patch around it.
    fn body_limit(&self) -> usize {
        self.sessions.shared().policy.max_bytes.saturating_mul(2).saturating_add(64 * 1024)
    }

    /// An answer may be a session whose keys grow sixfold as JSON.
    fn answer_limit(&self) -> usize {
        self.sessions.shared().policy.max_bytes.saturating_mul(6).saturating_add(64 * 1024)
    }

    /// Answers a call. One that writes runs as a task: what it began it ends, though its caller
    /// hangs up.
    async fn finish(
        &self,
        call: Call,
        answered: impl Future<Output = Answered<Response<Body>>> + Send + 'static,
    ) -> Answered<Response<Body>> {
        if !call.writes() {
            return answered.await;
        }
        self.tasks.run(answered).await.unwrap_or_else(|lost| {
            error!(%lost, "a call of the session API");
            Err(problem::internal())
        })
    }

    fn contract(&self) -> Response<Body> {
        let mut response = answer::json(String::new());
        *response.body_mut() = Body::full(self.settings.openapi.clone());
        response
    }

    fn no_query(parts: &Parts) -> Answered<()> {
        input::Query::read(parts, &[]).map(drop)
    }

    fn check_service(&self, parts: &Parts) -> Answered<()> {
        let mut lines = parts.headers.get_all(AUTHORIZATION).iter();
        let bearer = match (lines.next(), lines.next()) {
            (Some(line), None) => line.as_bytes().split_at_checked(7),
            _ => None,
        };
        let given = bearer
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
            .map(|(_, token)| token);
        match (&self.settings.service_token, given) {
            (Some(token), Some(given)) if token.matches(given.trim_ascii()) => Ok(()),
            _ => Err(problem::service_token_wrong()),
        }
    }
}

fn refused(refusal: &Problem) -> Response<Body> {
    debug!(status = refusal.status.as_u16(), code = refusal.code, "a call was refused");
    answer::problem(refusal)
}

/// The request token, as the call has it.
fn token_line(parts: &Parts) -> Answered<&HeaderValue> {
    let mut lines = parts.headers.get_all("x-session-token").iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => Ok(line),
        _ => Err(problem::request_token_missing()),
    }
}

fn is_of_principal(matched: &Matched<'_>) -> bool {
    matched.route.path.starts_with("/principal")
}

impl Handler for Api {
    async fn handle(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let is_tcp = matches!(*peer.listener, Address::Tcp(_));
        let response = if is_tcp && !self.settings.own_names.admit(&parts.uri, &parts.headers) {
            answer::problem(&problem::misdirected())
        } else {
            let body = Body::streaming(body, Some(self.settings.body_idle_timeout));
            self.answer(&parts, body).await
        };
        self.sessions.shared().metrics.api_request(response.status().as_u16());
        response
    }
}
