//! The session API: an upstream reads and writes the session of the request that it handles, and a back office any
//! session.
//!
//! It has a listener of its own. A call is found in the tables of `calls`, authorised by its token, parsed, and handled
//! by [`Sessions`], or forwarded to the instance that holds the request. The API does not know the proxy.
//!
//! An operation is one row of `calls` and one function in `session`, `principal` or `service`.

mod calls;
pub(crate) mod config;
mod line;
mod openapi;
mod operation;
mod peer;
mod principal;
mod problem;
mod request;
mod response;
mod routes;
mod service;
mod session;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tracing::{debug, error};

use crate::audit::{self, By};
use crate::body::Body;
use crate::client::Tls;
use crate::metrics::Event;
use crate::net::host::OwnNames;
use crate::secret::Secret;
use crate::server::{Address, Handler, Peer, Responding, Tasks};
use crate::session::peer::Instance;
use crate::session::token::RequestToken;
use crate::sessions::{REQUEST_GONE, Sessions, TokenLookup};
use crate::wire::Problem;

use line::CallLine;
use operation::{Effect, Operation, Spec};
use peer::{Caller, ForwardedCall, Peers};
use principal::PrincipalCall;
use problem::ApiResult;
use request::{Query, RequestHeader};
use routes::{Matched, MethodNotAllowed, RouteMatch};
use service::ServiceCall;
use session::{SessionCall, Target};

/// The session API, as one worker serves it.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    sessions: Sessions,
    tasks: Tasks,
    settings: Arc<Settings>,
}

/// The settings of the API, which workers share.
#[derive(Debug)]
pub(crate) struct Settings {
    prefix: String,
    service_token: Option<Secret>,
    body_idle_timeout: Duration,
    peers: Option<Arc<Tls>>,
    own_names: OwnNames,
    openapi: OnceLock<Bytes>,
}

/// The deadline of the whole body of a call.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A refused call.
enum Refusal {
    Problem(Problem),
    MethodNotAllowed(MethodNotAllowed),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<MethodNotAllowed> for Refusal {
    fn from(allowed: MethodNotAllowed) -> Self {
        Self::MethodNotAllowed(allowed)
    }
}

/// A call with a valid request token.
struct TokenCall {
    body: Bytes,
    token: HeaderValue,
    /// The instance that issued the token.
    issuer: Instance,
    caller: Caller,
    /// The request, unless it is gone.
    request: Option<TokenLookup>,
}

impl Settings {
    /// Creates settings. Without a service token of its `config` the API serves the sessions of requests alone. With
    /// `peers`, other instances are called over TLS. Over TCP the API is served at `own_names`.
    pub(crate) fn new(
        config: &config::Config,
        body_idle_timeout: Duration,
        peers: Option<Arc<Tls>>,
        own_names: OwnNames,
    ) -> Self {
        let config::Config { prefix, service_token, .. } = config.clone();
        let openapi = OnceLock::new();
        Self { prefix, service_token, body_idle_timeout, peers, own_names, openapi }
    }

    fn openapi(&self) -> Bytes {
        self.openapi.get_or_init(|| openapi::document(&self.prefix).into()).clone()
    }
}

impl Api {
    /// Creates the API of one worker.
    pub(crate) fn new(sessions: Sessions, tasks: Tasks, settings: Arc<Settings>) -> Self {
        Self { sessions, tasks, settings }
    }

    async fn respond(
        &self,
        parts: &Parts,
        body: Body,
        peer: &Peer,
        line: &mut CallLine,
    ) -> Response<Body> {
        match self.call(parts, body, peer, line).await {
            Ok(response) => response,
            Err(Refusal::Problem(problem)) => refuse(&problem),
            Err(Refusal::MethodNotAllowed(allowed)) => response::method_not_allowed(&allowed.allow),
        }
    }

    async fn call(
        &self,
        parts: &Parts,
        body: Body,
        peer: &Peer,
        line: &mut CallLine,
    ) -> Result<Response<Body>, Refusal> {
        let matched = routes::find(&self.settings.prefix, parts.uri.path());
        match matched.ok_or_else(problem::not_found)? {
            Matched::Document(route) => {
                let operation = route.operation(&parts.method)?;
                Ok(self.run(operation, self.settings.openapi()).await?)
            }
            Matched::OwnSession(route) => {
                let operation = route.operation(&parts.method)?;
                let call = self.authorize_request(parts, body, operation.spec.effect).await?;
                line.set_request(&call);
                let caller = call.caller;
                let result = self.own_session(parts, call, &route, operation).await;
                Ok(self.sign_for(caller, result)?)
            }
            Matched::Principal(route) => {
                let operation = route.operation(&parts.method)?;
                let call = self.authorize_request(parts, body, operation.spec.effect).await?;
                line.set_request(&call);
                let caller = call.caller;
                let result = self.own_principal(parts, call, &route, operation).await;
                Ok(self.sign_for(caller, result)?)
            }
            // Without a service token these paths do not exist.
            Matched::SessionById(..) | Matched::Service(_)
                if self.settings.service_token.is_none() =>
            {
                Err(problem::not_found().into())
            }
            Matched::SessionById(id, route) => {
                let operation = route.operation(&parts.method)?;
                self.authorize_service(parts, peer)?;
                line.set_service(Some(id));
                let body = self.body(parts, body, operation.spec.effect).await?;
                let call =
                    self.session_call(parts, body, Target::Id(id), &route, &operation.spec)?;
                Ok(self.run(operation, call).await?)
            }
            Matched::Service(route) => {
                let operation = route.operation(&parts.method)?;
                self.authorize_service(parts, peer)?;
                line.set_service(None);
                let query = Query::parse(parts, operation.spec.query)?;
                let call = ServiceCall { sessions: self.sessions.clone(), query };
                Ok(self.run(operation, call).await?)
            }
        }
    }

