//! Calls between instances that share a store: those that are forwarded to the instance that holds the request, and
//! those that come from another.
//!
//! A call that was forwarded is never forwarded again, so there are no loops.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_NONE_MATCH, RETRY_AFTER,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response};
use tracing::debug;

use super::operation::Effect;
use super::problem::{self, ApiResult};
use crate::body::Body;
use crate::client::{self, Pool, Target, Tls};
use crate::log::limited;
use crate::net::scheme::Scheme;
use crate::server::Tasks;
use crate::session::peer::{Instance, PeerCall, PeerSignature};
use crate::sessions::{Sessions, Shared};
use crate::wire::Problem;

/// The signature of a forwarded call, and of its response.
const X_SESSION_PEER: HeaderName = HeaderName::from_static("x-session-peer");

/// The headers that a forwarded call keeps, besides its token.
const REQUEST_HEADERS: [HeaderName; 5] =
    [ACCEPT, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, HeaderName::from_static("prefer")];

/// The headers that its response keeps: all that responses of the API have.
const RESPONSE_HEADERS: [HeaderName; 6] = [
    CACHE_CONTROL,
    CONTENT_TYPE,
    ETAG,
    RETRY_AFTER,
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("x-content-type-options"),
];

/// For the whole of a forwarded call, its connection included.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The sender of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    Upstream,
    /// Another instance, which has forwarded it.
    Peer(PeerSignature),
}

/// Identifies the sender of a call with this token and body.
pub(super) fn identify_caller(
    parts: &Parts,
    token: &HeaderValue,
    body: &[u8],
    shared: &Shared,
) -> ApiResult<Caller> {
    let mut lines = parts.headers.get_all(X_SESSION_PEER).iter();
    let signature = match (lines.next(), lines.next()) {
        (None, _) => return Ok(Caller::Upstream),
        (Some(line), None) => line.as_bytes(),
        (Some(_), Some(_)) => return Err(problem::invalid_peer_signature()),
    };
    let (method, target) = (parts.method.as_str(), target(parts));
    let call = PeerCall { token: token.as_bytes(), method, target: target.as_str(), body };
    let signature = call.verify(&shared.ring, signature, shared.clock.now());
    signature.map(Caller::Peer).ok_or_else(problem::invalid_peer_signature)
}

/// Signs the response to another instance's call.
pub(super) fn sign_response(
    mut response: Response<Body>,
    signature: PeerSignature,
    shared: &Shared,
) -> Response<Body> {
    if let Ok(line) = HeaderValue::from_str(signature.sign_response(&shared.ring).reveal()) {
        response.headers_mut().insert(X_SESSION_PEER, line);
    }
    response
}

/// The means of forwarding calls.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) sessions: Sessions,
    pub(super) tasks: Tasks,
    /// TLS to other instances, if they have it.
    pub(super) tls: Option<Arc<Tls>>,
    /// Most bytes of a response.
    pub(super) response_limit: usize,
}

/// A call that the instance which holds its request has to handle.
#[derive(Debug)]
pub(super) struct ForwardedCall {
    owner: Instance,
    effect: Effect,
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    token: HeaderValue,
    body: Bytes,
}

impl ForwardedCall {
    pub(super) fn new(
        owner: Instance,
        effect: Effect,
        parts: &Parts,
        token: HeaderValue,
        body: Bytes,
    ) -> Self {
        let mut headers = HeaderMap::new();
        for name in REQUEST_HEADERS {
            for line in parts.headers.get_all(&name) {
                headers.append(&name, line.clone());
            }
        }
        let method = match effect {
            Effect::Writes => parts.method.clone(),
            // Our own server leaves the body out of the response to HEAD.
            Effect::Reads => Method::GET,
        };
        Self { owner, effect, method, target: target(parts), headers, token, body }
    }

    fn request(&self, shared: &Shared) -> ApiResult<(Request<Body>, PeerSignature)> {
        let call = PeerCall {
            token: self.token.as_bytes(),
            method: self.method.as_str(),
            target: self.target.as_str(),
            body: &self.body,
        };
        let signature = call.sign(&shared.ring, shared.clock.now());
        let mut line = HeaderValue::from_str(signature.text().reveal())
            .map_err(|_invalid| problem::internal())?;
        line.set_sensitive(true);
        let mut request = Request::new(Body::full(self.body.clone()));
        self.method.clone_into(request.method_mut());
        *request.uri_mut() = self.target.clone().into();
        self.headers.clone_into(request.headers_mut());
        request.headers_mut().insert("x-session-token", self.token.clone());
        request.headers_mut().insert(X_SESSION_PEER, line);
        Ok((request, signature))
    }

    /// Returns the problem if no response of ours came. If the call was sent, it may have made its change.
    fn failed(&self, was_sent: bool) -> Problem {
        match self.effect {
            Effect::Writes if was_sent => problem::instance_did_not_respond(),
            Effect::Writes | Effect::Reads => problem::instance_unreachable(),
        }
    }
}

impl Peers {
    /// Forwards a call and returns the owner's response.
    pub(super) async fn forward(self, call: ForwardedCall) -> ApiResult<Response<Body>> {
        let shared = self.sessions.shared();
        let Some(owner) = self.target_of(&call.owner) else {
            return Err(problem::instance_unreachable());
        };
        let (request, signature) = call.request(shared)?;
        let config = client::Config {
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: DEADLINE,
            max_idle: 0,
            tls: self.tls.clone(),
            ..client::Config::default()
        };
        // A connection of its own: an idle one may have been closed, and a change cannot be sent twice.
        let pool = Pool::new(owner.clone(), config);
        match pool.fetch(request, &self.tasks, self.response_limit, DEADLINE).await {
            Ok(response) if is_signed(&response, signature, shared) => Ok(relay(response)),
            Ok(response) => {
                let status = response.status();
                limited!(warn, "peer", %owner, status = status.as_u16(), "unexpected response from peer (not a Cloakroom instance, or different keys)");
                // A proxy in front of the owner may have sent it after the owner handled the call.
                Err(call.failed(status.is_server_error()))
            }
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                debug!(%owner, error = cause, "failed to forward a call to a peer");
                Err(call.failed(!error.is_connect()))
            }
        }
    }

    /// Returns where an instance is, if it can be another than this one.
    fn target_of(&self, owner: &Instance) -> Option<Target> {
        let authority = &owner.authority;
        let is_other =
            !authority.is_empty() && *authority != self.sessions.shared().instance.authority;
        // Instances that share a store have the same configuration.
        let scheme = if self.tls.is_some() { Scheme::Https } else { Scheme::Http };
        is_other.then(|| format!("{}://{authority}", scheme.as_str()).parse().ok()).flatten()
    }
}

fn target(parts: &Parts) -> PathAndQuery {
    let target = parts.uri.path_and_query().cloned();
    target.unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn is_signed(response: &Response<Bytes>, signature: PeerSignature, shared: &Shared) -> bool {
    let line = response.headers().get(X_SESSION_PEER);
    line.is_some_and(|line| signature.verify_response(&shared.ring, line.as_bytes()))
}

/// Returns the owner's response as that of this instance.
fn relay(response: Response<Bytes>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = parts.status;
    for name in RESPONSE_HEADERS {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