    /// Verifies the request token of a call and finds its request.
    async fn authorize_request(
        &self,
        parts: &Parts,
        body: Body,
        effect: Effect,
    ) -> ApiResult<TokenCall> {
        let shared = self.sessions.shared();
        let token = request_token(parts)?;
        let (parsed, issuer) = RequestToken::verify(&shared.ring, token.as_bytes())
            .ok_or_else(problem::request_token_unknown)?;
        let body = self.body(parts, body, effect).await?;
        let caller = peer::identify_caller(parts, token, &body, shared)?;
        let request = self.sessions.opener().find(parsed, &issuer);
        Ok(TokenCall { body, token: token.clone(), issuer, caller, request })
    }

    /// Handles a call on the session of a request. This instance does what it can for a request of another one, and
    /// forwards the rest: only the other one knows whether the request still lasts.
    async fn own_session(
        &self,
        parts: &Parts,
        call: TokenCall,
        route: &RouteMatch<'_, SessionCall>,
        operation: &Operation<SessionCall>,
    ) -> ApiResult<Response<Body>> {
        match (&call.request, call.caller) {
            (Some(TokenLookup::Here(session)), _) => {
                let target = Target::Request(session.clone());
                let call = self.session_call(parts, call.body, target, route, &operation.spec)?;
                self.run(operation, call).await
            }
            (Some(TokenLookup::Elsewhere(remote)), Caller::Upstream) => {
                let (target, body) = (Target::Remote(remote.clone()), call.body.clone());
                let here = self.session_call(parts, body, target, route, &operation.spec)?;
                let here = (operation.handler)(here);
                let elsewhere = self.forward(parts, call, operation.spec.effect);
                let result = async move {
                    match here.await {
                        Err(problem) if problem.code == REQUEST_GONE => elsewhere.await,
                        result => result,
                    }
                };
                self.finish(operation.spec.effect, result).await
            }
            (Some(TokenLookup::Elsewhere(_)), Caller::Peer(_)) | (None, _) => {
                Err(problem::request_gone())
            }
        }
    }

    /// Handles a call on the sessions of a principal. Whose they are is known by the instance that holds the request.
    async fn own_principal(
        &self,
        parts: &Parts,
        call: TokenCall,
        route: &RouteMatch<'_, PrincipalCall>,
        operation: &Operation<PrincipalCall>,
    ) -> ApiResult<Response<Body>> {
        match (&call.request, call.caller) {
            (Some(TokenLookup::Here(session)), _) => {
                Query::parse(parts, operation.spec.query)?;
                let id = route
                    .parameter
                    .map(|id| routes::parse_id(id).ok_or_else(problem::no_such_session));
                let call = PrincipalCall {
                    sessions: self.sessions.clone(),
                    session: session.clone(),
                    id: id.transpose()?,
                    prefer: request::preference(&parts.headers),
                };
                self.run(operation, call).await
            }
            (Some(TokenLookup::Elsewhere(_)), Caller::Upstream) => {
                let effect = operation.spec.effect;
                self.finish(effect, self.forward(parts, call, effect)).await
            }
            (Some(TokenLookup::Elsewhere(_)), Caller::Peer(_)) | (None, _) => {
                Err(problem::request_gone())
            }
        }
    }

    fn session_call(
        &self,
        parts: &Parts,
        body: Bytes,
        target: Target,
        route: &RouteMatch<'_, SessionCall>,
        spec: &Spec,
    ) -> ApiResult<SessionCall> {
        let headers = &parts.headers;
        Ok(SessionCall {
            sessions: self.sessions.clone(),
            target,
            key: route.parameter.map(request::key).transpose()?,
            query: Query::parse(parts, spec.query)?,
            if_match: request::if_match(headers)?,
            if_missing: spec.headers.contains(&RequestHeader::IfNoneMatch)
                && request::if_none_match_any(headers)?,
            prefer: request::preference(headers),
            body,
        })
    }

    /// Forwards a call to the instance that issued its token.
    fn forward(
        &self,
        parts: &Parts,
        call: TokenCall,
        effect: Effect,
    ) -> impl Future<Output = ApiResult<Response<Body>>> + Send + use<> {
        let peers = Peers {
            sessions: self.sessions.clone(),
            tasks: self.tasks.clone(),
            tls: self.settings.peers.clone(),
            response_limit: self.response_limit(),
        };
        let TokenCall { body, token, issuer, .. } = call;
        let call = ForwardedCall::new(issuer, effect, parts, token, body);
        // Few calls are forwarded, and the future of a connection is large.
        async move { Box::pin(peers.forward(call)).await }
    }

    /// Signs a result if a peer has forwarded the call. Problems are signed too: the peer has to know whose they are.
    fn sign_for(
        &self,
        caller: Caller,
        result: ApiResult<Response<Body>>,
    ) -> ApiResult<Response<Body>> {
        match caller {
            Caller::Upstream => result,
            Caller::Peer(signature) => {
                let response = result.unwrap_or_else(|problem| refuse(&problem));
                Ok(peer::sign_response(response, signature, self.sessions.shared()))
            }
        }
    }

    /// Reads the body of a call that writes; others have none.
    async fn body(&self, parts: &Parts, body: Body, effect: Effect) -> ApiResult<Bytes> {
        match effect {
            Effect::Reads => Ok(Bytes::new()),
            Effect::Writes => {
                request::body(&parts.headers, body, self.body_limit(), BODY_TIMEOUT).await
            }
        }
    }

    /// Returns the most bytes of a body: a whole session, with white space and a patch around it.
    fn body_limit(&self) -> usize {
        self.sessions.shared().policy.max_bytes.saturating_mul(2).saturating_add(64 * 1024)
    }

    /// Returns the most bytes of a response: a session whose keys grow sixfold as JSON (`\u0000`).
    fn response_limit(&self) -> usize {
        self.sessions.shared().policy.max_bytes.saturating_mul(6).saturating_add(64 * 1024)
    }

    async fn run<C>(&self, operation: &Operation<C>, call: C) -> ApiResult<Response<Body>> {
        self.finish(operation.spec.effect, (operation.handler)(call)).await
    }

    /// Awaits the result of a call. One that writes runs as a task, so that a change is completed although its caller hangs
    /// up.
    async fn finish(
        &self,
        effect: Effect,
        result: impl Future<Output = ApiResult<Response<Body>>> + Send + 'static,
    ) -> ApiResult<Response<Body>> {
        match effect {
            Effect::Reads => result.await,
            Effect::Writes => self.tasks.run(result).await.unwrap_or_else(|panic| {
                error!(%panic, "session API call panicked");
                Err(problem::internal())
            }),
        }
    }

    fn authorize_service(&self, parts: &Parts, peer: &Peer) -> ApiResult<()> {
        let mut lines = parts.headers.get_all(AUTHORIZATION).iter();
        let bearer = match (lines.next(), lines.next()) {
            (Some(line), None) => line.as_bytes().split_at_checked("Bearer ".len()),
            _ => None,
        };
        let given = bearer
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
            .map(|(_, token)| token);
        match (&self.settings.service_token, given) {
            (Some(token), Some(given)) if token.matches(given.trim_ascii()) => Ok(()),
            (_, None) => Err(problem::service_token_wrong()),
            (_, Some(_)) => {
                let client = peer.address.map(|address| address.ip());
                let entry = audit::Entry::new(Event::WrongToken, By::Service);
                let source = audit::Source { client, ..audit::Source::default() };
                self.sessions.shared().audit.record(entry.from(source));
                Err(problem::service_token_wrong())
            }
        }
    }
}

fn refuse(problem: &Problem) -> Response<Body> {
    debug!(status = problem.status.as_u16(), code = problem.code, "session API call refused");
    response::problem(problem)
}

/// Returns the request token of a call. Two tokens are an error, since they could be of two requests.
fn request_token(parts: &Parts) -> ApiResult<&HeaderValue> {
    let mut lines = parts.headers.get_all("x-session-token").iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => Ok(line),
        _ => Err(problem::request_token_missing()),
    }
}

impl Handler for Api {
    fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Responding {
        let (parts, body) = request.into_parts();
        // Not in the future, which is never polled if the caller has gone away by now.
        let mut line = CallLine::begin(&parts, &peer);
        Box::pin(async move {
            // A page in a browser can reach the API by a name that it has resolve to this address (DNS rebinding). A Unix
            // socket is out of its reach.
            let is_tcp = matches!(*peer.listener, Address::Tcp(_));
            let response = if is_tcp && !self.settings.own_names.admit(&parts.uri, &parts.headers) {
                response::problem(&problem::misdirected())
            } else {
                let body = Body::streaming(body, Some(self.settings.body_idle_timeout));
                self.respond(&parts, body, &peer, &mut line).await
            };
            let status = response.status().as_u16();
            self.sessions.shared().metrics.api_request(status);
            line.finish(status);
            response
        })
    }
}
